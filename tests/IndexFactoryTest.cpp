#include "faiss_ext/index_factory.h"

#include <memory>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/VectorTransform.h>

#include "TestData.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr int kD = 128;

std::unique_ptr<faiss::Index> make(
        const std::string& description,
        faiss::MetricType metric = faiss::METRIC_L2,
        int d = kD) {
    return std::unique_ptr<faiss::Index>(
            faiss_ext::index_factory(d, description.c_str(), metric));
}

template <class T>
T& as(faiss::Index* index) {
    auto out = dynamic_cast<T*>(index);
    if (!out) {
        throw std::runtime_error("another type");
    }
    return *out;
}

TEST(IndexFactory, MakesTheThreeTypes) {
    auto flat = make("GMM100,Flat");
    auto& f = as<IndexIVFFlatGMM>(flat.get());
    EXPECT_EQ(f.nlist, 100u);
    EXPECT_EQ(f.d, kD);
    EXPECT_EQ(f.covariance, gmm::Covariance::isotropic);
    EXPECT_EQ(f.cells_per_list, 0u);
    EXPECT_FALSE(f.is_trained);
    EXPECT_TRUE(f.own_fields);
    EXPECT_NE(f.invlists, nullptr);

    auto pq = make("GMM64x8_Diag,PQ16x6");
    auto& p = as<IndexIVFPQGMM>(pq.get());
    EXPECT_EQ(p.pq.M, 16u);
    EXPECT_EQ(p.pq.nbits, 6u);
    EXPECT_EQ(p.cells_per_list, 8u);
    EXPECT_EQ(p.covariance, gmm::Covariance::diagonal);

    auto sq = make("GMM2k_Tied,SQ8", faiss::METRIC_INNER_PRODUCT);
    auto& s = as<IndexIVFScalarQuantizerGMM>(sq.get());
    EXPECT_EQ(s.nlist, 2048u);
    EXPECT_EQ(s.metric_type, faiss::METRIC_INNER_PRODUCT);
    EXPECT_EQ(s.sq.qtype, faiss::ScalarQuantizer::QT_8bit);
    EXPECT_EQ(s.covariance, gmm::Covariance::tied_spherical);
    EXPECT_TRUE(s.cp.spherical);
}

TEST(IndexFactory, FindsItsPlaceInWrappers) {
    auto opq = make("OPQ16_64,GMM32,PQ16,RFlat");
    auto& refine = as<faiss::IndexRefine>(opq.get());
    auto& pre = as<faiss::IndexPreTransform>(refine.base_index);
    EXPECT_EQ(as<IndexIVFPQGMM>(pre.index).d, 64);
    EXPECT_EQ(extract_gmm(opq.get()), &as<IVFGMM>(pre.index));

    auto fine = make("PCA64,GMM32,SQ8,Refine(SQfp16)");
    EXPECT_NE(extract_gmm(fine.get()), nullptr);
}

TEST(IndexFactory, OtherCodesKeepTheirClass) {
    auto index = make("GMM32_Tied,PQ32x4fs");
    auto& fs = as<faiss::IndexIVFPQFastScan>(index.get());
    auto& quantizer = as<IndexGMM>(fs.quantizer);
    EXPECT_EQ(quantizer.nlist, 32u);
    EXPECT_EQ(quantizer.covariance, gmm::Covariance::tied_spherical);
    EXPECT_EQ(fs.quantizer_trains_alone, 1);
    EXPECT_TRUE(fs.own_fields);
    EXPECT_EQ(extract_gmm(index.get()), nullptr);
    EXPECT_FAISS_ERROR(make("GMM32x8,PQ32x4fs"), "\"GMM32x8,PQ32x4fs\"");
}

TEST(IndexFactory, GraphsHaveTwoNeighboursAtLeast) {
    EXPECT_FAISS_ERROR(make("GMM32_HNSW1,Flat"), "M = 1");
    EXPECT_FAISS_ERROR(make("GMM32_HNSW0,Flat"), "\"0\"");
    EXPECT_FAISS_ERROR(make("GMM32_HNSW4096,Flat"), "2 to 1024");
    EXPECT_NE(extract_gmm(make("GMM32_HNSW,Flat").get()), nullptr);
    EXPECT_NE(extract_gmm(make("GMM32_HNSW2,Flat").get()), nullptr);
}

TEST(IndexFactory, WhatHasNoGMMIsFaiss) {
    as<faiss::IndexFlat>(make("Flat").get());
    auto ivf = make("PCA32,IVF16,Flat");
    EXPECT_EQ(extract_gmm(ivf.get()), nullptr);
    EXPECT_THROW(make("IVF16,Nonsense"), faiss::FaissException);
    EXPECT_THROW(make("GMM16,PQ0"), faiss::FaissException);
    EXPECT_THROW(make("GMM16,PQ00x4fs"), faiss::FaissException);
    EXPECT_THROW(make("OPQ0,GMM16,PQ8"), faiss::FaissException);
}

