// What calibration promises, on real vectors and on data made to break it.
#include "faiss_ext/Calibration.h"

#include <memory>

#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include "IvfTestTools.h"
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

/// k-means' curve: whole lists by distance.
std::vector<Outcome> plain_curve(
        const IndexIVFFlatGMM& index, const Vectors& q, const Found& truth) {
    std::vector<Outcome> curve;
    for (size_t nprobe = 1; nprobe <= index.nlist; nprobe += 1 + nprobe / 8) {
        SearchParametersIVFGMM params;
        params.nprobe = nprobe;
        params.probe_order = ProbeOrder::distance;
        curve.push_back(outcome(index, q, truth, params));
    }
    return curve;
}

double plain_cost(const std::vector<Outcome>& curve, double recall) {
    for (size_t p = 0; p < curve.size(); p++) {
        if (curve[p].recall >= recall) {
            if (p == 0) {
                return curve[0].distances;
            }
            const double t = (recall - curve[p - 1].recall) /
                    (curve[p].recall - curve[p - 1].recall);
            return curve[p - 1].distances +
                    t * (curve[p].distances - curve[p - 1].distances);
        }
    }
    return curve.back().distances;
}

struct Hard {
    const char* name;
    Vectors x; ///< the last 600 are queries
    size_t nlist;
};

Vectors gaussians(size_t n, size_t d, const std::vector<float>& sigmas) {
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    const Vectors centres = uniform(sigmas.size(), d, 5);
    Vectors out{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const size_t c = rng() % sigmas.size();
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = 10 * centres.row(c)[j] + sigmas[c] * normal(rng);
        }
    }
    return out;
}

std::vector<Hard> hard_sets() {
    std::vector<Hard> sets;
    sets.push_back({"uniform noise", uniform(12000, 32, 1), 64});
    std::vector<float> sigmas(12, 5.0f);
    sigmas[0] = 0.01f;
    sets.push_back(
            {"one tight cluster among wide ones",
             gaussians(12000, 24, sigmas),
             64});
    sets.push_back({"two dimensions", uniform(12000, 2, 2), 64});
    Vectors repeated = uniform(12000, 16, 3);
    for (size_t i = 0; i < repeated.n; i++) {
        if (i % 3 > 0) { // two thirds are 40 vectors
            std::copy_n(
                    uniform(40, 16, 4).row(i % 40), 16, &repeated.x[i * 16]);
        }
    }
    sets.push_back({"exact duplicates", repeated, 64});
    Vectors line = uniform(8000, 16, 6);
    for (size_t i = 0; i < line.n; i++) {
        for (size_t j = 1; j < 16; j++) {
            line.x[i * 16 + j] = line.x[i * 16] * float(j);
        }
    }
    sets.push_back({"a line", line, 64});
    return sets;
}

TEST(Calibration, NeverCostsMoreThanKMeansOrder) {
    for (const Hard& hard : hard_sets()) {
        SCOPED_TRACE(hard.name);
        const size_t n = hard.x.n - 600;
        const Vectors x = rows_of(hard.x, 0, n);
        const Vectors q = rows_of(hard.x, n, hard.x.n);
        auto index = filled(x, hard.nlist);
        index->calibrate(800, nullptr);
        const Found truth = truth_of(*index, q);
        const auto plain = plain_curve(*index, q, truth);
        for (float target : {0.8f, 0.9f, 0.95f, 0.99f}) {
            SearchParametersIVFGMM params;
            params.target_recall = target;
            const Outcome o = outcome(*index, q, truth, params);
            const double limit = plain_cost(plain, o.recall);
            // in time: a few more distances may take less of it
            EXPECT_LE(o.distances, 1.05 * limit) << target;
            EXPECT_GE(o.recall, target - 0.05) << target;
        }
        for (size_t nprobe : {1, 2, 5, 12, 30}) {
            SearchParametersIVFGMM params;
            params.nprobe = nprobe;
            const Outcome o = outcome(*index, q, truth, params);
            params.probe_order = ProbeOrder::distance;
            const Outcome lists = outcome(*index, q, truth, params);
            // queries in small lists get the next ones
            EXPECT_LE(
                    o.distances,
                    1.15 *
                            std::max(
                                    double(lists.distances),
                                    double(nprobe * n / hard.nlist)))
                    << nprobe;
            EXPECT_GE(o.recall, lists.recall - 0.002) << nprobe;
        }
    }
}

