#include "faiss_ext/ivflib.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include <faiss/IVFlib.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/IndexShards.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_factory.h>

#include "IvfTestTools.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr int kD = 128;
constexpr int kK = 10;

const Vectors& base() {
    static const Vectors data = sift_base(8000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(100);
    return data;
}

std::unique_ptr<faiss::IndexIVF> filled(
        const char* description, faiss::MetricType metric = faiss::METRIC_L2) {
    std::unique_ptr<faiss::IndexIVF> index(dynamic_cast<faiss::IndexIVF*>(
            faiss::index_factory(kD, description, metric)));
    train_quickly(index.get());
    index->train(base().n, base().x.data());
    // Ids that are not places.
    std::vector<idx_t> ids(base().n);
    for (size_t i = 0; i < ids.size(); i++) {
        ids[i] = 7 * i + 3;
    }
    index->add_with_ids(base().n, base().x.data(), ids.data());
    return index;
}

Found search(const faiss::Index& index) {
    return find(index, queries(), kK);
}

TEST(SwapToGMM, FlatIsRefiledExactly) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        for (auto covariance :
             {gmm::Covariance::isotropic,
              gmm::Covariance::diagonal,
              gmm::Covariance::tied_spherical}) {
            SCOPED_TRACE(int(metric) * 10 + int(covariance));
            auto index = filled("IVF32,Flat", metric);
            index->nprobe = 5;
            const auto before = search(*index);
            auto swapped = swap_to_gmm(*index, covariance);
            auto& gmm = dynamic_cast<IndexIVFFlatGMM&>(*swapped);
            EXPECT_EQ(gmm.ntotal, index->ntotal);
            EXPECT_EQ(gmm.nprobe, 5u);
            EXPECT_EQ(gmm.covariance, covariance);
            EXPECT_NO_THROW(gmm.mixture().validate());
            EXPECT_TRUE(gmm.calibration.fitted);
            EXPECT_FALSE(gmm.cells.empty());
            // All lists: the same results.
            index->nprobe = 32;
            const auto truth = search(*index);
            // Diagonal covariances choose means that are farther from their
            // vectors.
            const double slack =
                    covariance == gmm::Covariance::diagonal ? 0.08 : 0.03;
            EXPECT_GT(
                    agreement(search(gmm), truth),
                    agreement(before, truth) - slack);
            gmm.nprobe = 32;
            EXPECT_GT(agreement(search(gmm), truth), 0.999);
            // The given index is as it was.
            index->nprobe = 5;
            EXPECT_EQ(search(*index), before);
        }
    }
}

TEST(SwapToGMM, CodesAreEncodedAnew) {
    for (const char* description : {"IVF32,PQ16x6np", "IVF32,SQ8"}) {
        auto index = filled(description);
        auto swapped = swap_to_gmm(*index);
        EXPECT_NE(extract_gmm(swapped.get()), nullptr);
        EXPECT_EQ(swapped->ntotal, index->ntotal);
        EXPECT_EQ(swapped->code_size, index->code_size);
        index->nprobe = swapped->nprobe = 32;
        faiss::IndexFlatL2 exact(kD);
        exact.add(base().n, base().x.data());
        auto truth = search(exact);
        for (idx_t& id : truth.ids) {
            id = 7 * id + 3;
        }
        EXPECT_GT(
                agreement(search(*swapped), truth),
                agreement(search(*index), truth) - 0.1)
                << description;
    }
}

TEST(SwapToGMM, DirectMapAndIdsStay) {
    auto index = filled("IVF32,Flat");
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    auto swapped = swap_to_gmm(*index);
    ASSERT_EQ(swapped->direct_map.type, faiss::DirectMap::Hashtable);
    std::vector<float> x(kD);
    for (idx_t i : {0, 17, 7999}) {
        swapped->reconstruct(7 * i + 3, x.data());
        EXPECT_TRUE(std::equal(x.begin(), x.end(), base().row(i)));
    }
    // The result is an index like any other.
    swapped->remove_ids(faiss::IDSelectorRange(0, 7000));
    EXPECT_EQ(swapped->ntotal, 7000);
}

