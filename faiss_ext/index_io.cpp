#include "faiss_ext/index_io.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>

#include "faiss_ext/io/trailer.h"

namespace faiss_ext {

/* The file:
 *
 *   stock part   what faiss::write_index writes, but for two 8-byte words of
 *                the outermost header that FAISS sets to 1 << 20 and ignores
 *                when it reads: kStamp and the length of the stock part
 *   trailer      TrailerHead, payload (impl/trailer.cpp), checksum of both
 *
 * The stamp tells a file that has lost its trailer from one that never had
 * one, and where the trailer is before anything of the file is believed.
 */

namespace {

constexpr uint64_t kStamp = 0x5254'4d4d'472b'5846; // "FX+GMMTR"
constexpr uint32_t kMagic = 0x744d'4d47;           // "GMMt"
constexpr uint32_t kVersion = 2;
constexpr int64_t kFaissDummy = 1 << 20;
/// fourcc, d, ntotal: what stands before the two words.
constexpr size_t kStampBegin = 4 + 4 + 8;
constexpr size_t kStampEnd = kStampBegin + 16;
constexpr size_t kBlock = 1 << 20;

struct TrailerHead {
    uint32_t magic = kMagic;
    uint32_t version = kVersion;
    uint64_t stock_length = 0;
    uint64_t stock_checksum = 0;
    uint64_t payload_length = 0;
};
static_assert(sizeof(TrailerHead) == 32);

/** FNV-1a over 64-bit words, with a rotation so that high bits mix, too.
 *
 * Each step is a bijection of the state: a change in one word is always
 * seen. */
struct Checksum {
    uint64_t state = 0xcbf29ce484222325;
    uint64_t length = 0;
    std::array<uint8_t, 8> pending = {};

    void add(const void* data, size_t size) {
        auto bytes = static_cast<const uint8_t*>(data);
        while (size > 0) {
            const size_t have = length % 8;
            if (have == 0 && size >= 8) {
                const size_t words = size / 8;
                for (size_t i = 0; i < words; i++) {
                    mix(bytes + 8 * i);
                }
                bytes += 8 * words;
                size -= 8 * words;
                length += 8 * words;
                continue;
            }
            const size_t take = std::min(size, 8 - have);
            memcpy(pending.data() + have, bytes, take);
            bytes += take;
            size -= take;
            length += take;
            if (length % 8 == 0) {
                mix(pending.data());
            }
        }
    }

    uint64_t value() const {
        Checksum last = *this;
        std::fill(
                last.pending.begin() + length % 8,
                last.pending.end(),
                uint8_t(0));
        last.mix(last.pending.data());
        last.mix(&length);
        return last.state;
    }

private:
    void mix(const void* word) {
        uint64_t w;
        memcpy(&w, word, 8);
        state = std::rotl(state ^ w, 29) * 0x100000001b3;
    }
};

using Head = std::array<uint8_t, kStampEnd>;

std::array<uint64_t, 2> stamp_of(const Head& head) {
    std::array<uint64_t, 2> words;
    memcpy(words.data(), head.data() + kStampBegin, sizeof(words));
    return words;
}

/// Counts what is written, and keeps the outermost header.
struct CountingWriter : faiss::IOWriter {
    Head head = {};
    size_t length = 0;

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        const size_t bytes = size * nitems;
        if (length < head.size()) {
            memcpy(head.data() + length,
                   ptr,
                   std::min(bytes, head.size() - length));
        }
        length += bytes;
        return nitems;
    }
};

/// Puts the stamp where it belongs, and passes all on.
struct StampingWriter : faiss::IOWriter {
    faiss::IOWriter* out;
    std::array<uint64_t, 2> stamp;
    Checksum checksum;

    StampingWriter(faiss::IOWriter* out, size_t stock_length)
            : out(out), stamp{kStamp, stock_length} {
        name = out->name;
    }

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        const size_t bytes = size * nitems;
        const size_t at = checksum.length;
        if (at + bytes <= kStampBegin || at >= kStampEnd) {
            checksum.add(ptr, bytes);
            return (*out)(ptr, size, nitems);
        }
        std::vector<uint8_t> copy(bytes);
        memcpy(copy.data(), ptr, bytes);
        for (size_t i = 0; i < bytes; i++) {
            if (at + i >= kStampBegin && at + i < kStampEnd) {
                copy[i] = reinterpret_cast<const uint8_t*>(
                        stamp.data())[at + i - kStampBegin];
            }
        }
        checksum.add(copy.data(), bytes);
        return (*out)(copy.data(), size, nitems);
    }
};

void write_all(faiss::IOWriter* writer, const void* data, size_t size) {
    FAISS_THROW_IF_NOT_FMT(
            (*writer)(data, 1, size) == size,
            "write_index: cannot write %zu bytes to \"%s\"",
            size,
            writer->name.c_str());
}

