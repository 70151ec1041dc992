// What calibration promises, on real vectors.
#include "faiss_ext/Calibration.h"

#include <memory>

#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include "IvfTestTools.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

const Vectors& base() {
    static const Vectors data = sift_base(50000);
    return data;
}

/// Vectors of the index's own kind that are not in it.
constexpr size_t kStored = 20000;

std::unique_ptr<IndexIVFFlatGMM> sift_index(size_t nlist = 128) {
    auto index = trained(rows_of(base(), 0, 10000), nlist);
    index->calibrate_on_add = true;
    index->add(kStored, base().x.data());
    return index;
}

/// Costs as they are on no machine: what is chosen is the same on all.
constexpr Calibration::Costs kCosts = {3000, 1, 30, 10};

TEST(Calibration, TargetsAreReachedOnVectorsLikeTheIndexs) {
    const auto index = sift_index();
    ASSERT_TRUE(index->calibration.fitted);
    EXPECT_TRUE(index->calibration.own_queries);
    EXPECT_TRUE(index->calibration.curves[0].points[0].by_codes);
    EXPECT_TRUE(index->calibration.costs.known());
    EXPECT_EQ(index->calibration.ntotal, kStored);
    const Vectors q = rows_of(base(), 49000, 50000);
    const Found truth = truth_of(*index, q);
    double cost = 0;
    for (float target : {0.5f, 0.8f, 0.9f, 0.95f, 0.99f}) {
        SearchParametersIVFGMM params;
        params.target_recall = target;
        const Outcome o = outcome(*index, q, truth, params);
        // these have near-duplicates, which are left out when it is fitted
        EXPECT_GT(o.recall, target - 0.02) << target;
        EXPECT_LT(o.distances, kStored / 10) << target;
        const float chosen = index->calibration.choose(target, 10).cost;
        EXPECT_GE(chosen, cost) << target;
        cost = chosen;
    }
}

TEST(Calibration, TargetsAreReachedOnTheUsersQueries) {
    const Vectors given = rows_of(base(), 30000, 31000);
    const Vectors q = rows_of(base(), 31000, 32000);
    auto index = trained(rows_of(base(), 0, 10000), 128);
    index->add(kStored, base().x.data());
    index->calibration.costs = kCosts;
    index->calibrate(given.n, given.x.data(), 10);
    EXPECT_FALSE(index->calibration.own_queries);
    EXPECT_EQ(index->calibration.nq, given.n);
    SearchParametersIVFGMM params;
    for (size_t k : {1, 10, 100}) {
        params.nprobe = index->nlist;
        params.target_recall = 0;
        const Found truth = find(*index, q, k, &params);
        params.nprobe = 1;
        for (float target : {0.8f, 0.9f, 0.95f, 0.99f}) {
            params.target_recall = target;
            const Outcome o = outcome(*index, q, truth, params);
            EXPECT_GT(o.recall, target - 0.02) << k << " " << target;
            EXPECT_LT(o.distances, kStored / 10) << k << " " << target;
        }
    }
}

/// Each of which would be its own nearest, and found at once.
TEST(Calibration, QueriesThatAreInTheIndex) {
    const Vectors x = rows_of(base(), 0, 6000);
    const Vectors given = rows_of(base(), 3000, 3300);
    const Vectors q = rows_of(base(), 49000, 49500);
    for (const char* codec : {"Flat", "SQ8", "RaBitQ4"}) {
        for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
            const std::unique_ptr<faiss::Index> index(index_factory(
                    128, (std::string("GMM32,") + codec).c_str(), metric));
            IVFGMM& gmm = *extract_gmm(index.get());
            gmm.calibrate_on_add = false;
            gmm.calibration.costs = kCosts;
            index->train(x.n, x.x.data());
            index->add(x.n, x.x.data());
            gmm.calibrate(given.n, given.x.data());
            EXPECT_FALSE(gmm.calibration.own_queries);
            SearchParametersIVFGMM params;
            params.nprobe = 32;
            const Found truth = find(*index, q, 1, &params);
            for (float target : {0.9f, 0.95f, 0.99f}) {
                params.target_recall = target;
                // their near-duplicates are more easily found
                EXPECT_GT(
                        recall(find(*index, q, 1, &params), truth, metric),
                        target - 0.05)
                        << codec << " " << metric << " " << target;
            }
        }
    }
}

