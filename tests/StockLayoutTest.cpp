// Files whose checksums are right and whose stock part lies: FAISS must not get
// to see it.
#include "faiss_ext/io/stock_layout.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/io/format.h"

namespace faiss_ext {
namespace {

constexpr size_t kD = 8;

struct File {
    Bytes stock, payload;
};

File file_of(const faiss::Index& index) {
    const Bytes all = written(index);
    uint64_t length;
    memcpy(&length, &all[kStampBegin + 8], sizeof(length));
    return {Bytes(all.begin(), all.begin() + length),
            Bytes(all.begin() + length + sizeof(TrailerHead), all.end() - 8)};
}

/// As a liar would write it.
Bytes bytes_of(File file) {
    const uint64_t words[2] = {kStamp, file.stock.size()};
    memcpy(&file.stock[kStampBegin], words, sizeof(words));
    Checksum stock, trailer;
    stock.add(file.stock.data(), file.stock.size());
    TrailerHead head;
    head.stock_length = file.stock.size();
    head.stock_checksum = stock.value();
    head.payload_length = file.payload.size();
    trailer.add(&head, sizeof(head));
    trailer.add(file.payload.data(), file.payload.size());
    const uint64_t value = trailer.value();
    Bytes out = file.stock;
    auto append = [&](const void* data, size_t size) {
        auto begin = static_cast<const uint8_t*>(data);
        out.insert(out.end(), begin, begin + size);
    };
    append(&head, sizeof(head));
    append(file.payload.data(), file.payload.size());
    append(&value, sizeof(value));
    return out;
}

/// What reading says; nothing if it reads.
std::string answer(faiss::IOReader& reader) {
    try {
        delete faiss_ext::read_index(&reader);
    } catch (const faiss::FaissException& e) {
        return e.what();
    }
    return "";
}

/// The same of a file; a pipe's answer is the same.
std::string answer(const File& file) {
    faiss::VectorIOReader vector;
    Pipe pipe(bytes_of(file));
    vector.data = pipe.data;
    const std::string of_vector = answer(vector), of_pipe = answer(pipe);
    EXPECT_EQ(of_vector.empty(), of_pipe.empty()) << of_pipe;
    return of_vector;
}

void expect_refused(const File& file, const char* why) {
    const std::string message = answer(file);
    EXPECT_NE(message.find(why), std::string::npos)
            << "\"" << message << "\", expected \"" << why << "\"";
}

std::unique_ptr<faiss::Index> make(const char* description, size_t n = 60) {
    const Vectors x = uniform(400, kD, 3);
    std::unique_ptr<faiss::Index> out(index_factory(kD, description));
    out->train(x.n, x.x.data());
    if (n > 0) {
        out->add(n, x.x.data());
    }
    return out;
}

/// The place behind the only occurrence of some numbers.
template <class... Numbers>
size_t behind(const Bytes& bytes, Numbers... numbers) {
    Bytes wanted;
    const auto append = [&](auto number) {
        auto begin = reinterpret_cast<const uint8_t*>(&number);
        wanted.insert(wanted.end(), begin, begin + sizeof(number));
    };
    (append(numbers), ...);
    const auto at = std::search(
            bytes.begin(), bytes.end(), wanted.begin(), wanted.end());
    EXPECT_NE(at, bytes.end());
    return size_t(at - bytes.begin()) + wanted.size();
}

template <class T>
File with(File file, size_t at, T value) {
    memcpy(&file.stock[at], &value, sizeof(value));
    return file;
}

constexpr auto u64 = [](auto value) { return uint64_t(value); };

TEST(StockLayout, WhatIsWrittenIsRead) {
    for (const char* description :
         {"GMM8x4,Flat",
          "GMM8x4,PQ2x4",
          "GMM8x4,SQ8",
          "GMM8,PQ4x4fs",
          "GMM16x4_HNSW4,Flat",
          "PCA4,GMM8x4,SQfp16",
          "PCAW4,GMM8x4,Flat",
          "PCAR4,L2norm,GMM8x4,Flat",
          "ITQ4,GMM8x4,Flat",
          "RR4,GMM8x4,Flat",
          "Pad16,GMM8x4,Flat",
          "OPQ2_4,GMM8x4,PQ2x4,RFlat",
          "GMM8x4,SQ4,Refine(SQ8)"}) {
        for (size_t n : {0, 60}) {
            SCOPED_TRACE(description);
            EXPECT_EQ(answer(file_of(*make(description, n))), "") << n;
        }
    }
    std::unique_ptr<faiss::Index> untrained(index_factory(kD, "GMM8,PQ2x4"));
    EXPECT_EQ(answer(file_of(*untrained)), "");
    faiss::IndexIDMap2 map(index_factory(kD, "GMM8,Flat"));
    map.own_fields = true;
    EXPECT_EQ(answer(file_of(map)), "");
}

TEST(StockLayout, ProductQuantizersThatDivideByZero) {
    for (const char* description : {"GMM8x4,PQ2x4", "GMM8,PQ2x4fs"}) {
        SCOPED_TRACE(description);
        const File file = file_of(*make(description));
        const size_t end = behind(file.stock, u64(kD), u64(2), u64(4));
        expect_refused(with(file, end - 16, u64(0)), "M of the product");
        expect_refused(with(file, end - 16, u64(3)), "M of the product");
        expect_refused(with(file, end - 8, u64(0)), "nbits of the product");
        expect_refused(with(file, end - 8, u64(64)), "nbits of the product");
        expect_refused(with(file, end - 24, u64(0)), "d of the product");
    }
    const File file = file_of(*make("GMM8,PQ2x4fs"));
    const size_t end = behind(file.stock, int32_t(32), u64(2)) - 8;
    expect_refused(with(file, end - 4, int32_t(0)), "blocks of the fast scan");
    expect_refused(with(file, end, u64(1) << 40), "M2 of the fast scan");
}

/// FAISS would make tables of all of these lists.
TEST(StockLayout, FastScanProbesListsThatThereAre) {
    auto index = make("GMM8,PQ2x4fs");
    dynamic_cast<faiss::IndexIVF&>(*index).nprobe = size_t(1) << 40;
    std::unique_ptr<faiss::Index> back(read_bytes(written(*index)));
    EXPECT_EQ(dynamic_cast<faiss::IndexIVF&>(*back).nprobe, 8u);
}

TEST(StockLayout, LengthsThatNoFileHas) {
    const File file = file_of(*make("GMM8x4,Flat"));
    const size_t means = behind(file.stock, u64(8 * kD)) - 8;
    expect_refused(with(file, means, u64(1) << 40), "a length");
    expect_refused(with(file, means, u64(-1)), "a length");
    expect_refused(with(file, means, u64(8 * kD - 1)), "number of vectors");

    const uint32_t full = faiss::fourcc("full");
    const size_t sizes = behind(file.stock, full);
    expect_refused(with(file, sizes, u64(7)), "list sizes");
    expect_refused(with(file, sizes + 8, u64(1) << 61), "list sizes");
    expect_refused(with(file, sizes - 4, uint32_t(0)), "list sizes");
    expect_refused(with(file, sizes - 12, u64(-8)), "code size");
    expect_refused(with(file, sizes - 20, u64(1) << 50), "number of lists");
    const size_t nlist = behind(file.stock, u64(8), u64(1)) - 16;
    expect_refused(with(file, nlist, u64(1) << 50), "nlist");
    expect_refused(with(file, 4, int32_t(-8)), "(d)");
}

TEST(StockLayout, TypesThatNoIndexOfOursIsMadeOf) {
    const File file = file_of(*make("GMM8x4,Flat"));
    for (const char* other : {"IwPR", "IxLa", "IVLf", "null", "Imiq"}) {
        expect_refused(with(file, 0, faiss::fourcc(other)), other);
    }
    const size_t lists = behind(file.stock, faiss::fourcc("ilar")) - 4;
    expect_refused(with(file, lists, faiss::fourcc("ilp2")), "ilp2");
}

TEST(StockLayout, NestingThatExhaustsTheStack) {
    for (int levels : {3, 10000}) {
        File file = file_of(*make("GMM8x4,Flat"));
        Bytes around(file.stock.begin(), file.stock.begin() + 37);
        const uint32_t type = faiss::fourcc("IxPT");
        memcpy(around.data(), &type, sizeof(type));
        around.insert(around.end(), 4, 0); // no transforms
        Bytes nested;
        for (int i = 0; i < levels; i++) {
            nested.insert(nested.end(), around.begin(), around.end());
        }
        file.stock.insert(file.stock.begin(), nested.begin(), nested.end());
        if (levels < 10) {
            EXPECT_EQ(answer(file), "");
        } else {
            expect_refused(file, "nesting");
        }
    }
}

TEST(StockLayout, ListsOnDiskThatAreNotThere) {
    const TemporaryFolder folder;
    const std::string lists = folder.file("lists");
    auto index = make("GMM8x4,Flat");
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    auto on_disk = std::make_unique<faiss::OnDiskInvertedLists>(
            ivf.nlist, ivf.code_size, lists.c_str());
    faiss::InvertedLists& to = *on_disk;
    to.merge_from(ivf.invlists, 0);
    faiss::OnDiskInvertedLists& disk = *on_disk;
    ivf.replace_invlists(on_disk.release(), true);
    const File file = file_of(*index);
    EXPECT_EQ(answer(file), "");

    // size, capacity and offset of the last list, which has entries
    size_t list = ivf.nlist - 1;
    while (disk.lists[list].size == 0) {
        list--;
    }
    const auto& l = disk.lists[list];
    const size_t at =
            behind(file.stock, u64(l.size), u64(l.capacity), u64(l.offset));
    expect_refused(with(file, at - 8, u64(1) << 40), "a list of");
    expect_refused(with(file, at - 24, u64(1) << 40), "a list of");
    expect_refused(with(file, at - 16, u64(-1)), "a list of");

    std::filesystem::resize_file(lists, disk.totsize - 1);
    expect_refused(file, "where the inverted lists are");
}

} // namespace
} // namespace faiss_ext