TEST(IndexFactory, WhatItMakesWorks) {
    const Vectors base = sift_base(2000), queries = sift_queries(50);
    faiss::IndexFlatL2 exact(kD);
    exact.add(base.n, base.x.data());
    std::vector<float> dis(queries.n);
    std::vector<idx_t> truth(queries.n), found(queries.n);
    exact.search(queries.n, queries.x.data(), 1, dis.data(), truth.data());
    for (const char* description :
         {"GMM16,Flat",
          "GMM16x4,Flat",
          "GMM16,SQ8",
          "IDMap,GMM16,Flat",
          "PCAR64,GMM16_Tied,Flat,RFlat",
          "GMM16,PQ32x4fs,RFlat",
          "GMM16_Diag,PQ32x4,RFlat"}) {
        auto index = make(description);
        train_quickly(index.get());
        index->train(base.n, base.x.data());
        if (std::string(description).starts_with("IDMap")) {
            std::vector<idx_t> ids(base.n);
            for (size_t i = 0; i < base.n; i++) {
                ids[i] = i;
            }
            index->add_with_ids(base.n, base.x.data(), ids.data());
        } else {
            index->add(base.n, base.x.data());
        }
        if (auto refine = dynamic_cast<faiss::IndexRefine*>(index.get())) {
            refine->k_factor = 20;
        }
        faiss::Index* inner = index.get();
        if (auto gmm = extract_gmm(inner)) {
            dynamic_cast<faiss::IndexIVF*>(gmm)->nprobe = 8;
        } else {
            auto refine = dynamic_cast<faiss::IndexRefine*>(inner);
            as<faiss::IndexIVF>(refine->base_index).nprobe = 8;
        }
        index->search(queries.n, queries.x.data(), 1, dis.data(), found.data());
        size_t hits = 0;
        for (size_t i = 0; i < queries.n; i++) {
            hits += found[i] == truth[i];
        }
        EXPECT_GE(hits, queries.n * 8 / 10) << description;
    }
}

TEST(IndexFactory, ReverseGivesTheStringBack) {
    for (const char* description :
         {"GMM100,Flat",
          "GMM64x8_Diag,PQ16x6",
          "GMM64,PQ16",
          "GMM2048_Tied,SQ8",
          "GMM16,SQ4",
          "GMM16,SQ6",
          "GMM16,SQfp16",
          "GMM32_Tied,PQ32x4fs",
          "GMM32,PQ32x4fsr_64",
          "OPQ16_64,GMM32,PQ16,RFlat",
          "PCA64,GMM32,SQ8",
          "PCAR64,GMM32,SQ8",
          "PCAW64,GMM32,SQ8",
          "RR64,L2norm,GMM32,SQ8",
          "ITQ64,GMM32,Flat",
          "GMM32,PQ16,RFlat",
          "GMM32,PQ8np",
          "GMM32,PQ16x6np",
          "IVF32,FlatDedup",
          "IDMap2,IVF32,Flat",
          "GMM32,PQ16,Refine(SQ8)",
          "IVF100,Flat",
          "Flat"}) {
        EXPECT_EQ(
                faiss_ext::reverse_index_factory(make(description).get()),
                description);
    }
    IndexGMM alone(kD, 5);
    EXPECT_EQ(faiss_ext::reverse_index_factory(&alone), "");
    EXPECT_FAISS_ERROR(faiss_ext::reverse_index_factory(nullptr), "no index");
}

// Of vectors with the ids that they were given, whatever was removed before.
TEST(IndexFactory, IdsOfMapsOutliveRemovals) {
    const Vectors base = sift_base(2000);
    std::vector<idx_t> ids(base.n);
    for (size_t i = 0; i < base.n; i++) {
        ids[i] = 10 * i + 7;
    }
    for (const char* description :
         {"IDMap,GMM16,Flat",
          "IDMap2,GMM16,Flat",
          "IDMap2,L2norm,GMM16,Flat",
          "GMM16,Flat,IDMap",
          "IDMap,IDMap2,GMM16,Flat"}) {
        auto index = make(description);
        index->train(base.n, base.x.data());
        index->add_with_ids(base.n, base.x.data(), ids.data());
        for (size_t gone : {0, 1, 5}) {
            const faiss::IDSelectorBatch one(1, &ids[gone]);
            EXPECT_EQ(index->remove_ids(one), 1u) << description;
        }
        IVFGMM* gmm = extract_gmm(index.get());
        dynamic_cast<faiss::IndexIVF*>(gmm)->nprobe = 16;
        for (size_t row = 6; row < base.n; row += 97) {
            float distance;
            idx_t id;
            index->search(1, base.row(row), 1, &distance, &id);
            EXPECT_EQ(id, ids[row]) << description;
            if (std::string(description).starts_with("IDMap2,G")) {
                std::vector<float> x(kD);
                index->reconstruct(ids[row], x.data());
                EXPECT_EQ(x[1], base.row(row)[1]);
            }
        }
        EXPECT_EQ(index->ntotal, idx_t(base.n) - 3);
    }
}