TEST(SwapToGMM, BadInputIsNamed) {
    std::unique_ptr<faiss::Index> untrained(
            faiss::index_factory(kD, "IVF32,Flat"));
    auto ivf = dynamic_cast<faiss::IndexIVF*>(untrained.get());
    EXPECT_FAISS_ERROR(swap_to_gmm(*ivf), "not trained");
    ivf->train(base().n, base().x.data());
    EXPECT_FAISS_ERROR(swap_to_gmm(*ivf), "ntotal = 0");
    auto fast = filled("IVF32,PQ32x4fs");
    EXPECT_FAISS_ERROR(swap_to_gmm(*fast), "index is a faiss::IndexIVFPQFast");
    auto swapped = swap_to_gmm(*filled("IVF32,Flat"));
    EXPECT_FAISS_ERROR(swap_to_gmm(*swapped), "IndexIVFFlat");
    auto l1 = filled("IVF32,Flat", faiss::METRIC_L1);
    EXPECT_FAISS_ERROR(swap_to_gmm(*l1), "metric");
}

TEST(Calibrate, WhatHasNoMixtureIsNamed) {
    std::unique_ptr<faiss::Index> stock(
            faiss::index_factory(kD, "PCA8,IVF32,PQ4x4fs"));
    EXPECT_FAISS_ERROR(
            calibrate(stock.get(), base().n, base().x.data()),
            "calibrate: a faiss::IndexIVFPQFastScan has no mixture");
    faiss::IndexShards none(kD);
    EXPECT_FAISS_ERROR(calibrate(&none, base().n, base().x.data()), "no parts");
}

TEST(Calibrate, QueriesAreTransformedOnTheWay) {
    std::unique_ptr<faiss::Index> inner(index_factory(kD, "PCA32,GMM64,Flat"));
    auto index = std::make_unique<faiss::IndexIDMap>(inner.get());
    index->train(base().n, base().x.data());
    std::vector<idx_t> ids(base().n);
    std::iota(ids.begin(), ids.end(), 100);
    index->add_with_ids(base().n, base().x.data(), ids.data());
    faiss_ext::calibrate(index.get(), 50, queries().x.data(), 5);
    const Calibration& c = extract_gmm(index.get())->calibration;
    EXPECT_EQ(c.nq, 50);
    EXPECT_EQ(c.k, 5);
    EXPECT_FALSE(c.own_queries);
    auto& pre = dynamic_cast<faiss::IndexPreTransform&>(*inner);
    const std::unique_ptr<const float[]> expected(
            pre.apply_chain(50, queries().x.data()));
    ASSERT_EQ(c.queries.size(), 50 * 32);
    EXPECT_TRUE(std::equal(c.queries.begin(), c.queries.end(), expected.get()));

    faiss::IndexFlat none(kD);
    EXPECT_THROW(
            faiss_ext::calibrate(&none, 50, queries().x.data()),
            faiss::FaissException);
}

