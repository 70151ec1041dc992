// Trainings on few vectors, copies, weights far apart; and how they end.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "Covariances.h"
#include "EMTrainer.h"
#include "FullCovariance.h"
#include "MixtureTools.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::EStep;
using gmm::GaussianMixture;
using gmm::Initialisation;
using gmm::TrainingOptions;
using gmm::TrainingResult;

namespace {

TrainingResult fit(
        const RealData& data,
        size_t k,
        const TrainingOptions& options,
        const float* weights = nullptr,
        const GaussianMixture* start = nullptr) {
    const auto backend = gmm::make_cpu_backend();
    return train(*data.source(), weights, k, options, *backend, start);
}

/// Around n_groups points, of deviation 1, that are `apart`.
RealData groups(
        size_t n, size_t d, size_t n_groups, float apart, uint32_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centres(n_groups * d);
    for (float& v : centres) {
        v = apart * normal(random);
    }
    RealData out(n, d, std::vector<float>(n * d));
    for (size_t i = 0; i < n; i++) {
        const size_t g = random() % n_groups;
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = centres[g * d + j] + normal(random);
        }
    }
    return out;
}

} // namespace

/// A component that is put elsewhere makes the next likelihood a lower one.
TEST(OddTrainings, DoNotConvergeAfterARestart) {
    size_t restarts = 0;
    for (uint32_t seed = 0; seed < 10; seed++) {
        for (size_t k : {20, 50, 100}) {
            const RealData data = groups(200, 3, 3, 2, seed);
            TrainingOptions options;
            options.niter = 200;
            options.seed = seed;
            const TrainingResult r = fit(data, k, options);
            std::vector<size_t> reseeded;
            for (const auto& it : r.iterations) {
                if (it.step == EStep::soft) {
                    reseeded.push_back(it.reseeded);
                    restarts += it.reseeded;
                }
            }
            if (r.converged) {
                ASSERT_GE(reseeded.size(), 2u);
                EXPECT_EQ(reseeded[reseeded.size() - 1], 0u);
                EXPECT_EQ(reseeded[reseeded.size() - 2], 0u);
            }
        }
    }
    EXPECT_GT(restarts, 0u);
}

TEST(OddTrainings, EndForOneReason) {
    const RealData data = sift(2000, 16);
    TrainingOptions options;
    options.niter = 200;
    options.tolerance = 1e-3;
    options.last_hard_iterations = 2;
    bool soft_seen = false;
    options.progress = [&](const gmm::TrainingIteration& it) {
        soft_seen |= it.step == EStep::soft;
        return it.step == EStep::soft || !soft_seen; // not the last ones
    };
    const TrainingResult r = fit(data, 5, options);
    EXPECT_LT(r.n_iter(), 200);
    EXPECT_EQ(r.stop, gmm::Stop::callback);
    EXPECT_FALSE(r.converged);
}

/// From a mixture of other vectors of the same groups: it ends where a training
/// of its own does, sooner.
TEST(OddTrainings, AMixtureIsTakenUpOnOtherVectors) {
    constexpr size_t k = 8, d = 6, n = 1000;
    const RealData all = groups(2 * n, d, k, 10, 3);
    for (Covariance covariance : kAll) {
        TrainingOptions options;
        options.covariance = covariance;
        options.niter = 100;
        options.init = Initialisation::kmeans_plus_plus;
        RealData data(n, d, {all.x.begin(), all.x.begin() + n * d});
        const GaussianMixture before = fit(data, k, options).model;
        for (float moved : {0.0f, 1.5f}) {
            for (float wider : {0.2f, 1.0f, 3.0f}) {
                for (size_t i = 0; i < n; i++) {
                    size_t nearest = 0;
                    double best = HUGE_VAL;
                    const float* x = &all.x[(n + i) * d];
                    for (size_t c = 0; c < k; c++) {
                        double r2 = 0;
                        for (size_t j = 0; j < d; j++) {
                            r2 += std::pow(x[j] - before.means[c * d + j], 2);
                        }
                        if (r2 < best) {
                            best = r2;
                            nearest = c;
                        }
                    }
                    for (size_t j = 0; j < d; j++) {
                        const float m = before.means[nearest * d + j];
                        data.x[i * d + j] = m + moved + wider * (x[j] - m);
                    }
                }
                options.init = Initialisation::kmeans_plus_plus;
                const TrainingResult own = fit(data, k, options);
                options.init = Initialisation::given_means;
                const TrainingResult r =
                        fit(data, k, options, nullptr, &before);
                EXPECT_TRUE(r.converged);
                EXPECT_LT(r.iterations.size(), own.iterations.size());
                EXPECT_GT(r.lower_bound(), own.lower_bound() - 0.01)
                        << to_string(covariance) << " " << moved << " "
                        << wider;
            }
        }
    }
}

