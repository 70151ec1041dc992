// What calibration promises, on data made to break it.
#include <algorithm>
#include <cmath>
#include <random>

#include "IvfTestTools.h"
#include "faiss_ext/Calibration.h"

namespace faiss_ext {
namespace {

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

/// Without queries of the user's, which are of the vectors' own kind.
TEST(Calibration, QueriesOfTheVectorsKindAreServedAtEverySize) {
    for (size_t n : {5000, 20000}) {
        for (size_t d : {16, 32}) {
            for (float sigma : {1.0f, 4.0f}) {
                const Vectors all =
                        gaussians(n + 500, d, std::vector<float>(50, sigma));
                const Vectors x = rows_of(all, 0, n);
                const Vectors q = rows_of(all, n, n + 500);
                auto index = trained(x, n / 100);
                index->calibrate_on_add = true;
                index->calibration.costs = {3000, 1, 30, 10};
                index->add(n, x.x.data());
                for (size_t k : {1, 10, 100}) {
                    SearchParametersIVFGMM params;
                    params.nprobe = index->nlist;
                    const Found truth = find(*index, q, k, &params);
                    for (float target : {0.8f, 0.9f, 0.95f}) {
                        params.target_recall = target;
                        EXPECT_GE(
                                outcome(*index, q, truth, params).recall,
                                target - 0.02)
                                << n << " x " << d << ", sigma " << sigma
                                << ", k " << k;
                    }
                }
            }
        }
    }
}

/// Where all vectors are about as far, whoever finds nearly all looks at nearly
/// all codes: still few vectors.
TEST(Calibration, NoiseIsSearchedByCodesWhateverTheTarget) {
    for (auto [d, nlist] : {std::pair(24, 16), std::pair(64, 64)}) {
        const Vectors all = gaussians(8200, d, {1.0f});
        const Vectors x = rows_of(all, 0, 8000);
        const Vectors q = rows_of(all, 8000, 8200);
        auto index = trained(x, nlist);
        index->calibrate_on_add = true;
        index->calibration.costs = {3000, 1, 30, 10};
        index->add(x.n, x.x.data());
        for (size_t k : {1, 10}) {
            SearchParametersIVFGMM params;
            params.nprobe = index->nlist;
            const Found truth = find(*index, q, k, &params);
            for (float target : {0.9f, 0.95f, 0.99f}) {
                params.target_recall = target;
                const Outcome o = outcome(*index, q, truth, params);
                EXPECT_GE(o.recall, target - 0.02) << d << " " << k;
                EXPECT_LT(o.distances, x.n / 10)
                        << d << " dimensions, k " << k << ", " << target;
            }
        }
    }
}

TEST(Calibration, AThousandNeighboursWhereTenWereAskedFor) {
    const Vectors all = sift_base(21000);
    const Vectors x = rows_of(all, 0, 20000);
    const Vectors q = rows_of(all, 20000, 20100);
    auto index = trained(x, 128);
    index->calibration.costs = {3000, 1, 30, 10};
    index->add(x.n, x.x.data());
    index->calibrate(400, all.row(20500), 10);
    for (size_t k : {200, 1000}) {
        SearchParametersIVFGMM params;
        params.nprobe = index->nlist;
        const Found truth = find(*index, q, k, &params);
        for (float target : {0.8f, 0.9f, 0.95f, 0.99f}) {
            params.target_recall = target;
            const Outcome o = outcome(*index, q, truth, params);
            EXPECT_GE(o.recall, target - 0.02) << k;
            EXPECT_LT(o.distances, x.n / 4) << k << " " << target;
        }
    }
}

} // namespace
} // namespace faiss_ext