TEST(Calibration, TargetsAreReachedOnQueriesUnlikeTheIndexs) {
    const auto index = sift_index();
    const Vectors all = sift_queries(500);
    const Vectors given = rows_of(all, 0, 250), q = rows_of(all, 250, 500);
    const Found truth = truth_of(*index, q);
    index->calibrate(given.n, given.x.data(), 10);
    for (float target : {0.8f, 0.9f, 0.95f}) {
        SearchParametersIVFGMM params;
        params.target_recall = target;
        EXPECT_NEAR(outcome(*index, q, truth, params).recall, target, 0.05)
                << target;
    }
}

/// What rounding does to distances is judged where the queries are.
TEST(Calibration, VectorsFarAwayDoNotDeceiveIt) {
    const Vectors all = sift_queries(500);
    const Vectors given = rows_of(all, 0, 250), q = rows_of(all, 250, 500);
    for (size_t n_far : {1, 50}) {
        Vectors data = rows_of(base(), 0, kStored);
        for (size_t i = 0; i < n_far; i++) {
            data.x[(77 + 111 * i) * data.d + 3] = 1e9f / (1 + i);
        }
        const auto index = trained(rows_of(data, 0, 10000), 128);
        index->add(data.n, data.x.data());
        const Found truth = truth_of(*index, q);
        index->calibrate(given.n, given.x.data(), 10);
        for (float target : {0.8f, 0.95f}) {
            SearchParametersIVFGMM params;
            params.target_recall = target;
            EXPECT_GT(outcome(*index, q, truth, params).recall, target - 0.05)
                    << n_far << " far away, target " << target;
        }
    }
}

TEST(Calibration, GrowthRepeatsItOnTheUsersQueries) {
    const auto index = sift_index();
    const Vectors given = sift_queries(100);
    index->calibrate(given.n, given.x.data(), 5);
    index->add(30000, base().row(kStored)); // more than doubles it
    EXPECT_EQ(index->cells.fitted_n, 50000);
    EXPECT_FALSE(index->calibration.own_queries);
    EXPECT_EQ(index->calibration.queries, given.x);
    EXPECT_EQ(index->calibration.k, 5);
    EXPECT_EQ(index->calibration.ntotal, 50000);
    index->calibrate(100, nullptr, 5);
    EXPECT_TRUE(index->calibration.own_queries);
    EXPECT_TRUE(index->calibration.queries.empty());
}

TEST(Calibration, TargetsHoldWhileTheIndexGrows) {
    for (size_t before : {9000, 13000, 18000}) {
        auto index = trained(rows_of(base(), 0, 10000), 128);
        index->calibrate_on_add = true;
        const Vectors all = sift_queries(500);
        const Vectors given = rows_of(all, 0, 250), q = rows_of(all, 250, 500);
        index->add(before, base().x.data());
        index->calibrate(given.n, given.x.data(), 10);
        index->add(kStored - before, base().row(before));
        index->maintain(); // 7,000 to 13,000 do not calibrate by themselves
        const Found truth = truth_of(*index, q);
        double last = 0;
        for (float target : {0.8f, 0.9f, 0.95f, 0.99f}) {
            SearchParametersIVFGMM params;
            params.target_recall = target;
            const double reached = outcome(*index, q, truth, params).recall;
            EXPECT_GT(reached, target - 0.06) << before << " " << target;
            EXPECT_GE(reached, last - 0.01);
            last = reached;
        }
    }
}

/// Of two lists recall by mass is a step: nothing between its sides is a
/// choice.
TEST(Calibration, TargetsAreReachedWithFewLists) {
    const Vectors x = uniform(5000, 16, 3);
    const Vectors q = uniform(500, 16, 4);
    for (size_t nlist : {2, 3, 8}) {
        auto index = trained(x, nlist);
        index->calibrate_on_add = false;
        index->cells_per_list = 1;
        index->add(x.n, x.x.data());
        index->calibrate(q.n, q.x.data());
        const Found truth = truth_of(*index, q);
        for (float target : {0.8f, 0.9f, 0.95f}) {
            SearchParametersIVFGMM params;
            params.target_recall = target;
            EXPECT_GT(outcome(*index, q, truth, params).recall, target - 0.01)
                    << nlist << " lists, " << target;
        }
    }
}