TEST(OddTrainings, LightGroupsBesideHeavyOnesLive) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    RealData light(50, 2, {});
    std::vector<float> weights;
    for (size_t i = 0; i < light.n; i++) {
        const float at = i < 40 ? 0.0f : 10.0f;
        light.x.push_back(at + normal(random));
        light.x.push_back(at + normal(random));
        weights.push_back(i < 40 ? 1.0f : 1000.0f);
    }
    GaussianMixture start;
    start.k = start.d = 2;
    start.means = {0, 0, 10, 10};
    TrainingOptions options;
    options.init = Initialisation::given_means;
    const auto m = fit(light, 2, options, weights.data(), &start).model;
    for (size_t j = 0; j < 2; j++) {
        EXPECT_NEAR(m.means[j], 0, 1);
        EXPECT_NEAR(m.means[2 + j], 10, 1);
    }
    EXPECT_NEAR(std::exp(m.log_weights[0]), 40.0 / 10040, 1e-4);
}

/// What sums of floats leave of a scatter that is none is not one.
TEST(OddTrainings, FullCovariancesOfCopiesAndOutliers) {
    for (size_t d : {2, 5, 20, 32}) {
        for (uint32_t seed = 0; seed < 5; seed++) {
            SCOPED_TRACE(testing::Message() << d << ", seed " << seed);
            TrainingOptions options;
            options.covariance = Covariance::full;
            options.seed = seed;
            RealData copies = groups(2000, d, 3, 3, seed);
            for (float& v : copies.x) {
                v += 10;
            }
            std::fill_n(copies.x.begin(), 20 * d, 0.0f);
            EXPECT_NO_THROW(fit(copies, 8, options));
            for (float far : {100.0f, 1000.0f, 1e4f}) {
                RealData outlier = groups(2000, d, 3, 3, seed);
                std::fill_n(outlier.x.begin() + 7 * d, d, far);
                EXPECT_NO_THROW(fit(outlier, 5, options)) << far;
            }
        }
    }
}

/// Groups 1e5 deviations apart have the variances of their own vectors.
TEST(OddTrainings, GroupsFarApart) {
    const size_t d = 4, k = 3;
    for (float apart : {1e3f, 1e4f, 1e5f}) {
        const RealData data = groups(6000, d, k, apart, 3);
        for (int kind = 0; kind <= int(Covariance::tied); kind++) {
            TrainingOptions options;
            options.covariance = Covariance(kind);
            options.init = Initialisation::kmeans_plus_plus;
            const GaussianMixture m = fit(data, k, options).model;
            for (size_t c = 0; c < k; c++) {
                for (double v : component_variances(m, c)) {
                    EXPECT_NEAR(v, 1, 0.15) << apart << ", " << kind;
                }
            }
        }
    }
}

/// Of a column that follows from another but for little, that little.
TEST(OddTrainings, ColumnsThatNearlyFollowFromOthers) {
    const size_t n = 3000;
    for (size_t d : {2, 6, 16, 32, 33}) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        RealData data(n, d, std::vector<float>(n * d));
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            float* const row = &data.x[i * d];
            std::generate_n(row, d - 1, [&] { return normal(random); });
            row[d - 1] = row[0] + 1e-4f * normal(random);
            const double left = double(row[d - 1]) - row[0];
            sum += left;
            squares += left * left;
        }
        const double expected = squares / n - sum * sum / n / n;
        TrainingOptions options;
        options.covariance = Covariance::full;
        options.variance_floor = 1e-12;
        const GaussianMixture m = fit(data, 1, options).model;
        const std::vector<double> c = covariance_matrix(m, 0);
        const size_t last = d * d - 1;
        EXPECT_NEAR((c[0] + c[last] - 2 * c[d - 1]) / expected, 1, 0.02) << d;
    }
}