// FAISS 1.7.3 makes a map within what refines, which takes no ids.
TEST(IndexFactory, WhatRefinesTakesIdsByAMapInFront) {
    const Vectors base = sift_base(1000);
    std::vector<idx_t> ids(base.n);
    for (size_t i = 0; i < base.n; i++) {
        ids[i] = 10 * i + 7;
    }
    for (const char* description :
         {"IDMap,GMM4,SQ4,RFlat",
          "IDMap2,PCA16,GMM4,Flat,RFlat",
          "IDMap,GMM4,SQ4,Refine(SQ8)"}) {
        auto index = make(description);
        as<faiss::IndexIDMap>(index.get());
        // An IndexRefine adds without ids, and reconstructs by itself.
        EXPECT_TRUE(dynamic_cast<const faiss::IndexIVF&>(*unwrap(index.get()))
                            .direct_map.no());
        index->train(base.n, base.x.data());
        index->add_with_ids(base.n, base.x.data(), ids.data());
        EXPECT_NO_THROW(clone_index(index.get())) << description;
        extract_gmm(index.get())->target_recall = 0.9;
        float distance;
        idx_t id;
        index->search(1, base.row(123), 1, &distance, &id);
        EXPECT_EQ(id, ids[123]) << description;
    }
}

TEST(IndexFactory, MoreListsThanMemoryAreRefusedAtOnce) {
    for (const char* description :
         {"GMM1000000000,Flat", "GMM16777217,Flat", "GMM17M,Flat"}) {
        EXPECT_FAISS_ERROR(make(description), "expected 1 to 16777216");
    }
}

TEST(IndexFactory, UnknownTokensAreNamed) {
    for (const auto& wrong :
         std::initializer_list<std::pair<const char*, const char*>>{
                 {"GMM,Flat", "\"GMM\""},
                 {"GMM0,Flat", "\"0\""},
                 {"GMM16x0,Flat", "\"0\""},
                 {"GMM16x,Flat", "\"GMM16x\""},
                 {"GMM99999999999999999999,Flat", "99999999999999999999"},
                 {"GMM-5,Flat", "\"GMM-5\""},
                 {"GMM16_Full,Flat", "\"GMM16_Full\""},
                 {"GMM16_Diagx4,Flat", "\"GMM16_Diagx4\""},
                 {"GMM16", "\"GMM16\" has no code"},
                 {"GMM16,Foo", "Foo"},
                 {"GMM16,", "GMM16"},
                 {"Bar32,GMM16,Flat", "Bar32"},
                 {"GMM16,GMM32,Flat", "\"GMM32\""},
                 {"IVF16(GMM4),Flat", "parentheses"},
                 {"GMM16,PQ7",
                  "\"GMM16,PQ7\" of d = 128 cannot be made: The d"},
                 {"IVF16,GMM16,Flat",
                  "\"IVF16\" beside \"GMM16\" in \"IVF16,GMM"},
                 {"GMM16,IVF8,Flat", "\"IVF8\" beside \"GMM16\""},
                 {"GMM16x4,PQ16x4fs",
                  "IndexIVFPQFastScan scans its lists whole"},
                 {"GMM16_HNSW,PQ16x4fs", "no graph over the means, expected F"},
                 {"GMM16,PQ8+0", "\"PQ8+0\" is 0"},
                 {"GMM16,PQ8x0", "\"PQ8x0\" is 0"},
                 {"GMM16,PQ8x4fs_0", "\"PQ8x4fs_0\" is 0"},
                 {"GMM16,RQ0x8", "\"RQ0x8\" is 0"},
                 {"GMM16,Flat,Refine(PQ0)", "\"Refine(PQ0)\" is 0"},
                 {"GMM16,Flat,Refine(IVF0,Flat)", "is 0"},
                 {"PCA0,GMM16,Flat", "\"PCA0\" is 0"},
                 {"OPQ4_0,GMM16,PQ4np", "\"OPQ4_0\" is 0"}}) {
        EXPECT_FAISS_ERROR(make(wrong.first), wrong.second);
    }
    EXPECT_FAISS_ERROR(make("GMM16,Flat", faiss::METRIC_L2, 0), "d = 0");
    EXPECT_FAISS_ERROR(make("GMM16,Flat", faiss::METRIC_L1), "metric 2");
    EXPECT_FAISS_ERROR(faiss_ext::index_factory(5, nullptr), "no description");
}

} // namespace
} // namespace faiss_ext