/// Reads that many bytes; memory is taken as they come, so that a length that
/// lies costs no more than the reader has.
std::vector<uint8_t> read_bytes(faiss::IOReader* reader, uint64_t size) {
    std::vector<uint8_t> out;
    while (out.size() < size) {
        const size_t begin = out.size();
        const size_t block = std::min<uint64_t>(kBlock, size - begin);
        out.resize(begin + block);
        FAISS_THROW_IF_NOT_FMT(
                (*reader)(out.data() + begin, 1, block) == block,
                "read_index: \"%s\" ends in its GMM trailer",
                reader->name.c_str());
    }
    return out;
}

struct Trailer {
    TrailerHead head;
    std::vector<uint8_t> payload;
};

Trailer read_trailer(faiss::IOReader* reader, uint64_t stock_length) {
    const char* name = reader->name.c_str();
    Trailer out;
    const auto head = read_bytes(reader, sizeof(out.head));
    memcpy(&out.head, head.data(), sizeof(out.head));
    FAISS_THROW_IF_NOT_FMT(
            out.head.magic == kMagic && out.head.stock_length == stock_length,
            "read_index: \"%s\" has no GMM trailer where it should be",
            name);
    FAISS_THROW_IF_NOT_FMT(
            out.head.version == kVersion,
            "read_index: the GMM trailer of \"%s\" has version %u, expected "
            "%u",
            name,
            out.head.version,
            kVersion);
    out.payload = read_bytes(reader, out.head.payload_length);
    Checksum checksum;
    checksum.add(head.data(), head.size());
    checksum.add(out.payload.data(), out.payload.size());
    uint64_t expected;
    memcpy(&expected, read_bytes(reader, 8).data(), 8);
    FAISS_THROW_IF_NOT_FMT(
            checksum.value() == expected,
            "read_index: the GMM trailer of \"%s\" is corrupted (checksum)",
            name);
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

/// A reader that can go back: a file or a vector; not a pipe.
struct Seekable {
    FILE* file = nullptr;
    faiss::VectorIOReader* vector = nullptr;

    explicit Seekable(faiss::IOReader* reader)
            : vector(dynamic_cast<faiss::VectorIOReader*>(reader)) {
        auto file_reader = dynamic_cast<faiss::FileIOReader*>(reader);
        if (file_reader && ftell(file_reader->f) >= 0) {
            file = file_reader->f;
        }
    }

    explicit operator bool() const {
        return file || vector;
    }

    size_t tell() const {
        return file ? size_t(ftell(file)) : vector->rp;
    }

    /// Behind the end is an error here or when it is read.
    void seek(size_t at) const {
        if (file) {
            FAISS_THROW_IF_NOT_FMT(
                    at <= size_t(INT64_MAX) && fseek(file, at, SEEK_SET) == 0,
                    "read_index: cannot go to byte %zu",
                    at);
        } else {
            FAISS_THROW_IF_NOT_FMT(
                    at <= vector->data.size(),
                    "read_index: byte %zu is behind the end",
                    at);
            vector->rp = at;
        }
    }
};

/// A reader's first bytes again, and no more than `limit` bytes in all.
struct BoundedReader : faiss::IOReader {
    faiss::IOReader* in;
    std::vector<uint8_t> head; ///< read from `in` already
    uint64_t limit;
    Checksum checksum; ///< of what was read, checksum.length bytes

    BoundedReader(
            faiss::IOReader* in, std::vector<uint8_t> head, uint64_t limit)
            : in(in), head(std::move(head)), limit(limit) {
        name = in->name;
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        if (size == 0 || nitems == 0) {
            return nitems;
        }
        if (nitems > (limit - checksum.length) / size) {
            return 0;
        }
        const size_t bytes = size * nitems;
        const size_t at = checksum.length;
        size_t got = 0;
        if (at < head.size()) {
            got = std::min(bytes, head.size() - at);
            memcpy(ptr, head.data() + at, got);
        }
        if (got < bytes) {
            got += (*in)(static_cast<uint8_t*>(ptr) + got, 1, bytes - got);
        }
        checksum.add(ptr, got);
        return got / size;
    }
};

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

/// The stock part's length if the head is stamped; 0 if it is FAISS's own.
uint64_t stamped_length(
        const std::vector<uint8_t>& bytes, const faiss::IOReader* reader) {
    Head head = {};
    if (bytes.size() < head.size()) {
        return 0; // FAISS says what is wrong with it
    }
    std::copy(bytes.begin(), bytes.end(), head.begin());
    const auto [stamp, length] = stamp_of(head);
    if (stamp != kStamp) {
        // One flipped bit of the stamp must not make the mixture go.
        FAISS_THROW_IF_NOT_FMT(
                std::popcount(stamp ^ kStamp) > 8,
                "read_index: \"%s\" is corrupted (stamp)",
                reader->name.c_str());
        return 0;
    }
    FAISS_THROW_IF_NOT_FMT(
            length >= kStampEnd,
            "read_index: \"%s\" is corrupted (length)",
            reader->name.c_str());
    return length;
}

/// As many of the bytes as there are.
std::vector<uint8_t> read_head(faiss::IOReader* reader) {
    std::vector<uint8_t> head(kStampEnd);
    head.resize((*reader)(head.data(), 1, head.size()));
    return head;
}

std::unique_ptr<faiss::Index> finish(
        std::unique_ptr<faiss::Index> index, const Trailer& trailer) {
    faiss::Index* root = index.release();
    try {
        deserialize_gmm(&root, trailer.payload);
    } catch (...) {
        delete root;
        throw;
    }
    return std::unique_ptr<faiss::Index>(root);
}

/// Checks the whole file before FAISS believes a word of it.
std::unique_ptr<faiss::Index> read_seekable(
        faiss::IOReader* reader, const Seekable& place, int io_flags) {
    const size_t begin = place.tell();
    const std::vector<uint8_t> head = read_head(reader);
    const uint64_t stock_length = stamped_length(head, reader);
    place.seek(begin);
    if (stock_length == 0) {
        return read_stock(reader, io_flags);
    }
    FAISS_THROW_IF_NOT_FMT(
            stock_length < size_t(INT64_MAX) - begin,
            "read_index: \"%s\" is corrupted (length)",
            reader->name.c_str());
    place.seek(begin + stock_length);
    const Trailer trailer = read_trailer(reader, stock_length);
    const size_t end = place.tell();
    place.seek(begin);
    // Who maps a file does not want all of it read.
    if ((io_flags & faiss::IO_FLAG_SKIP_IVF_DATA) == 0) {
        Checksum checksum;
        std::vector<uint8_t> block(std::min<size_t>(kBlock, stock_length));
        while (checksum.length < stock_length) {
            const size_t size = std::min<uint64_t>(
                    block.size(), stock_length - checksum.length);
            const size_t got = (*reader)(block.data(), 1, size);
            checksum.add(block.data(), got);
            if (got < size) {
                break;
            }
        }
        check_stock(trailer, checksum, reader);
        place.seek(begin);
    }
    auto index = read_stock(reader, io_flags);
    FAISS_THROW_IF_NOT_FMT(
            place.tell() == begin + stock_length,
            "read_index: \"%s\" is corrupted (length)",
            reader->name.c_str());
    index = finish(std::move(index), trailer);
    place.seek(end);
    return index;
}

std::unique_ptr<faiss::Index> read_stream(
        faiss::IOReader* reader, int io_flags) {
    std::vector<uint8_t> head = read_head(reader);
    const uint64_t stock_length = stamped_length(head, reader);
    BoundedReader bounded(
            reader,
            std::move(head),
            stock_length > 0 ? stock_length : UINT64_MAX);
    auto index = read_stock(&bounded, io_flags);
    if (stock_length == 0) {
        return index;
    }
    const Trailer trailer = read_trailer(reader, stock_length);
    check_stock(trailer, bounded.checksum, reader);
    return finish(std::move(index), trailer);
}

} // namespace