/// The floor of a dimension's variance is in that dimension's unit.
TEST(OddTrainings, DimensionsOfOtherUnits) {
    const size_t n = 4000, d = 4;
    std::mt19937_64 random(5);
    std::normal_distribution<float> normal;
    RealData same(n, d, std::vector<float>(n * d));
    for (size_t i = 0; i < n; i++) {
        const float side = i % 2 ? 4 : -4;
        for (size_t j = 0; j < d; j++) {
            same.x[i * d + j] = normal(random) + (j == 1 ? side : 0);
        }
    }
    const double unit[] = {1000, 1, 1, 0.1};
    RealData other = same;
    double log_volume = 0;
    for (size_t i = 0; i < n * d; i++) {
        other.x[i] *= float(unit[i % d]);
    }
    for (double u : unit) {
        log_volume += std::log(u);
    }
    const auto backend = gmm::make_cpu_backend();
    for (Covariance covariance :
         {Covariance::diagonal, Covariance::full, Covariance::tied}) {
        TrainingOptions options;
        options.covariance = covariance;
        options.init = Initialisation::given_means;
        options.hard_iterations = 0;
        options.niter = 50;
        GaussianMixture start;
        start.d = d;
        start.k = 2;
        start.covariance = covariance;
        start.means = {0, -1, 0, 0, 0, 1, 0, 0};
        const auto reached = [&](const RealData& data) {
            return score(
                    fit(data, 2, options, nullptr, &start).model,
                    *data.source(),
                    nullptr,
                    *backend);
        };
        const double expected = reached(same);
        EXPECT_NEAR(reached(other) + log_volume, expected, 0.02)
                << int(covariance);
    }
}

/// However small it is beside the others': a price beside a time in seconds.
TEST(OddTrainings, ANarrowDimensionBesideAWideOne) {
    const size_t n = 2000, d = 2;
    for (float unit : {1e4f, 1e6f, 1e8f}) {
        std::mt19937_64 random(1);
        std::normal_distribution<float> normal;
        RealData data(n, d, std::vector<float>(n * d));
        for (size_t i = 0; i < n; i++) {
            data.x[2 * i] = unit * normal(random);
            data.x[2 * i + 1] = (i % 2 ? 1 : 5) + 0.3f * normal(random);
        }
        for (Covariance covariance :
             {Covariance::diagonal, Covariance::full, Covariance::tied}) {
            TrainingOptions options;
            options.covariance = covariance;
            options.init = Initialisation::given_means;
            options.hard_iterations = 0;
            options.niter = 50;
            GaussianMixture start;
            start.d = d;
            start.k = 2;
            start.covariance = covariance;
            start.means = {0, 1, 0, 5};
            const GaussianMixture model =
                    fit(data, 2, options, nullptr, &start).model;
            for (size_t c = 0; c < 2; c++) {
                EXPECT_NEAR(model.means[2 * c + 1], c ? 5 : 1, 0.05)
                        << unit << " " << int(covariance);
                EXPECT_NEAR(gmm::component_variances(model, c)[1], 0.09, 0.015)
                        << unit << " " << int(covariance);
            }
        }
    }
}

/// One variance for all is not that of a vector far away.
TEST(OddTrainings, OneVarianceForAllBesideAnOutlier) {
    for (size_t n : {600, 10000}) {
        RealData data = groups(n, 2, 3, 8, 3);
        data.x[0] = data.x[1] = 1e6f;
        for (Covariance covariance :
             {Covariance::tied, Covariance::tied_spherical}) {
            TrainingOptions options;
            options.covariance = covariance;
            options.niter = 100;
            const GaussianMixture model = fit(data, 4, options).model;
            for (double variance : gmm::component_variances(model, 0)) {
                EXPECT_GT(variance, 0.5) << n << " " << int(covariance);
                EXPECT_LT(variance, 3) << n << " " << int(covariance);
            }
        }
    }
}