// A target is reached through shards of the base and through replicas of it.
TEST(Calibrate, GoesThroughShardsAndReplicas) {
    std::unique_ptr<faiss::Index> trained(index_factory(kD, "GMM32,Flat"));
    trained->train(base().n, base().x.data());
    faiss::IndexFlatL2 exact(kD);
    exact.add(base().n, base().x.data());
    const auto truth = search(exact);
    std::vector<std::unique_ptr<faiss::Index>> parts;
    for (int i = 0; i < 4; i++) {
        parts.push_back(clone_index(trained.get()));
    }
    faiss::IndexShards shards(kD, false, true);
    faiss::IndexReplicas replicas(kD, false);
    for (int i = 0; i < 4; i++) {
        (i < 2 ? static_cast<faiss::ThreadedIndex<faiss::Index>&>(shards)
               : replicas)
                .addIndex(parts[i].get());
    }
    for (faiss::Index* whole :
         std::initializer_list<faiss::Index*>{&shards, &replicas}) {
        whole->add(base().n, base().x.data());
        EXPECT_EQ(extract_gmm(whole), nullptr);
        ASSERT_EQ(extract_gmms(whole).size(), 2u);
        faiss_ext::calibrate(whole, queries().n, queries().x.data(), kK);
        for (IVFGMM* gmm : extract_gmms(whole)) {
            EXPECT_FALSE(gmm->calibration.own_queries);
            gmm->target_recall = 0.9f;
            // measured once: replicas give the same answers
            const Calibration& first = extract_gmms(whole)[0]->calibration;
            EXPECT_EQ(gmm->calibration.costs.query, first.costs.query);
            EXPECT_EQ(gmm->calibration.costs.code, first.costs.code);
            EXPECT_EQ(gmm->calibration.costs.distance, first.costs.distance);
            EXPECT_EQ(gmm->calibration.costs.scan, first.costs.scan);
            if (whole == &replicas) {
                EXPECT_EQ(gmm->calibration.report(), first.report());
            }
        }
        EXPECT_GT(agreement(search(*whole), truth), 0.87);
    }
    faiss::IndexFlatL2 flat(kD);
    shards.addIndex(&flat);
    EXPECT_FAISS_ERROR(
            faiss_ext::calibrate(&shards, 50, queries().x.data()),
            "IndexFlatL2 has");
}

TEST(Calibrate, BadNumbersAreNamed) {
    auto index = swap_to_gmm(*filled("IVF32,Flat"));
    EXPECT_FAISS_ERROR(
            faiss_ext::calibrate(index.get(), 50, nullptr), "xq = nullptr");
    EXPECT_FAISS_ERROR(
            faiss_ext::calibrate(index.get(), SIZE_MAX, queries().x.data()),
            "n = -1");
    EXPECT_FAISS_ERROR(
            faiss_ext::calibrate(
                    index.get(), size_t(1) << 62, queries().x.data()),
            "n = 4611686018427387904");
}

TEST(CloneIndex, IsTheSameIndex) {
    EXPECT_FAISS_ERROR(faiss_ext::clone_index(nullptr), "clone_index: no ind");
    for (const char* description : {"GMM32,Flat", "PCA32,GMM32,SQ8"}) {
        std::unique_ptr<faiss::Index> index(index_factory(kD, description));
        index->train(base().n, base().x.data());
        index->add(base().n, base().x.data());
        extract_gmm(index.get())->target_recall = 0.9f;
        const std::unique_ptr<faiss::Index> clone =
                faiss_ext::clone_index(index.get());
        ASSERT_NE(extract_gmm(clone.get()), nullptr);
        EXPECT_EQ(search(*clone), search(*index));
        index->reset();
        EXPECT_EQ(clone->ntotal, idx_t(base().n));
    }
}

TEST(ExtractGMM, FindsItOrNothing) {
    EXPECT_EQ(extract_gmm(static_cast<faiss::Index*>(nullptr)), nullptr);
    faiss::IndexFlatL2 flat(kD);
    EXPECT_EQ(extract_gmm(&flat), nullptr);
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(kD, "PCA64,IVF8,Flat,RFlat"));
    EXPECT_EQ(extract_gmm(index.get()), nullptr);
    index.reset(faiss_ext::index_factory(kD, "PCA64,GMM8,Flat,RFlat"));
    const faiss::Index* constant = index.get();
    EXPECT_EQ(extract_gmm(constant), extract_gmm(index.get()));
    EXPECT_NE(extract_gmm(constant), nullptr);
}

