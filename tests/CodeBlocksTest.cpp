// Codes in memory of their own, and where they lie in a file that is mapped.
#include "faiss_ext/codes/CodeBlocks.h"

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <faiss/impl/IDSelector.h>
#include <faiss/index_io.h>

#include "IvfTestTools.h"
#include "ProcessMemory.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

/// 0, 1, 2, ... somewhere else.
std::shared_ptr<uint8_t> counted(size_t n) {
    std::shared_ptr<uint8_t> out(
            new uint8_t[n], [](const uint8_t* p) { delete[] p; });
    std::iota(out.get(), out.get() + n, uint8_t(0));
    return out;
}

TEST(CodeBlocks, GrowIntoMemoryOfTheirOwn) {
    const auto there = counted(100);
    CodeBlocks blocks;
    EXPECT_TRUE(blocks.empty());
    blocks.map(there, 100);
    EXPECT_EQ(blocks.data(), there.get());
    blocks.resize(90);
    EXPECT_EQ(blocks.data(), there.get());
    EXPECT_EQ(blocks.size(), 90u);
    blocks.resize(120);
    EXPECT_NE(blocks.data(), there.get());
    EXPECT_EQ(there.use_count(), 1);
    EXPECT_EQ(reinterpret_cast<size_t>(blocks.data()) % 64, 0u);
    for (size_t i = 0; i < 120; i++) {
        EXPECT_EQ(blocks.data()[i], i < 90 ? i : 0) << i;
    }
    blocks.data()[3] = 77;
    EXPECT_EQ(there.get()[3], 3);
    blocks.resize(5);
    EXPECT_EQ(blocks.size(), 5u);
}

TEST(CodeBlocks, CopiesHaveTheirOwn) {
    const auto there = counted(64);
    CodeBlocks blocks;
    blocks.map(there, 64);
    CodeBlocks copy = blocks;
    EXPECT_TRUE(copy == blocks);
    copy.data()[1] = 9;
    EXPECT_EQ(blocks.data()[1], 1);
    EXPECT_FALSE(copy == blocks);
    const CodeBlocks moved = std::move(blocks);
    EXPECT_EQ(moved.data(), there.get());
    copy = moved;
    EXPECT_TRUE(copy == moved);
    EXPECT_NE(copy.data(), moved.data());
    EXPECT_EQ(there.use_count(), 2);
}

std::unique_ptr<faiss::Index> read(const std::string& path, int flags = 0) {
    return std::unique_ptr<faiss::Index>(read_index(path.c_str(), flags));
}

std::string content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::unique_ptr<faiss::Index> make(const char* description, size_t n) {
    const Vectors base = sift_base(n);
    std::unique_ptr<faiss::Index> index(
            index_factory(base.d, description, faiss::METRIC_L2));
    index->train(2000, base.x.data());
    index->add(n, base.x.data());
    return index;
}

/// Bytes of codes in memory of their own, and in a file.
std::pair<size_t, size_t> code_bytes(const faiss::Index& index) {
    size_t own = 0, mapped = 0;
    for (const CodeBlocks& b : extract_gmm(&index)->cells.codes.blocks) {
        (is_in_a_file(b.data()) ? mapped : own) += b.size();
        EXPECT_EQ(reinterpret_cast<size_t>(b.data()) % 32, 0u);
    }
    return {own, mapped};
}

class MappedIndex : public testing::TestWithParam<const char*> {};

TEST_P(MappedIndex, HasItsCodesInTheFile) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const auto index = make(GetParam(), 6000);
    const auto [own, none] = code_bytes(*index);
    EXPECT_GT(own, 0u);
    faiss_ext::write_index(index.get(), path.c_str());
    const auto mapped = read(path, faiss::IO_FLAG_MMAP);
    const auto [copied, there] = code_bytes(*mapped);
    EXPECT_EQ(copied, 0u);
    EXPECT_GT(there, own / 2);
    const Vectors q = sift_queries(100);
    for (float target : {0.f, 0.5f, 0.9f}) {
        SearchParametersIVFGMM params;
        params.nprobe = 4;
        params.target_recall = target;
        const auto& a = dynamic_cast<faiss::Index&>(*extract_gmm(index.get()));
        const auto& b = dynamic_cast<faiss::Index&>(*extract_gmm(mapped.get()));
        EXPECT_EQ(find(b, q, 10, &params), find(a, q, 10, &params)) << target;
    }
    EXPECT_EQ(code_bytes(*mapped).first, 0u);
}