/// What all components share is held up by one floor, which stays where it is:
/// of equal vectors, a few of which are elsewhere.
TEST(OddTrainings, LikelihoodsOfTiedKindsDoNotFall) {
    size_t compared = 0;
    for (uint32_t seed = 0; seed < 60; seed++) {
        const size_t d = 1 + seed % 3, n_distinct = 6 + 6 * (seed % 2);
        const size_t n = 20 * n_distinct;
        std::mt19937_64 random(seed);
        std::normal_distribution<float> normal;
        RealData data(n, d, std::vector<float>(n * d));
        for (size_t i = 0; i < n * d; i++) {
            data.x[i] = i < n_distinct * d ? 3 * normal(random)
                                           : data.x[i - n_distinct * d];
        }
        for (size_t i = 0; i < n; i += 7) {
            data.x[i * d] += normal(random);
        }
        for (auto covariance : {Covariance::tied_spherical, Covariance::tied}) {
            TrainingOptions options;
            options.covariance = covariance;
            options.niter = 60;
            options.tolerance = 0;
            options.seed = seed;
            const auto its = fit(data, 4 + seed % 8, options).iterations;
            for (size_t i = 1; i < its.size(); i++) {
                if (its[i - 1].step == EStep::soft &&
                    its[i].step == EStep::soft && its[i - 1].reseeded == 0) {
                    EXPECT_GE(its[i].objective, its[i - 1].objective - 1e-3)
                            << seed << ", " << to_string(covariance);
                    compared++;
                }
            }
        }
    }
    EXPECT_GT(compared, 1000u);
}

/// What is fitted is the spread around the means that are left.
TEST(OddTrainings, ProjectedMeansHaveTheirOwnSpread) {
    const size_t d = 24, k = 30;
    const auto project = [&](float* x, size_t n) {
        for (size_t i = 0; i < n; i++) {
            double norm2 = 0;
            for (size_t j = 0; j < d; j++) {
                norm2 += double(x[i * d + j]) * x[i * d + j];
            }
            for (size_t j = 0; j < d; j++) {
                x[i * d + j] /= float(std::sqrt(norm2));
            }
        }
    };
    RealData data = groups(4000, d, k, 1, 1);
    project(data.x.data(), data.n);
    const auto backend = gmm::make_cpu_backend();
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal, Covariance::full}) {
        TrainingOptions options;
        options.covariance = covariance;
        options.project_means = [&](float* means) { project(means, k); };
        const GaussianMixture m = fit(data, k, options).model;
        options.init = Initialisation::given_means;
        options.update_means = false;
        const GaussianMixture refitted =
                fit(data, k, options, nullptr, &m).model;
        EXPECT_NEAR(
                score(m, *data.source(), nullptr, *backend),
                score(refitted, *data.source(), nullptr, *backend),
                0.08)
                << int(covariance);
    }
}

/// A component of one heavy row and light ones varies so little that sums in
/// double hardly hold it.
TEST(OddTrainings, MatricesOfWeightsFarApart) {
    const size_t d = 50;
    for (uint64_t seed = 0; seed < 20; seed++) {
        std::mt19937_64 random(seed);
        std::normal_distribution<float> normal;
        RealData data{150, d, std::vector<float>(150 * d)};
        for (size_t i = 0; i < data.x.size(); i++) {
            data.x[i] = (i / d % 2 ? 1e3f : -1e3f) + normal(random);
        }
        std::vector<float> weights(data.n);
        for (float& w : weights) {
            w = std::pow(10.0f, float(random() % 13) - 6);
        }
        for (Covariance covariance : {Covariance::full, Covariance::tied}) {
            TrainingOptions options;
            options.covariance = covariance;
            options.hard_iterations = int(seed % 3);
            options.seed = seed;
            EXPECT_NO_THROW(fit(data, 17, options, weights.data())) << seed;
        }
    }
}

/// By threads of the caller's own, whose numbers are beyond that of the threads
/// that each may use.
TEST(OddTrainings, SideBySide) {
    const RealData data = sift(600, 8);
    const auto train_all = [&] {
        std::vector<float> out;
        for (Covariance covariance :
             {Covariance::isotropic, Covariance::full, Covariance::tied}) {
            TrainingOptions options;
            options.covariance = covariance;
            options.niter = 3;
            for (size_t k : {1, 6}) {
                const auto m = fit(data, k, options).model;
                out.insert(out.end(), m.means.begin(), m.means.end());
                std::vector<float> p(data.n * k);
                const auto backend = gmm::make_cpu_backend();
                predict_proba(m, *data.source(), *backend, p.data());
                out.insert(out.end(), p.begin(), p.end());
            }
        }
        return out;
    };
    const std::vector<float> expected = train_all();
    std::vector<std::vector<float>> found(6);
#pragma omp parallel num_threads(6)
    {
        omp_set_num_threads(1);
        found[omp_get_thread_num()] = train_all();
    }
    for (const auto& of_one : found) {
        if (!of_one.empty()) { // fewer threads may have come
            EXPECT_EQ(of_one, expected);
        }
    }
}
