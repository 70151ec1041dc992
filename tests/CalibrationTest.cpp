// What calibration promises, on real vectors and on data made to break it.
#include "faiss_ext/Calibration.h"

#include "IvfTestTools.h"
#include "faiss_ext/calibrate/regression.h"

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

TEST(Calibration, TargetsAreReachedOnVectorsLikeTheIndexs) {
    const auto index = sift_index();
    ASSERT_TRUE(index->calibration.fitted);
    EXPECT_TRUE(index->calibration.own_queries);
    EXPECT_EQ(index->calibration.ntotal, kStored);
    const Vectors q = rows_of(base(), 49000, 50000);
    const Found truth = truth_of(*index, q);
    double cost = 0;
    for (float target : {0.5f, 0.8f, 0.9f, 0.95f, 0.99f}) {
        SearchParametersIVFGMM params;
        params.target_recall = target;
        const Outcome o = outcome(*index, q, truth, params);
        // these have near-duplicates, which are left out when it is fitted
        EXPECT_GT(o.recall, target - 0.03) << target;
        EXPECT_LT(o.recall, target + 0.5 * (1 - target) + 0.02) << target;
        EXPECT_LT(o.distances, kStored / 2) << target;
        // costs rise with the target, though distances need not: at 0.5 lists
        // or cells may cost less than the sketches of a first round
        const float chosen = index->calibration.choose(target).cost;
        EXPECT_GT(chosen, cost) << target;
        cost = chosen;
    }
}

