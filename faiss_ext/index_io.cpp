#include "faiss_ext/index_io.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <vector>

#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/AtomicFileWriter.h"
#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/io/FileMemory.h"
#include "faiss_ext/io/StockShell.h"
#include "faiss_ext/io/before_writing.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/io/format.h"
#include "faiss_ext/io/stock_layout.h"
#include "faiss_ext/io/streams.h"
#include "faiss_ext/io/trailer.h"
#include "faiss_ext/store/free_room.h"

namespace faiss_ext {

namespace {

void write_all(faiss::IOWriter* writer, const void* data, size_t size) {
    FAISS_THROW_IF_NOT_FMT(
            (*writer)(data, 1, size) == size,
            "write_index: cannot write %zu bytes to \"%s\"",
            size,
            writer->name.c_str());
}

/// FAISS's own file writer keeps bytes back, and would lose them without a
/// word when it closes the file.
void flush(faiss::IOWriter* writer) {
    auto file = dynamic_cast<faiss::FileIOWriter*>(writer);
    FAISS_THROW_IF_NOT_FMT(
            !file || fflush(file->f) == 0,
            "write_index: cannot write to \"%s\": %s",
            writer->name.c_str(),
            std::generic_category().message(errno).c_str());
}

struct Trailer {
    TrailerHead head;
    size_t payload_begin;
    int64_t kind = 0; ///< the payload's first number (io/fields.h)
};

/// Checks all of it. Its memory is taken when its fields are read.
Trailer read_trailer(
        faiss::IOReader* reader, const Seekable& place, uint64_t stock_length) {
    const char* name = reader->name.c_str();
    Trailer out;
    FAISS_THROW_IF_NOT_FMT(
            (*reader)(&out.head, sizeof(out.head), 1) == 1 &&
                    out.head.magic == TrailerHead::kMagic &&
                    out.head.stock_length == stock_length,
            "read_index: \"%s\" has no GMM trailer where it should be",
            name);
    FAISS_THROW_IF_NOT_FMT(
            out.head.version >= kOldestVersion && out.head.version <= kVersion,
            "read_index: the GMM trailer of \"%s\" has version %u, expected "
            "%u to %u",
            name,
            out.head.version,
            kOldestVersion,
            kVersion);
    out.payload_begin = place.tell();
    ChecksumReader payload{reader};
    payload.checksum.add(&out.head, sizeof(out.head));
    uint64_t expected = 0;
    FAISS_THROW_IF_NOT_FMT(
            payload.skip(out.head.payload_length) &&
                    (*reader)(&expected, sizeof(expected), 1) == 1,
            "read_index: \"%s\" ends in its GMM trailer",
            name);
    FAISS_THROW_IF_NOT_FMT(
            payload.checksum.value() == expected,
            "read_index: the GMM trailer of \"%s\" is corrupted (checksum)",
            name);
    if (out.head.payload_length >= sizeof(out.kind)) {
        const size_t end = place.tell();
        place.seek(out.payload_begin);
        (*reader)(&out.kind, sizeof(out.kind), 1);
        place.seek(end);
    }
    return out;
}

void check_stock(
        const Trailer& trailer,
        const Checksum& checksum,
        const faiss::IOReader* reader) {
    FAISS_THROW_IF_NOT_FMT(
            checksum.length == trailer.head.stock_length &&
                    checksum.value() == trailer.head.stock_checksum,
            "read_index: \"%s\" is corrupted (checksum)",
            reader->name.c_str());
}

std::unique_ptr<faiss::Index> read_stock(
        faiss::IOReader* reader, int io_flags) {
    try {
        return std::unique_ptr<faiss::Index>(
                faiss::read_index(reader, io_flags));
    } catch (const std::length_error&) {
        // What a vector says to a length that cannot be right.
        FAISS_THROW_FMT(
                "read_index: \"%s\" is corrupted (a length)",
                reader->name.c_str());
    }
}

/// The first bytes of the stock part, as many as there are, and whether
/// kCodesAlone stands before them.
struct Start {
    bool codes_alone = false;
    std::vector<uint8_t> head;

    explicit Start(faiss::IOReader* reader) {
        read(reader);
        uint32_t word = 0;
        if (head.size() >= sizeof(word)) {
            memcpy(&word, head.data(), sizeof(word));
        }
        if (word == kCodesAlone) {
            codes_alone = true;
            head.erase(head.begin(), head.begin() + sizeof(word));
            read(reader);
        }
    }