/// Lists get the ids that the maps held, and removal leaves them right.
TEST(Ivflib, IdMapsAreLeftOut) {
    for (const char* description :
         {"IDMap,IVF16,Flat",
          "IDMap2,IVF16,Flat",
          "IDMap2,PCA32,IVF16,Flat",
          "IDMap,IVF16,SQ8"}) {
        const size_t n = 2000;
        const float* const x = base().x.data();
        std::unique_ptr<faiss::Index> index(
                faiss::index_factory(kD, description));
        std::vector<idx_t> ids(n);
        for (size_t i = 0; i < n; i++) {
            ids[i] = idx_t(1000000 + 7 * i);
        }
        index->train(n, x);
        index->add_with_ids(n, x, ids.data());
        const bool reconstructs =
                dynamic_cast<faiss::IndexIDMap2*>(index.get()) != nullptr;
        index = without_id_maps(std::move(index));
        EXPECT_FALSE(dynamic_cast<faiss::IndexIDMap*>(index.get()));
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(
                *faiss::ivflib::extract_index_ivf(index.get()));
        EXPECT_EQ(!ivf.direct_map.no(), reconstructs);
        ivf.nprobe = ivf.nlist;
        ivf.remove_ids(faiss::IDSelectorArray(100, ids.data()));
        std::vector<float> distances(n);
        std::vector<idx_t> labels(n);
        index->search(n, x, 1, distances.data(), labels.data());
        size_t own = 0;
        for (size_t i = 100; i < n; i++) {
            own += labels[i] == ids[i];
        }
        EXPECT_GE(own, 1890u) << description; // SQ8 and PCA: some ties
    }
    // an entry that the map does not know
    std::unique_ptr<faiss::Index> index(
            faiss::index_factory(kD, "IDMap,IVF16,Flat"));
    index->train(2000, base().x.data());
    std::vector<idx_t> ids(2000);
    std::iota(ids.begin(), ids.end(), 0);
    index->add_with_ids(2000, base().x.data(), ids.data());
    dynamic_cast<faiss::IndexIDMap&>(*index).id_map.resize(1000);
    EXPECT_FAISS_ERROR(without_id_maps(std::move(index)), "that has 1000");
    EXPECT_TRUE(without_id_maps(nullptr) == nullptr);
}

TEST(Ivflib, ACloneIsTrainedAlike) {
    std::unique_ptr<faiss::Index> index(index_factory(kD, "PCA32,GMM16,Flat"));
    auto& cp = faiss::ivflib::extract_index_ivf(index.get())->cp;
    cp.niter = 3;
    cp.seed = 7;
    const auto copy = clone_index(index.get());
    const auto& other = faiss::ivflib::extract_index_ivf(copy.get())->cp;
    EXPECT_EQ(other.niter, 3);
    EXPECT_EQ(other.seed, 7);
}

/// By the parameters of what is in it, too.
TEST(Ivflib, AClonesQuantizersAreTrainedAlike) {
    for (const char* factory : {"GMM16,PQ8x4fs", "GMM16,PQ8x4"}) {
        std::unique_ptr<faiss::Index> index(index_factory(kD, factory));
        const auto training = [](faiss::Index& index) {
            auto& ivf = dynamic_cast<faiss::IndexIVF&>(index);
            auto pq = dynamic_cast<faiss::IndexIVFPQ*>(&ivf);
            auto fast = dynamic_cast<faiss::IndexIVFPQFastScan*>(&ivf);
            auto gmm = dynamic_cast<IndexGMM*>(ivf.quantizer);
            return std::pair(
                    gmm ? &gmm->cp : &ivf.cp, pq ? &pq->pq.cp : &fast->pq.cp);
        };
        const auto [means, codec] = training(*index);
        means->niter = 3;
        codec->niter = 4;
        const auto copy = clone_index(index.get());
        const auto [other_means, other_codec] = training(*copy);
        EXPECT_EQ(other_means->niter, 3) << factory;
        EXPECT_EQ(other_codec->niter, 4) << factory;
        for (faiss::Index* one : {index.get(), copy.get()}) {
            one->train(1000, base().x.data());
            one->add(1000, base().x.data());
        }
        EXPECT_EQ(find(*copy, queries(), 5), find(*index, queries(), 5));
    }
}