void write_index(const faiss::Index* index, faiss::IOWriter* writer) {
    FAISS_THROW_IF_NOT_MSG(index && writer, "write_index: no index or writer");
    const std::vector<uint8_t> payload = serialize_gmm(index);
    if (payload.empty()) {
        faiss::write_index(index, writer);
        return;
    }
    CountingWriter counter;
    faiss::write_index(index, &counter);
    const auto words = stamp_of(counter.head);
    FAISS_THROW_IF_NOT_MSG(
            counter.length >= kStampEnd && words[0] == kFaissDummy &&
                    words[1] == kFaissDummy,
            "write_index: this FAISS writes an index header that there is no "
            "room in");
    StampingWriter stamping(writer, counter.length);
    faiss::write_index(index, &stamping);

    TrailerHead head;
    head.stock_length = counter.length;
    head.stock_checksum = stamping.checksum.value();
    head.payload_length = payload.size();
    Checksum checksum;
    checksum.add(&head, sizeof(head));
    checksum.add(payload.data(), payload.size());
    const uint64_t value = checksum.value();
    write_all(writer, &head, sizeof(head));
    write_all(writer, payload.data(), payload.size());
    write_all(writer, &value, sizeof(value));
}

void write_index(const faiss::Index* index, const char* filename) {
    // before a file of that name is overwritten
    FAISS_THROW_IF_NOT_MSG(
            index && filename, "write_index: no index or file name");
    faiss::FileIOWriter writer(filename);
    faiss_ext::write_index(index, &writer);
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
    return faiss_ext::read_index(&reader, io_flags);
}

} // namespace faiss_ext