    /// Where the stock part of what begins there does.
    size_t stock_begin(size_t begin) const {
        return begin + (codes_alone ? sizeof(kCodesAlone) : 0);
    }

private:
    void read(faiss::IOReader* reader) {
        const size_t there = head.size();
        head.resize(kStampEnd);
        head.resize(
                there + (*reader)(head.data() + there, 1, head.size() - there));
    }
};

/// The stock part's length if the head is stamped; 0 if it is FAISS's own.
uint64_t stamped_length(const Start& start, const faiss::IOReader* reader) {
    const std::vector<uint8_t>& bytes = start.head;
    Head head = {};
    if (bytes.size() < head.size() && !start.codes_alone) {
        return 0; // FAISS says what is wrong with it
    }
    std::copy(bytes.begin(), bytes.end(), head.begin());
    const auto [stamp, length] = stamp_of(head);
    if (stamp == kFaissWord && length == kFaissWord && !start.codes_alone) {
        return 0;
    }
    // Anything else is damage, and must not make the mixture go.
    FAISS_THROW_IF_NOT_FMT(
            stamp == kStamp && length >= kStampEnd,
            "read_index: \"%s\" is no index, or is corrupted (stamp)",
            reader->name.c_str());
    return length;
}

/// What FAISS leaves out with IO_FLAG_MMAP where lists have a file of their
/// own.
void map_lists_on_disk(faiss::Index& root, int io_flags) {
    faiss::Index* index = &root;
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(*unwrap(&index));
    auto* lists = ivf ? dynamic_cast<faiss::OnDiskInvertedLists*>(ivf->invlists)
                      : nullptr;
    if (!lists) {
        return;
    }
    if ((io_flags & faiss::IO_FLAG_MMAP) == faiss::IO_FLAG_MMAP) {
        lists->read_only = true;
    } else {
        mend_free_room(*lists);
    }
    if (!lists->ptr && lists->totsize > 0) {
        std::error_code error;
        FAISS_THROW_IF_NOT_FMT( // opening waits for somebody who writes
                !std::filesystem::is_fifo(lists->filename, error),
                "\"%s\", where the inverted lists are, is a pipe, expected a "
                "file",
                lists->filename.c_str());
        lists->do_mmap();
    }
}

/// An index of FAISS's own.
std::unique_ptr<faiss::Index> read_plain(
        faiss::IOReader* reader, int io_flags) {
    auto index = read_stock(reader, io_flags);
    check_scalar_quantizers_known(*index);
    map_lists_on_disk(*index, io_flags);
    limit_fast_scan(*index);
    return index;
}

/// Our part of the index, and the table that FAISS was kept from computing
/// before anybody had looked at what it read.
std::unique_ptr<faiss::Index> finish(
        std::unique_ptr<faiss::Index> index,
        faiss::IOReader* reader,
        const TrailerHead& trailer,
        int io_flags,
        const FileMemory* mapped) {
    faiss::Index* root = index.release();
    try {
        map_lists_on_disk(*root, io_flags); // where a direct map is checked
        limit_fast_scan(*root);
        read_gmm(
                &root,
                {reader, trailer.payload_length, trailer.version, mapped});
        auto* pq = dynamic_cast<faiss::IndexIVFPQ*>(*unwrap(&root));
        if (pq && pq->is_trained && pq->by_residual &&
            (io_flags & faiss::IO_FLAG_SKIP_PRECOMPUTE_TABLE) == 0) {
            pq->precompute_table();
        }
    } catch (...) {
        delete root;
        throw;
    }
    return std::unique_ptr<faiss::Index>(root);
}

/// Checks the whole file before FAISS believes a word of it.
std::unique_ptr<faiss::Index> read_seekable(
        faiss::IOReader* reader, const Seekable& place, int io_flags) {
    const size_t file_begin = place.tell();
    const Start start(reader);
    const size_t begin = start.stock_begin(file_begin);
    const uint64_t stock_length = stamped_length(start, reader);
    place.seek(begin);
    if (stock_length == 0) {
        return read_plain(reader, io_flags);
    }
    FAISS_THROW_IF_NOT_FMT(
            stock_length < size_t(INT64_MAX) - begin,
            "read_index: \"%s\" is corrupted (length)",
            reader->name.c_str());
    place.seek(begin + stock_length);
    const Trailer trailer = read_trailer(reader, place, stock_length);
    const size_t end = place.tell();
    place.seek(begin);
    // Who maps a file does not want all of it read.
    if ((io_flags & faiss::IO_FLAG_SKIP_IVF_DATA) == 0) {
        ChecksumReader stock{reader};
        stock.skip(stock_length);
        check_stock(trailer, stock.checksum, reader);
        place.seek(begin);
    }
    check_layout(
            reader,
            place,
            stock_length,
            trailer.kind == int64_t(PayloadKind::ivf_gmm) ||
                    trailer.kind == int64_t(PayloadKind::codes));
    place.seek(begin);
    auto index =
            read_stock(reader, io_flags | faiss::IO_FLAG_SKIP_PRECOMPUTE_TABLE);
    FAISS_THROW_IF_NOT_FMT(
            place.tell() == begin + stock_length,
            "read_index: \"%s\" is corrupted (length)",
            reader->name.c_str());
    place.seek(trailer.payload_begin);
    std::optional<FileMemory> mapped;
    if (place.file && (io_flags & faiss::IO_FLAG_MMAP) == faiss::IO_FLAG_MMAP) {
        mapped.emplace(place.file, reader->name.c_str());
    }
    index =
            finish(std::move(index),
                   reader,
                   trailer.head,
                   io_flags,
                   mapped ? &*mapped : nullptr);
    place.seek(end);
    return index;
}

/// Of a reader that cannot go back the stock part is held in memory, so that
/// FAISS gets it checked.
std::unique_ptr<faiss::Index> read_stream(
        faiss::IOReader* reader, int io_flags) {
    Start start(reader);
    const uint64_t stock_length = stamped_length(start, reader);
    if (stock_length == 0) {
        ReaderAfterHead whole(reader, std::move(start.head));
        return read_plain(&whole, io_flags);
    }
    faiss::VectorIOReader held;
    held.name = reader->name;
    const size_t stock_begin = start.stock_begin(0);
    const auto* word = reinterpret_cast<const uint8_t*>(&kCodesAlone);
    held.data.assign(word, word + stock_begin);
    held.data.insert(held.data.end(), start.head.begin(), start.head.end());
    const auto hold = [&](uint64_t bytes) {
        while (bytes > 0) {
            const size_t block = std::min<uint64_t>(kBlock, bytes);
            const size_t begin = held.data.size();
            held.data.resize(begin + block);
            FAISS_THROW_IF_NOT_FMT(
                    (*reader)(&held.data[begin], 1, block) == block,
                    "read_index: \"%s\" ends too early",
                    reader->name.c_str());
            bytes -= block;
        }
    };
    hold(stock_length - kStampEnd);
    hold(sizeof(TrailerHead));
    TrailerHead trailer;
    memcpy(&trailer, &held.data[stock_begin + stock_length], sizeof(trailer));
    hold(trailer.payload_length);
    hold(sizeof(uint64_t));
    return read_seekable(&held, Seekable(&held), io_flags);
}

} // namespace

void write_index(const faiss::Index* index, faiss::IOWriter* writer) {
    FAISS_THROW_IF_NOT_MSG(index && writer, "write_index: no index or writer");
    if (!check_before_writing(index)) {
        faiss::write_index(index, writer);
        flush(writer);
        return;
    }
    const StockShell stock(*index);
    CountingWriter counter;
    faiss::write_index(stock.index(), &counter);
    const auto words = stamp_of(counter.head);
    FAISS_THROW_IF_NOT_MSG(
            counter.length >= kStampEnd && words[0] == kFaissWord &&
                    words[1] == kFaissWord,
            "write_index: this FAISS writes an index header that there is no "
            "room in");
    const size_t place = (stock.is_shell() ? sizeof(kCodesAlone) : 0) +
            counter.length + sizeof(TrailerHead);
    CountingWriter payload;
    write_gmm(index, &payload, place);
    if (stock.is_shell()) {
        write_all(writer, &kCodesAlone, sizeof(kCodesAlone));
    }
    StampingWriter stamping(writer, counter.length);
    faiss::write_index(stock.index(), &stamping);

    TrailerHead head;
    head.stock_length = counter.length;
    head.stock_checksum = stamping.checksum.value();
    head.payload_length = payload.length;
    ChecksumWriter trailer(writer);
    write_all(&trailer, &head, sizeof(head));
    write_gmm(index, &trailer, place);
    FAISS_THROW_IF_NOT_MSG(
            trailer.checksum.length == sizeof(head) + payload.length,
            "write_index: the index has changed meanwhile");
    const uint64_t value = trailer.checksum.value();
    write_all(writer, &value, sizeof(value));
    flush(writer);
}

void write_index(const faiss::Index* index, const char* filename) {
    FAISS_THROW_IF_NOT_MSG(
            index && filename, "write_index: no index or file name");
    AtomicFileWriter writer(filename);
    if (const auto* lists = lists_on_disk(index)) {
        std::error_code error;
        FAISS_THROW_IF_NOT_FMT(
                !std::filesystem::equivalent(
                        lists->filename, writer.target(), error),
                "write_index: \"%s\" holds the inverted lists of the index",
                filename);
    }
    faiss_ext::write_index(index, &writer);
    writer.commit();
}

faiss::Index* read_index(faiss::IOReader* reader, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(reader, "read_index: no reader");
    const Seekable place(reader);
    return (place ? read_seekable(reader, place, io_flags)
                  : read_stream(reader, io_flags))
            .release();
}

faiss::Index* read_index(const char* filename, int io_flags) {
    FAISS_THROW_IF_NOT_MSG(filename, "read_index: no file name");
    faiss::FileIOReader reader(filename);
    std::error_code error;
    FAISS_THROW_IF_NOT_FMT(
            !std::filesystem::is_regular_file(filename, error) ||
                    std::filesystem::file_size(filename, error) > 0,
            "%s: 0 bytes, expected an index",
            filename);
    return faiss_ext::read_index(&reader, io_flags);
}

} // namespace faiss_ext