TEST(Calibration, TargetsAreReachedOnTheUsersQueries) {
    const auto index = sift_index();
    const Vectors all = sift_queries(500);
    const Vectors given = rows_of(all, 0, 250), q = rows_of(all, 250, 500);
    const Found truth = truth_of(*index, q);
    index->calibrate(given.n, given.x.data(), 10);
    EXPECT_FALSE(index->calibration.own_queries);
    EXPECT_EQ(index->calibration.nq, given.n);
    for (float target : {0.8f, 0.9f, 0.95f}) {
        SearchParametersIVFGMM params;
        params.target_recall = target;
        const Outcome o = outcome(*index, q, truth, params);
        EXPECT_NEAR(o.recall, target, 0.05) << target;
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

TEST(Calibration, NprobeOfACallCapsTheTarget) {
    const auto index = sift_index();
    const Vectors q = sift_queries(100);
    index->target_recall = 0.99f;
    const double free = distances_per_query(*index, q, 10);
    faiss::SearchParametersIVF params;
    params.nprobe = 1;
    const double capped = distances_per_query(*index, q, 10, &params);
    EXPECT_LE(capped, double(kStored) / index->nlist + 1);
    EXPECT_GT(free, capped);
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
    for (size_t nprobe : {2, 4, 8}) { // 312, 625, 1250 vectors
        faiss::SearchParametersIVF params;
        params.nprobe = nprobe;
        const Found found = find(*index, q, k, &params);
        const size_t none =
                std::count(found.ids.begin(), found.ids.end(), idx_t(-1));
        EXPECT_EQ(none, 0) << nprobe;
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

TEST(Calibration, MoreMassIsMoreRecallForMoreDistances) {
    const auto index = sift_index();
    const Vectors q = rows_of(base(), 49500, 50000);
    const Found truth = truth_of(*index, q);
    Outcome before{0, 0};
    for (float mass : {0.5f, 0.8f, 0.95f, 0.99f}) {
        SearchParametersIVFGMM params;
        params.nprobe = index->nlist;
        params.probe_mass = mass;
        const Outcome o = outcome(*index, q, truth, params);
        // the first round alone may find more than is asked for
        EXPECT_GT(o.recall, mass - 0.12) << mass;
        EXPECT_GE(o.recall, before.recall);
        EXPECT_GE(o.distances, before.distances);
        EXPECT_LT(o.distances, kStored / 2);
        before = o;
    }
}

TEST(Calibration, NprobeAndMaxCodesCapWhatStopsByMass) {
    const auto index = sift_index();
    const Vectors q = sift_queries(100);
    const double per_list = double(kStored) / index->nlist;
    for (auto order :
         {ProbeOrder::calibrated,
          ProbeOrder::cell_distance,
          ProbeOrder::cell_posterior}) {
        SearchParametersIVFGMM params;
        params.probe_order = order;
        params.probe_mass = 0.999f;
        params.nprobe = 3;
        EXPECT_LT(
                distances_per_query(*index, q, 10, &params),
                3 * per_list + 100);
        for (size_t cap : {1, 64, 100, 1000}) {
            params.nprobe = index->nlist;
            params.max_codes = cap;
            for (float mass : {1.0f, 0.999999f}) {
                params.probe_mass = mass;
                const double n = distances_per_query(*index, q, 10, &params);
                EXPECT_LE(n, cap) << to_string(order) << " " << mass;
                // so much mass is reached before 1000 by few
                EXPECT_GE(n, mass < 1 ? 0.99 * cap : cap);
            }
        }
        // with a target, too
        params.target_recall = 0.99f;
        params.max_codes = 100;
        const double with_target = distances_per_query(*index, q, 10, &params);
        EXPECT_LE(with_target, 100);
        EXPECT_GT(with_target, 50);
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

double plain_recall(const std::vector<Outcome>& curve, double distances) {
    double recall = 0;
    for (const Outcome& o : curve) {
        if (o.distances <= distances) {
            recall = o.recall;
        }
    }
    return recall;
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
            EXPECT_LE(o.distances, 1.02 * limit) << target;
            EXPECT_GE(o.recall, target - 0.05) << target;
        }
        for (size_t nprobe : {1, 2, 5, 12, 30}) {
            SearchParametersIVFGMM params;
            params.nprobe = nprobe;
            const Outcome o = outcome(*index, q, truth, params);
            EXPECT_GE(o.recall, plain_recall(plain, o.distances) - 0.003)
                    << nprobe;
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
            for (float w : index->calibration.cell_stop_weights) {
                ASSERT_TRUE(std::isfinite(w));
            }
            for (float w : index->calibration.sketch_stop_weights) {
                ASSERT_TRUE(std::isfinite(w));
            }
            for (float w : index->calibration.tau_weights) {
                ASSERT_TRUE(std::isfinite(w));
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

TEST(Calibration, TheReportSaysWhatWasComparedAndWhatWon) {
    auto index = trained(rows_of(base(), 0, 3000), 32);
    EXPECT_EQ(index->calibration.report(), "not calibrated\n");
    index->add(3000, base().x.data());
    const Vectors q = sift_queries(60);
    index->calibrate(q.n, q.x.data(), 7);
    const std::string report = index->calibration.report();
    for (const char* part :
         {"60 queries given",
          "recall@7",
          "3000 vectors",
          "distance        fixed",
          "log_likelihood  fixed",
          "scale_free      mass",
          "cell_distance   fixed",
          "cell_posterior  fixed",
          "cell_posterior  mass",
          "chosen",
          "0.95"}) {
        EXPECT_NE(report.find(part), std::string::npos) << part << report;
    }
    // what is chosen costs least, and k-means' order is among the candidates
    for (float target : {0.5f, 0.9f, 0.99f}) {
        const auto choice = index->calibration.choose(target);
        EXPECT_GE(choice.recall, target - 1e-4f);
        Calibration plain = index->calibration;
        std::erase_if(plain.candidates, [](const auto& c) {
            return c.order != ProbeOrder::distance;
        });
        ASSERT_EQ(plain.candidates.size(), 1u);
        EXPECT_LE(choice.distances, plain.choose(target).distances);
    }
    for (const auto& c : index->calibration.candidates) {
        for (size_t p = 1; p < c.curve.size(); p++) {
            EXPECT_GE(c.curve[p].recall, c.curve[p - 1].recall);
            EXPECT_GE(c.curve[p].distances, c.curve[p - 1].distances);
        }
        EXPECT_EQ(c.curve.back().recall, 1);
        EXPECT_LE(c.curve.back().distances, 3000);
    }
}

TEST(Calibration, ChoosesByInterpolatedCost) {
    Calibration c;
    EXPECT_FAISS_ERROR(c.choose(0.9f), "calibrat");
    c.fitted = true;
    c.candidates = {
            {ProbeOrder::distance,
             false,
             {{1, 0.4f, 100, 100}, {2, 0.8f, 200, 200}, {8, 1, 800, 800}}},
            {ProbeOrder::cell_posterior,
             true,
             {{0.5f, 0.5f, 140, 150},
              {0.9f, 0.9f, 200, 230},
              {1, 1, 700, 800}}}};
    auto choice = c.choose(0.6f); // 150 by lists, 170 by mass
    EXPECT_EQ(choice.order, ProbeOrder::distance);
    EXPECT_FALSE(choice.by_mass);
    EXPECT_NEAR(choice.parameter, 1.5, 1e-5);
    EXPECT_NEAR(choice.cost, 150, 1e-3);
    choice = c.choose(0.85f); // 350 by lists, 220 by mass
    EXPECT_EQ(choice.order, ProbeOrder::cell_posterior);
    EXPECT_TRUE(choice.by_mass);
    EXPECT_NEAR(choice.parameter, 0.85, 1e-5);
    EXPECT_NEAR(choice.distances, 192.5, 1e-3);
    EXPECT_NEAR(choice.cost, 220, 1e-3);
    EXPECT_EQ(c.choose(0.1f).parameter, 1); // no less than a list
    for (float bad : {0.0f, -1.0f, 1.1f, std::nanf("")}) {
        EXPECT_FAISS_ERROR(c.choose(bad), "target_recall = ");
    }
    EXPECT_EQ(c.best_order(200), ProbeOrder::distance);
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

TEST(Calibration, LinearFitIsLeastSquares) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> rows, target;
    for (int i = 0; i < 500; i++) {
        const float a = normal(rng), b = 3 + 0.1f * normal(rng);
        rows.insert(rows.end(), {1, a, b});
        target.push_back(2 - 3 * a + 0.5f * b);
    }
    float w[3];
    fit_linear(500, 3, rows.data(), target.data(), w);
    EXPECT_NEAR(w[0], 2, 0.02);
    EXPECT_NEAR(w[1], -3, 1e-3);
    EXPECT_NEAR(w[2], 0.5, 0.01);
}

TEST(Calibration, LogisticFitIsMaximumLikelihood) {
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;
    std::vector<float> rows, target, separable;
    for (int i = 0; i < 4000; i++) {
        const float a = normal(rng), b = normal(rng);
        rows.insert(rows.end(), {1, a, b});
        target.push_back(1 / (1 + std::exp(-(0.5f - a + 2 * b))));
        separable.push_back(b > 0 ? 1.0f : 0.0f);
    }
    float w[3];
    fit_logistic(4000, 3, rows.data(), target.data(), w);
    EXPECT_NEAR(w[0], 0.5, 0.05);
    EXPECT_NEAR(w[1], -1, 0.05);
    EXPECT_NEAR(w[2], 2, 0.05);
    // where no maximum is finite the ridge gives one
    fit_logistic(4000, 3, rows.data(), separable.data(), w);
    EXPECT_TRUE(std::isfinite(w[2]) && w[2] > 5) << w[2];
    const std::vector<float> none(4000, 0.0f);
    fit_logistic(4000, 3, rows.data(), none.data(), w);
    EXPECT_LT(w[0], -3);
    fit_logistic(0, 3, nullptr, nullptr, w);
    EXPECT_EQ(w[0], 0);
}

} // namespace
} // namespace faiss_ext