/// Files have a plain matrix in the place of OPQ, which trains nothing.
TEST(Ivflib, ACloneTrainsItsOPQ) {
    for (const char* factory : {"OPQ2_8,GMM4,Flat", "OPQ2_8,GMM4,SQ8,RFlat"}) {
        SCOPED_TRACE(factory);
        std::unique_ptr<faiss::Index> index(index_factory(kD, factory));
        auto opq = [](faiss::Index& all) {
            auto refine = dynamic_cast<faiss::IndexRefine*>(&all);
            auto& pre = dynamic_cast<faiss::IndexPreTransform&>(
                    refine ? *refine->base_index : all);
            return dynamic_cast<faiss::OPQMatrix*>(pre.chain.at(0));
        };
        opq(*index)->niter = 1;
        opq(*index)->niter_pq_0 = 1;
        const auto copy = clone_index(index.get());
        ASSERT_NE(opq(*copy), nullptr);
        EXPECT_EQ(opq(*copy)->niter, 1);
        for (faiss::Index* one : {index.get(), copy.get()}) {
            one->train(1000, base().x.data());
            one->add(1000, base().x.data());
        }
        EXPECT_EQ(
                find(*copy, queries(), 5).ids, find(*index, queries(), 5).ids);
        const auto again = clone_index(copy.get());
        EXPECT_EQ(
                find(*again, queries(), 5).ids, find(*copy, queries(), 5).ids);
    }
}

/// Centroids of inner products may be as long as the vectors: codes are of
/// residuals about what the swap puts in their place, directions.
TEST(SwapToGMM, CodesAboutLongCentroids) {
    const Vectors x = sift_base(2000), q = sift_queries(50);
    const Found truth = exact(model_of(x), q, 10, faiss::METRIC_INNER_PRODUCT);
    const auto found = [&](faiss::IndexIVF& index) {
        index.nprobe = index.nlist;
        return recall(find(index, q, 10), truth, faiss::METRIC_INNER_PRODUCT);
    };
    for (const char* codec : {"SQ8", "SQ6"}) {
        SCOPED_TRACE(codec);
        std::unique_ptr<faiss::Index> owners[2];
        faiss::IndexIVF* ivf[2];
        for (bool spherical : {false, true}) {
            auto& owner = owners[spherical];
            owner.reset(faiss::index_factory(
                    int(x.d),
                    (std::string("IVF16,") + codec).c_str(),
                    faiss::METRIC_INNER_PRODUCT));
            ivf[spherical] = dynamic_cast<faiss::IndexIVF*>(owner.get());
            ivf[spherical]->cp.spherical = spherical;
            owner->train(x.n, x.x.data());
            owner->add(x.n, x.x.data());
        }
        // SQ6: encoded twice
        EXPECT_GE(found(*swap_to_gmm(*ivf[false])), found(*ivf[true]) - 0.1);
    }
}

/// Lists are those of the index then, for inner products, too.
TEST(SwapToGMM, CentroidsStayIfAsked) {
    const Vectors x = sift_base(2000), q = sift_queries(50);
    constexpr int kOwn = 16;
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const Found truth = exact(model_of(x), q, 10, metric);
        for (const char* description : {"IVF16,Flat", "IVF16,SQ8"}) {
            SCOPED_TRACE(description);
            std::unique_ptr<faiss::Index> owner(
                    faiss::index_factory(int(x.d), description, metric));
            auto& ivf = dynamic_cast<faiss::IndexIVF&>(*owner);
            ivf.quantizer->add(kOwn, x.x.data()); // longer than any direction
            ivf.train(x.n, x.x.data());
            ivf.add(x.n, x.x.data());
            ivf.cp.frozen_centroids = true;
            const auto gmm = swap_to_gmm(ivf);
            std::vector<float> means(kOwn * x.d);
            gmm->quantizer->reconstruct_n(0, kOwn, means.data());
            const float scale = means[0] / x.x[0];
            EXPECT_TRUE(metric == faiss::METRIC_L2 ? scale == 1 : scale < 1);
            for (size_t j = 0; j < means.size(); j++) {
                EXPECT_FLOAT_EQ(means[j], scale * x.x[j]);
            }
            for (size_t nprobe : {1, 4, kOwn}) {
                ivf.nprobe = gmm->nprobe = nprobe;
                EXPECT_GE(
                        recall(find(*gmm, q, 10), truth, metric),
                        recall(find(ivf, q, 10), truth, metric) - 0.02)
                        << metric << " " << nprobe;
            }
        }
    }
}

} // namespace
} // namespace faiss_ext