TEST(Calibration, SmallAndDegenerateIndexesDoNotBreak) {
    std::vector<std::pair<Vectors, size_t>> cases;
    cases.push_back({uniform(70, 8, 1), 64});   // barely above nlist
    cases.push_back({uniform(100, 8, 1), 100}); // a vector a list
    cases.push_back({uniform(40, 8, 1), 2});
    cases.push_back({uniform(40, 8, 1), 1});
    cases.push_back({uniform(2000, 1, 1), 16});
    Vectors equal = uniform(2000, 8, 1);
    for (size_t i = 1; i < equal.n; i++) {
        std::copy_n(equal.row(0), 8, &equal.x[i * 8]);
    }
    cases.push_back({equal, 16});
    Vectors zero{2000, 8, std::vector<float>(2000 * 8, 0.0f)};
    cases.push_back({zero, 16});
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        for (size_t c = 0; c < cases.size(); c++) {
            SCOPED_TRACE("case " + std::to_string(c));
            const auto& [x, nlist] = cases[c];
            auto index = trained(x, nlist, metric);
            index->cells_per_list = 4;
            index->add(x.n, x.x.data());
            index->calibrate(30, nullptr, 5);
            ASSERT_TRUE(index->calibration.fitted);
            for (const auto& curve : index->calibration.curves) {
                for (const auto& p : curve.points) {
                    ASSERT_TRUE(std::isfinite(p.cost) && p.cost >= 0);
                    ASSERT_TRUE(std::isfinite(p.budget) && p.budget > 0);
                }
                ASSERT_EQ(curve.points.back().recall, 1);
            }
            const Vectors q = uniform(20, x.d, 9);
            const Model model = model_of(x);
            for (float target : {0.0f, 0.5f, 0.9f, 0.999f}) {
                for (float mass : {0.5f, 1.0f}) {
                    SearchParametersIVFGMM params;
                    params.nprobe = nlist;
                    params.target_recall = target;
                    params.probe_mass = mass;
                    const Found found = find(*index, q, 5, &params);
                    expect_honest(found, model, q, metric);
                    for (size_t i = 0; i < q.n; i++) {
                        ASSERT_GE(found.ids[i * 5], 0);
                    }
                }
            }
            expect_model(*index, model, q);
            EXPECT_FALSE(index->calibration.report().empty());
            EXPECT_EQ(
                    index->calibration.report().find("nan"), std::string::npos);
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

Calibration two_curves() {
    Calibration c;
    c.fitted = true;
    c.ntotal = 5000;
    // by_codes, budget, bound, recall, codes, distances, cost
    c.curves = {
            {1,
             {{true, 100, 1, 0.4f, 100, 10, 400},
              {true, 200, 2, 0.8f, 200, 20, 800},
              {false, 64, 0, 1, 0, 5000, 9000}}},
            {10,
             {{true, 300, 0.5f, 0.5f, 300, 30, 1200},
              {true, 900, 1, 0.9f, 900, 60, 2700},
              {false, 64, 0, 1, 0, 5000, 9000}}}};
    return c;
}

TEST(Calibration, ChoosesTheCheapestThatWasMeasured) {
    const Calibration c = two_curves();
    EXPECT_EQ(c.choose(0.1f, 1).budget, 100);
    EXPECT_EQ(c.choose(0.4f, 1).budget, 100);
    EXPECT_EQ(c.choose(0.41f, 1).budget, 200); // nothing in between
    EXPECT_EQ(c.choose(0.79f, 1).bound, 2);
    EXPECT_EQ(c.choose(0.81f, 1).budget, 64);
    EXPECT_EQ(c.choose(1, 1).recall, 1);
    EXPECT_EQ(c.choose(0.4f, 10).budget, 300);
    EXPECT_EQ(c.choose(0.4f, 10).bound, 0.5f);
    EXPECT_EQ(c.choose(0.85f, 10).budget, 900);
    // in between what both need: of lists their entries, none left out
    for (size_t k : {2, 5, 9}) {
        EXPECT_EQ(c.choose(0.4f, k).budget, 300) << k;
        EXPECT_EQ(c.choose(0.4f, k).bound, 1) << k;
        EXPECT_TRUE(c.choose(0.85f, k).by_codes) << k;
        EXPECT_EQ(c.choose(0.85f, k).budget, 5000) << k;
        EXPECT_EQ(c.choose(0.85f, k).bound, 3) << k;
    }
    // more of the last for more
    EXPECT_EQ(c.choose(0.85f, 11).budget, 990);
    EXPECT_EQ(c.choose(0.85f, 100).budget, 9000);
    EXPECT_EQ(c.choose(0.85f, 100).bound, 1);
    // a radius may have few or many within
    EXPECT_EQ(c.choose_for_range(0.4f).budget, 300);
    EXPECT_EQ(c.choose_for_range(0.4f).bound, 1);
    EXPECT_EQ(c.choose_for_range(0.85f).budget, 5000);
    EXPECT_EQ(c.choose_for_range(0.85f).bound, 3);
    EXPECT_EQ(c.choose_for_range(1).budget, 64);
    EXPECT_FALSE(c.choose_for_range(1).by_codes);
}

TEST(Calibration, ChoosesForItsOwnKUnlessAnotherIsGiven) {
    Calibration c = two_curves();
    for (size_t k : {1, 10}) {
        c.k = k;
        for (float target : {0.4f, 0.8f, 0.95f}) {
            const Calibration::Choice p = c.choose(target);
            EXPECT_EQ(p.budget, c.choose(target, k).budget) << k;
            EXPECT_EQ(p.by_codes, c.choose(target, k).by_codes) << k;
        }
    }
}

TEST(Calibration, ChoosesForTargetsThatThereAre) {
    const Calibration c = two_curves();
    for (float bad : {0.0f, -1.0f, 1.1f, std::nanf("")}) {
        EXPECT_FAISS_ERROR(c.choose(bad, 1), "target_recall = ");
        EXPECT_FAISS_ERROR(c.choose_for_range(bad), "target_recall = ");
    }
    EXPECT_FAISS_ERROR(Calibration().choose(0.9f, 1), "calibrat");
    EXPECT_FAISS_ERROR(Calibration().choose_for_range(0.9f), "calibrat");
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