INSTANTIATE_TEST_SUITE_P(
        Codecs,
        MappedIndex,
        testing::Values(
                "GMM32,Flat",
                "GMM32,SQ8",
                "GMM32_HNSW16,Flat",
                "GMM32,RaBitQ",
                "GMM32,RaBitQ4"));

TEST(MappedIndex, ListsThatAreReadOnlyStayAsTheyAre) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    faiss_ext::write_index(make("GMM32,Flat", 3000).get(), path.c_str());
    const std::string before = content(path);
    const auto mapped = read(path, faiss::IO_FLAG_MMAP);
    const Vectors more = sift_base(50);
    EXPECT_THROW(mapped->add(more.n, more.x.data()), faiss::FaissException);
    const std::vector<idx_t> ids = {3, 5};
    EXPECT_THROW(
            mapped->remove_ids(faiss::IDSelectorBatch(ids.size(), ids.data())),
            faiss::FaissException);
    EXPECT_EQ(code_bytes(*mapped).first, 0u);
    EXPECT_EQ(content(path), before);
}

TEST(MappedIndex, OfCodesAloneChangesAndTheFileDoesNot) {
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    faiss_ext::write_index(make("GMM32,RaBitQ4", 5000).get(), path.c_str());
    const std::string before = content(path);
    const auto mapped = read(path, faiss::IO_FLAG_MMAP), held = read(path);
    const Vectors q = sift_queries(50), more = sift_base(300);
    std::vector<idx_t> ids(700);
    std::iota(ids.begin(), ids.end(), idx_t(100));
    for (auto* index : {mapped.get(), held.get()}) {
        dynamic_cast<faiss::IndexIVF&>(*index).nprobe = 8;
        index->remove_ids(faiss::IDSelectorBatch(ids.size(), ids.data()));
    }
    EXPECT_EQ(code_bytes(*mapped).first, 0u); // pages of the file's mapping
    EXPECT_EQ(find(*mapped, q, 10), find(*held, q, 10));
    for (auto* index : {mapped.get(), held.get()}) {
        index->add(more.n, more.x.data());
    }
    EXPECT_EQ(find(*mapped, q, 10), find(*held, q, 10));
    EXPECT_EQ(find(*clone_index(mapped.get()), q, 10), find(*held, q, 10));
    EXPECT_EQ(content(path), before);
    EXPECT_EQ(read(path)->ntotal, 5000);
    // Over the file that it is mapped from.
    faiss_ext::write_index(mapped.get(), path.c_str());
    EXPECT_EQ(find(*mapped, q, 10), find(*held, q, 10));
    EXPECT_EQ(find(*read(path), q, 10).dis, find(*held, q, 10).dis);
}

TEST(MappedIndex, TakesNoMemoryForItsCodes) {
    if (kSanitized) {
        GTEST_SKIP() << "memory is counted";
    }
    const TemporaryFolder folder;
    const std::string path = folder.file("index");
    const Vectors q = sift_queries(200);
    size_t codes = 0;
    {
        const auto index = make("GMM32,RaBitQ4", 3000);
        const Vectors base = sift_base(20000);
        auto& gmm = *extract_gmm(index.get());
        gmm.calibrate_on_add = false;
        for (int i = 0; i < 10; i++) {
            index->add(base.n, base.x.data());
        }
        for (const CodeBlocks& b : gmm.cells.codes.blocks) {
            codes += b.size();
        }
        faiss_ext::write_index(index.get(), path.c_str());
    }
    ASSERT_GT(codes, size_t(12) << 20);
    const auto grown = [&](int flags) {
        const size_t before = anonymous_bytes();
        const auto index = read(path, flags);
        dynamic_cast<faiss::IndexIVF&>(*index).nprobe = 16;
        find(*index, q, 10);
        return double(anonymous_bytes()) - double(before);
    };
    const double held = grown(0), mapped = grown(faiss::IO_FLAG_MMAP);
    EXPECT_GT(held, 0.8 * double(codes));
    EXPECT_LT(mapped, 0.3 * double(codes));
    EXPECT_LT(mapped, held - 0.7 * double(codes));
}

} // namespace
} // namespace faiss_ext