TEST(Calibration, SmallIndexesAreSearchedThroughForATarget) {
    auto index = trained(rows_of(base(), 0, 10000), 16);
    index->target_recall = 0.9f;
    const Vectors q = sift_queries(10);
    EXPECT_EQ(find(*index, q, 10).ids[0], -1);
    index->add(500, base().x.data());
    EXPECT_EQ(distances_per_query(*index, q, 10), 500);
    index->calibrate_on_add = false;
    index->add(5000, base().row(500));
    EXPECT_THROW(find(*index, q, 10), faiss::FaissException);
}

TEST(Calibration, ManyNeighboursAreNotCutShort) {
    const auto index = sift_index();
    const Vectors q = sift_queries(50);
    const size_t k = 300;
    auto none_of = [&](const SearchParametersIVFGMM& params) {
        const Found found = find(*index, q, k, &params);
        return std::count(found.ids.begin(), found.ids.end(), idx_t(-1));
    };
    for (size_t nprobe : {2, 4, 8}) { // 312, 625, 1250 vectors
        SearchParametersIVFGMM params;
        params.nprobe = nprobe;
        const auto none = none_of(params);
        params.probe_order = ProbeOrder::codes; // buys more of them
        EXPECT_EQ(none_of(params), 0) << nprobe;
        params.probe_order = ProbeOrder::distance;
        EXPECT_LE(none, none_of(params)) << nprobe;
    }
}

TEST(Calibration, SelectorsFindAsMuchAsInWholeLists) {
    const auto index = sift_index();
    const Vectors q = sift_queries(200);
    faiss::IDSelectorRange few(0, 400); // 2 %
    SearchParametersIVFGMM params;
    params.sel = &few;
    params.nprobe = index->nlist;
    const Found truth = find(*index, q, 10, &params);
    for (size_t nprobe : {4, 8, 16}) {
        params.nprobe = nprobe;
        params.probe_order = ProbeOrder::distance;
        const double lists =
                recall(find(*index, q, 10, &params), truth, faiss::METRIC_L2);
        params.probe_order = ProbeOrder::calibrated;
        const double cells =
                recall(find(*index, q, 10, &params), truth, faiss::METRIC_L2);
        EXPECT_GE(cells, lists - 0.02) << nprobe;
    }
    params.nprobe = 1;
    params.target_recall = 0.9f;
    EXPECT_GT(
            recall(find(*index, q, 10, &params), truth, faiss::METRIC_L2), 0.7);
}

TEST(Calibration, MoreMassIsMoreRecallForMoreCodes) {
    const auto index = sift_index();
    const Vectors q = rows_of(base(), 49500, 50000);
    const Found truth = truth_of(*index, q);
    double recall_before = 0, codes_before = 0;
    for (float mass : {0.5f, 0.8f, 0.95f, 0.99f}) {
        SearchParametersIVFGMM params;
        params.nprobe = index->nlist;
        params.probe_mass = mass;
        ivf_gmm_stats.reset();
        const Outcome o = outcome(*index, q, truth, params);
        const double codes = double(ivf_gmm_stats.n_codes) / q.n;
        EXPECT_GT(o.recall, mass - 0.03) << mass;
        EXPECT_GE(o.recall, recall_before) << mass;
        EXPECT_GE(codes, 0.9 * codes_before) << mass; // more may be compared
        EXPECT_LT(codes, kStored / 2) << mass;
        recall_before = o.recall;
        codes_before = codes;
    }
}

TEST(Calibration, NprobeOfACallCapsWhatIsLookedAt) {
    const auto index = sift_index();
    const Vectors q = sift_queries(100);
    faiss::SearchParametersIVF params;
    index->target_recall = 0.99f;
    double before = 0;
    for (size_t nprobe : {1, 3, 10}) {
        params.nprobe = nprobe;
        ivf_gmm_stats.reset();
        find(*index, q, 10, &params);
        const double codes = double(ivf_gmm_stats.n_codes) / q.n;
        // the nearest cells are looked at in any case
        EXPECT_LE(codes, 1.1 * nprobe * kStored / index->nlist + 150) << nprobe;
        EXPECT_GT(codes, before);
        before = codes;
    }
}

