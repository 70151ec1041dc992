#include "faiss_ext/io/trailer.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>

#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include "TestData.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

// What a checksum lets through: payloads made to be wrong.

std::unique_ptr<faiss::Index> filled(const char* description) {
    const Vectors base = sift_base(1500);
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(128, description));
    train_quickly(index.get());
    index->train(base.n, base.x.data());
    index->add(base.n, base.x.data());
    return index;
}

/// The stock index in the file of a GMM index.
std::unique_ptr<faiss::Index> stock_of(const faiss::Index& index) {
    faiss::VectorIOWriter writer;
    faiss::write_index(&index, &writer);
    faiss::VectorIOReader reader;
    reader.data = writer.data;
    return std::unique_ptr<faiss::Index>(faiss::read_index(&reader));
}

/// Whether the payload was taken; fails unless it throws a FaissException.
bool taken(const faiss::Index& index, const std::vector<uint8_t>& payload) {
    faiss::Index* root = stock_of(index).release();
    bool ok = true;
    try {
        deserialize_gmm(&root, payload);
    } catch (const faiss::FaissException&) {
        ok = false;
    }
    delete root;
    return ok;
}

TEST(Trailer, RoundTrip) {
    for (const char* description :
         {"GMM8x3,Flat", "IDMap,GMM8,SQ8", "GMM8,PQ32x4fs"}) {
        const std::string plain = description;
        auto index =
                filled(plain.starts_with("IDMap") ? "GMM8,SQ8" : description);
        const auto payload = serialize_gmm(index.get());
        faiss::Index* root = stock_of(*index).release();
        deserialize_gmm(&root, payload);
        EXPECT_EQ(serialize_gmm(root), payload);
        delete root;
    }
    std::unique_ptr<faiss::Index> stock(faiss_ext::index_factory(128, "Flat"));
    EXPECT_TRUE(serialize_gmm(stock.get()).empty());
}

TEST(Trailer, CutAnywhere) {
    for (const char* description : {"GMM8x3,Flat", "GMM8,PQ32x4fs"}) {
        auto index = filled(description);
        const auto payload = serialize_gmm(index.get());
        EXPECT_TRUE(taken(*index, payload));
        for (size_t n = 0; n < payload.size(); n += 1 + n / 20) {
            EXPECT_FALSE(taken(*index, {payload.begin(), payload.begin() + n}));
        }
        auto longer = payload;
        longer.push_back(0);
        EXPECT_FALSE(taken(*index, longer));
    }
}

TEST(Trailer, HugeNumbersTakeNoMemory) {
    for (const char* description : {"GMM8x3,Flat", "GMM8,PQ32x4fs"}) {
        auto index = filled(description);
        const auto payload = serialize_gmm(index.get());
        // 2^62 wherever a length could stand: taken, where it is a number
        // that means nothing for memory, or refused.
        for (size_t at = 0; at + 8 <= payload.size(); at += 1 + at / 30) {
            auto wrong = payload;
            const uint64_t huge = uint64_t(1) << 62;
            memcpy(wrong.data() + at, &huge, 8);
            EXPECT_NO_THROW(taken(*index, wrong)) << at;
        }
    }
}

TEST(Trailer, WrongPlaces) {
    auto index = filled("GMM8x3,Flat");
    IVFGMM* gmm = extract_gmm(index.get());
    ASSERT_FALSE(gmm->cells.empty());
    auto refused = [&](auto change) {
        const IVFGMM& g = *gmm;
        const PairCells cells = g.cells;
        const auto variances = g.variances;
        change(*gmm);
        const auto payload = serialize_gmm(index.get());
        gmm->cells = cells;
        gmm->variances = variances;
        gmm->probe_order = ProbeOrder::calibrated;
        return !taken(*index, payload);
    };
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.partner[3] = 8; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.partner[3] = -1; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.offsets[1] = 1u << 31; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.tail[2].push_back(0); }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.a[0] = NAN; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.variance[5] = HUGE_VALF; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.variances[0] = 0; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.variances.pop_back(); }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.probe_order = ProbeOrder(9); }));
    EXPECT_FALSE(refused([](IVFGMM&) {}));
    // The trailer of another kind of index.
    auto other = filled("GMM8,PQ32x4fs");
    EXPECT_FALSE(taken(*other, serialize_gmm(index.get())));
    EXPECT_FALSE(taken(*index, serialize_gmm(filled("GMM9,Flat").get())));
}

} // namespace
} // namespace faiss_ext