TEST(Calibration, MaxCodesCapsTheDistances) {
    const auto index = sift_index();
    const Vectors q = sift_queries(100);
    for (auto order :
         {ProbeOrder::calibrated, ProbeOrder::codes, ProbeOrder::distance}) {
        for (size_t cap : {1, 64, 100, 1000}) {
            SearchParametersIVFGMM params;
            params.probe_order = order;
            params.max_codes = cap;
            params.nprobe = index->nlist; // whole lists, in any order
            const double most = distances_per_query(*index, q, 10, &params);
            EXPECT_LE(most, cap);
            // codes tell what is not worth a distance
            EXPECT_GE(
                    most,
                    order == ProbeOrder::distance ? cap
                                                  : std::min<double>(cap, 20))
                    << to_string(order);
            for (float mass : {0.99f, 1.0f}) {
                params.probe_mass = mass;
                params.nprobe = mass < 1 ? index->nlist : 20;
                const double n = distances_per_query(*index, q, 10, &params);
                EXPECT_LE(n, cap) << to_string(order) << " " << mass;
                EXPECT_GE(n, std::min<double>(cap, 20)) << to_string(order);
            }
            params.probe_mass = 1;
            params.target_recall = 0.99f;
            EXPECT_LE(distances_per_query(*index, q, 10, &params), cap);
        }
    }
}

TEST(Calibration, TheReportSaysWhatWasFoundAndWhatItCost) {
    auto index = trained(rows_of(base(), 0, 3000), 32);
    EXPECT_EQ(index->calibration.report(), "not calibrated\n");
    index->add(3000, base().x.data());
    index->calibration.costs = kCosts;
    const Vectors q = sift_queries(60);
    index->calibrate(q.n, q.x.data(), 7);
    const std::string report = index->calibration.report();
    for (const char* part :
         {"60 queries given",
          "3000 vectors",
          "3000 ns, 1.00 a code, 30.0 a distance and 10.0 one of a whole list",
          "recall@1 ",
          "recall@7 ",
          "recall@10 ",
          "recall@100 ",
          "budget",
          "0.95"}) {
        EXPECT_NE(report.find(part), std::string::npos) << part << report;
    }
    std::vector<size_t> ks;
    for (const auto& curve : index->calibration.curves) {
        ks.push_back(curve.k);
        ASSERT_GE(curve.points.size(), 2u) << curve.k;
        for (size_t p = 0; p < curve.points.size(); p++) {
            const auto& point = curve.points[p];
            EXPECT_NEAR(
                    point.cost,
                    3000 + point.codes +
                            (point.by_codes ? 30 : 10) * point.distances,
                    1e-4 * point.cost);
            if (p > 0) {
                EXPECT_GE(point.recall, curve.points[p - 1].recall);
                EXPECT_GE(point.cost, curve.points[p - 1].cost);
            }
        }
        EXPECT_EQ(curve.points.back().recall, 1);
        EXPECT_FALSE(curve.points.back().by_codes);
        EXPECT_EQ(curve.points.back().distances, 3000);
    }
    EXPECT_EQ(ks, (std::vector<size_t>{1, 7, 10, 100}));
}

TEST(Calibration, CostsThatAreKnownAreKept) {
    std::string reports[2];
    for (std::string& report : reports) {
        auto index = trained(rows_of(base(), 0, 5000), 32);
        index->calibration.costs = kCosts;
        index->calibrate_on_add = true;
        index->add(5000, base().x.data());
        ASSERT_TRUE(index->calibration.fitted);
        for (int again = 0; again < 2; again++) {
            EXPECT_EQ(index->calibration.costs.query, kCosts.query);
            EXPECT_EQ(index->calibration.costs.code, kCosts.code);
            EXPECT_EQ(index->calibration.costs.distance, kCosts.distance);
            EXPECT_EQ(index->calibration.costs.scan, kCosts.scan);
            index->calibrate(100, nullptr);
        }
        report = index->calibration.report();
    }
    EXPECT_EQ(reports[0], reports[1]);
}

TEST(Calibration, WrongInputLeavesTheIndexAsItWas) {
    auto index = trained(rows_of(base(), 0, 2000), 16);
    index->add(2000, base().x.data());
    index->calibrate(50, nullptr);
    const std::string report = index->calibration.report();
    Vectors q = sift_queries(100);
    const Found before = find(*index, q, 5);
    auto refused = [&](const char* part, size_t nq, const float* xq, size_t k) {
        EXPECT_FAISS_ERROR(index->calibrate(nq, xq, k), part);
        EXPECT_EQ(index->calibration.report(), report);
        EXPECT_TRUE(find(*index, q, 5) == before);
    };
    refused("nq = 19", 19, q.x.data(), 10);
    refused("nq = 0", 0, nullptr, 10);
    refused("nq = 2001", 2001, nullptr, 10);
    refused("xq: n = ", size_t(1) << 62, q.x.data(), 10);
    refused("k = 0", 100, q.x.data(), 0);
    refused("k = 2000", 100, q.x.data(), 2000);
    Vectors bad = q;
    bad.x[42 * q.d + 3] = std::nanf("");
    refused("xq: row 42", 100, bad.x.data(), 10);
    bad.x[42 * q.d + 3] = HUGE_VALF;
    refused("xq: row 42", 100, bad.x.data(), 10);
    bad.x[42 * q.d + 3] = 1e30f;
    refused("xq: row 42", 100, bad.x.data(), 10);
    IndexIVFFlatGMM untrained(q.d, 16);
    EXPECT_FAISS_ERROR(untrained.calibrate(100, q.x.data()), "");
    auto empty = trained(rows_of(base(), 0, 2000), 16);
    EXPECT_FAISS_ERROR(empty->calibrate(100, q.x.data()), "after adding");
    EXPECT_FAISS_ERROR(empty->calibrate(100, nullptr), "after adding");
    index->calibrate(20, q.x.data(), 1999); // the most and the least it takes
    EXPECT_EQ(index->calibration.k, 1999u);
}

/// An assignment that puts most vectors into no list leaves an index that goes
/// on, as FAISS's does.
TEST(Calibration, VectorsInNoListAreNotDrawn) {
    const Vectors x = sift_base(2400);
    for (size_t in : {0, 100}) {
        const auto index = trained(x, 16);
        std::vector<idx_t> lists(1200, -1);
        index->quantizer->assign(in, x.x.data(), lists.data());
        static_cast<faiss::IndexIVF&>(*index).add_core(
                1200, x.x.data(), nullptr, lists.data());
        index->maintain();
        EXPECT_EQ(index->ntotal, 1200);
        index->add(1200, x.row(1200));
        index->nprobe = index->nlist;
        const Found found = find(*index, rows_of(x, 1200, 1300), 1);
        EXPECT_EQ(std::count(found.dis.begin(), found.dis.end(), 0.f), 100);
    }
}

/// An interrupt after cells were made anew does not hide that the calibration
/// is due.
TEST(Calibration, StaysDueWhereItWasInterrupted) {
    struct Interrupt : faiss::InterruptCallback {
        long asked = 0, at = 0;
        bool want_interrupt() override {
            return ++asked == at;
        }
    };
    const Vectors x = sift_base(9000);
    const auto original = trained(x, 24);
    original->calibrate_on_add = true;
    original->add(6000, x.x.data());
    original->remove_ids(faiss::IDSelectorRange(0, 5000));
    const size_t threads = omp_get_max_threads();
    omp_set_num_threads(1);
    size_t interrupted = 0;
    for (long at = 1; at < 400; at += at < 20 ? 1 : 40) {
        const auto copy = clone_index(original.get());
        auto* gmm = extract_gmm(copy.get());
        auto callback = std::make_unique<Interrupt>();
        callback->at = at;
        faiss::InterruptCallback::instance = std::move(callback);
        try {
            copy->add(3000, x.row(6000));
        } catch (const faiss::FaissException&) {
        }
        faiss::InterruptCallback::instance.reset();
        if (copy->ntotal == 4000 && gmm->calibration.ntotal != 4000) {
            interrupted++;
            EXPECT_TRUE(gmm->maintenance_due()) << at;
            gmm->maintain();
            EXPECT_EQ(gmm->calibration.ntotal, 4000u);
        }
    }
    EXPECT_GT(interrupted, 0u);
    omp_set_num_threads(int(threads));
}

} // namespace
} // namespace faiss_ext
