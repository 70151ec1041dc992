#include "TrainingTools.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <unistd.h>

#include <cfloat>
#include <cmath>
#include <fstream>
#include <limits>
#include <mutex>
#include <random>

#include "ExpectInvalid.h"
#include "FullCovariance.h"
#include "MixtureTools.h"
#include "ProcessMemory.h"
#include "TemporaryFolder.h"

using gmm::EStep;
using gmm::TrainingIteration;

TEST(EMTrainer, LikelihoodNeverFalls) {
    for (const RealData& data : {sift(6001), patches(2999), sift(5003, 3)}) {
        for (Covariance covariance : kAll) {
            for (size_t k : {1, 7, 64}) {
                TrainingOptions options;
                options.covariance = covariance;
                options.niter = 12;
                options.tolerance = 0;
                const TrainingResult r = fit(*data.source(), k, options);
                ASSERT_EQ(r.iterations.size(), 17u);
                for (size_t i = 6; i < r.iterations.size(); i++) {
                    if (r.iterations[i - 1].reseeded == 0) {
                        EXPECT_GE(
                                r.iterations[i].objective,
                                r.iterations[i - 1].objective - 1e-4);
                    }
                }
                EXPECT_EQ(r.iterations[4].step, EStep::hard);
                EXPECT_EQ(r.iterations[5].step, EStep::soft);
                EXPECT_GE(
                        mean_log_prob(data, r.model),
                        r.iterations.back().objective - 1e-3);
            }
        }
    }
}

TEST(EMTrainer, HardIterationsReduceTheDistance) {
    const RealData data = sift(5000);
    TrainingOptions options;
    options.hard_iterations = 8;
    options.niter = 0;
    const TrainingResult r = fit(*data.source(), 50, options);
    ASSERT_EQ(r.iterations.size(), 8u);
    for (size_t i = 1; i < 8; i++) {
        EXPECT_LE(
                r.iterations[i].objective,
                r.iterations[i - 1].objective * (1 + 1e-6));
    }
    EXPECT_GE(r.iterations[7].imbalance, 1.0);
}

TEST(EMTrainer, FindsTheMixtureThatMadeTheData) {
    // Well apart, so that the maximum is known.
    std::vector<float> x;
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    const float centers[] = {-50, 0, 80}, sigma[] = {1, 4, 2};
    const size_t count[] = {1000, 3000, 6000};
    for (int c = 0; c < 3; c++) {
        for (size_t i = 0; i < 2 * count[c]; i++) {
            x.push_back(centers[c] + sigma[c] * normal(random));
        }
    }
    TrainingOptions options;
    options.tolerance = 1e-7;
    options.variance_floor = 1e-6;
    options.init = Initialisation::kmeans_plus_plus;
    const auto source = gmm::memory_source(x.data(), 10'000, 2);
    const TrainingResult r = fit(*source, 3, options);
    EXPECT_TRUE(r.converged);
    for (int c = 0; c < 3; c++) {
        size_t nearest = 0;
        for (size_t i = 1; i < 3; i++) {
            if (std::abs(r.model.means[2 * i] - centers[c]) <
                std::abs(r.model.means[2 * nearest] - centers[c])) {
                nearest = i;
            }
        }
        EXPECT_NEAR(r.model.means[2 * nearest], centers[c], 0.3);
        EXPECT_NEAR(r.model.means[2 * nearest + 1], centers[c], 0.3);
        EXPECT_NEAR(
                std::sqrt(r.model.variances[nearest]),
                sigma[c],
                0.05 * sigma[c]);
        EXPECT_NEAR(
                std::exp(r.model.log_weights[nearest]), count[c] / 1e4, 1e-3);
    }
}

TEST(EMTrainer, KMeansPlusPlusFindsGroupsThatARandomSubsetMisses) {
    // 40 small groups far apart, one at each of 40 descriptors.
    const RealData centers = sift(40);
    RealData data = sift(4000);
    for (size_t i = 0; i < data.x.size(); i++) {
        const size_t group = i / data.d % 40;
        data.x[i] = centers.x[group * data.d + i % data.d] + 0.01f * data.x[i];
    }
    double objective[2] = {0, 0};
    for (Initialisation init :
         {Initialisation::kmeans_plus_plus, Initialisation::random_subset}) {
        TrainingOptions options;
        options.init = init;
        options.hard_iterations = 1;
        options.niter = 0;
        objective[int(init)] =
                fit(*data.source(), 40, options).iterations[0].objective;
    }
    EXPECT_LT(objective[0], 0.1 * objective[1]);
}

TEST(EMTrainer, SameSeedSameBits) {
    const RealData data = sift(5003);
    for (Initialisation init :
         {Initialisation::kmeans_plus_plus, Initialisation::random_subset}) {
        TrainingOptions options;
        options.init = init;
        options.niter = 3;
        const GaussianMixture first = fit(*data.source(), 60, options).model;
        const int threads = omp_get_max_threads();
        omp_set_num_threads(3);
        const GaussianMixture second = fit(*data.source(), 60, options).model;
        omp_set_num_threads(threads);
        EXPECT_EQ(first.means, second.means);
        EXPECT_EQ(first.variances, second.variances);
        EXPECT_EQ(first.log_weights, second.log_weights);
        options.seed++;
        EXPECT_NE(fit(*data.source(), 60, options).model.means, first.means);
    }
}

TEST(EMTrainer, ResultDoesNotDependOnTheUnit) {
    const RealData data = patches(3000);
    RealData moved = data;
    for (float& x : moved.x) {
        x = x * 1024 + 4096;
    }
    TrainingOptions options;
    options.niter = 4;
    const GaussianMixture a = fit(*data.source(), 20, options).model;
    const GaussianMixture b = fit(*moved.source(), 20, options).model;
    for (size_t i = 0; i < a.means.size(); i++) {
        EXPECT_NEAR(b.means[i], a.means[i] * 1024 + 4096, 2);
    }
    for (size_t i = 0; i < a.variances.size(); i++) {
        const double expected = double(a.variances[i]) * 1024 * 1024;
        EXPECT_NEAR(b.variances[i], expected, 0.02 * expected);
    }
}

TEST(EMTrainer, FixedMeansStayBitForBit) {
    const RealData data = sift(3000);
    const GaussianMixture start = means_only(data, 25);
    for (Covariance covariance : kAll) {
        TrainingOptions options;
        options.covariance = covariance;
        options.init = Initialisation::given_means;
        options.update_means = false;
        options.niter = 6;
        options.tolerance = 0;
        const TrainingResult r =
                fit(*data.source(), 25, options, nullptr, &start);
        EXPECT_EQ(r.model.means, start.means);
        ASSERT_EQ(r.iterations.size(), 6u);
        EXPECT_GT(r.iterations[5].objective, r.iterations[0].objective);
        EXPECT_EQ(r.iterations[0].step, EStep::soft);
    }
}

TEST(EMTrainer, AFullModelIsTakenUpWhereItWasLeft) {
    const RealData data = sift(3000);
    for (Covariance covariance : kAll) {
        TrainingOptions options;
        options.covariance = covariance;
        options.niter = 4;
        options.tolerance = 0;
        const TrainingResult first = fit(*data.source(), 25, options);
        options.init = Initialisation::given_means;
        options.niter = 1;
        const TrainingResult second =
                fit(*data.source(), 25, options, nullptr, &first.model);
        ASSERT_EQ(second.iterations.size(), 1u);
        EXPECT_NEAR(
                second.iterations[0].objective,
                mean_log_prob(data, first.model),
                1e-3);
        // full, with 120 vectors a component, has nothing left to gain
        EXPECT_GT(
                second.iterations[0].objective,
                first.iterations.back().objective -
                        (covariance == Covariance::full ? 1e-3 : 0));
    }
}

TEST(EMTrainer, GivenWeightsAreKeptWhereVariancesAreNot) {
    const RealData data = sift(3000);
    GaussianMixture start = means_only(data, 2);
    start.log_weights = {std::log(0.9f), std::log(0.1f)};
    TrainingOptions options;
    options.init = Initialisation::given_means;
    options.hard_iterations = 0;
    options.niter = 0;
    const TrainingResult r = fit(*data.source(), 2, options, nullptr, &start);
    EXPECT_EQ(r.model.log_weights, start.log_weights);
    EXPECT_GT(r.model.variances[0], 10);
}

/// Where they are does not matter.
TEST(EMTrainer, RowsWithoutWeightMayBeFarAway) {
    const RealData data = sift(1000, 8);
    RealData far(data.n + 2, data.d, std::vector<float>(2 * data.d, FLT_MAX));
    far.x.insert(far.x.end(), data.x.begin(), data.x.end());
    for (float& v : far.x) {
        v *= v < FLT_MAX ? 1e-3f : 1; // the frame's units are larger numbers
    }
    std::vector<float> weights(far.n, 1);
    weights[0] = weights[1] = 0;
    const RealData near(
            data.n,
            data.d,
            std::vector<float>(far.x.begin() + 2 * data.d, far.x.end()));
    for (auto covariance : kAll) {
        TrainingOptions options;
        options.covariance = covariance;
        options.niter = 5;
        options.tolerance = 0;
        GaussianMixture start = means_only(near, 4);
        options.init = Initialisation::given_means;
        const auto a = fit(*far.source(), 4, options, weights.data(), &start);
        const auto b = fit(*near.source(), 4, options, nullptr, &start);
        EXPECT_NEAR(a.lower_bound(), b.lower_bound(), 1e-4)
                << to_string(covariance);
        const auto backend = gmm::make_cpu_backend();
        EXPECT_NEAR(
                score(b.model, *far.source(), weights.data(), *backend),
                score(b.model, *near.source(), nullptr, *backend),
                1e-4)
                << to_string(covariance);
    }
}

TEST(EMTrainer, WeightsCountAsCopies) {
    const RealData data = sift(2000);
    std::vector<float> weights(data.n), copies;
    for (size_t i = 0; i < data.n; i++) {
        weights[i] = float(1 + i % 3);
        for (size_t r = 0; r < 1 + i % 3; r++) {
            copies.insert(
                    copies.end(),
                    data.x.begin() + i * data.d,
                    data.x.begin() + (i + 1) * data.d);
        }
    }
    const GaussianMixture start = means_only(data, 12);
    TrainingOptions options;
    options.init = Initialisation::given_means;
    options.niter = 3;
    options.tolerance = 0;
    const auto copied =
            gmm::memory_source(copies.data(), copies.size() / data.d, data.d);
    const auto a = fit(*data.source(), 12, options, weights.data(), &start);
    const auto b = fit(*copied, 12, options, nullptr, &start);
    for (size_t i = 0; i < a.model.means.size(); i++) {
        EXPECT_NEAR(a.model.means[i], b.model.means[i], 0.02);
    }
    // Weights that sum to 1 are no reason for every component to be dead.
    for (float& w : weights) {
        w *= 1e-4f;
    }
    const auto c = fit(*data.source(), 12, options, weights.data(), &start);
    EXPECT_EQ(c.iterations[0].reseeded, 0u);
    for (size_t i = 0; i < a.model.means.size(); i++) {
        EXPECT_NEAR(a.model.means[i], c.model.means[i], 0.02);
    }
}

TEST(EMTrainer, VectorsOfWeightZeroAreNotSeen) {
    RealData data = sift(2000);
    std::vector<float> weights(data.n, 1.0f);
    for (size_t i = 0; i < data.n; i += 2) {
        weights[i] = 0;
        std::fill_n(data.x.begin() + i * data.d, data.d, 1e12f);
    }
    for (Initialisation init :
         {Initialisation::kmeans_plus_plus, Initialisation::random_subset}) {
        TrainingOptions options;
        options.init = init;
        const auto r = fit(*data.source(), 20, options, weights.data());
        for (float mean : r.model.means) {
            EXPECT_LE(mean, 255.5f);
        }
        for (float variance : r.model.variances) {
            EXPECT_LE(variance, 1e4f);
        }
    }
}

TEST(EMTrainer, ProjectedMeansAreProjectedExactly) {
    const RealData data = sift(2000);
    TrainingOptions options;
    options.niter = 3;
    options.project_means = [&](float* means) {
        for (size_t i = 0; i < 15 * data.d; i++) {
            means[i] = std::round(means[i]);
        }
    };
    const GaussianMixture m = fit(*data.source(), 15, options).model;
    for (float mean : m.means) {
        EXPECT_EQ(mean, std::round(mean));
    }
}

TEST(EMTrainer, ProgressStopsTheTraining) {
    const RealData data = sift(2000);
    for (size_t wanted : {1, 3, 7}) {
        std::vector<double> seen;
        TrainingOptions options;
        options.progress = [&](const TrainingIteration& it) {
            EXPECT_GE(it.seconds, it.e_seconds);
            seen.push_back(it.objective);
            return seen.size() < wanted;
        };
        const TrainingResult r = fit(*data.source(), 15, options);
        ASSERT_EQ(r.iterations.size(), wanted);
        for (size_t i = 0; i < wanted; i++) {
            EXPECT_EQ(seen[i], r.iterations[i].objective);
        }
        EXPECT_EQ(r.stop, gmm::Stop::callback);
        EXPECT_FALSE(r.converged);
        EXPECT_NO_THROW(r.model.validate());
    }
    TrainingOptions options;
    options.progress = [](const TrainingIteration&) -> bool {
        throw std::runtime_error("interrupted");
    };
    EXPECT_THROW(fit(*data.source(), 15, options), std::runtime_error);
}

TEST(EMTrainer, StopsWhenTheLikelihoodNoLongerGains) {
    const RealData data = sift(2000);
    TrainingOptions options;
    options.niter = 200;
    options.tolerance = 1e-4;
    const TrainingResult r = fit(*data.source(), 5, options);
    EXPECT_TRUE(r.converged);
    EXPECT_LT(r.iterations.size(), 200u);
}

namespace {

/// Passes rows on, and notes the memory in use whenever some are read.
struct WatchedSource : gmm::VectorSource {
    const gmm::VectorSource& inner;
    mutable std::mutex mutex;
    mutable size_t peak = 0;

    explicit WatchedSource(const gmm::VectorSource& inner) : inner(inner) {
        n = inner.n;
        d = inner.d;
        type = inner.type;
    }

    gmm::Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        std::lock_guard<std::mutex> lock(mutex);
        peak = std::max(peak, anonymous_bytes());
        return inner.rows(begin, count, scratch);
    }
};

} // namespace

TEST(EMTrainer, TrainsFromAFileInAFractionOfItsSize) {
    if (kSanitized) {
        GTEST_SKIP() << "memory is counted";
    }
    const TemporaryFolder folder;
    const std::string path = folder.file("rows.fbin");
    const uint32_t header[] = {400'000, 128};
    {
        const RealData data = sift(20'000);
        std::ofstream file(path, std::ios::binary);
        file.write(reinterpret_cast<const char*>(header), sizeof(header));
        for (int i = 0; i < 20; i++) {
            file.write(
                    reinterpret_cast<const char*>(data.x.data()),
                    data.x.size() * sizeof(float));
        }
        ASSERT_TRUE(file.good());
    }
    const auto source = gmm::file_source(path);
    const WatchedSource watched(*source);
    TrainingOptions options;
    options.niter = 1;
    options.hard_iterations = 1;
    // Each thread has blocks of its own.
    const int threads = omp_get_max_threads();
    omp_set_num_threads(std::min(threads, 2));
    const size_t before = anonymous_bytes();
    const TrainingResult r = fit(watched, 256, options);
    omp_set_num_threads(threads);
    EXPECT_EQ(r.iterations.size(), 2u);
    // Pages of the file itself can be dropped at any time.
    const size_t file_bytes = source->n * source->d * sizeof(float);
    EXPECT_GT(watched.peak, 0u);
    EXPECT_LT(watched.peak, before + file_bytes / 4);
}

TEST(EMTrainer, WrongInputIsNamed) {
    RealData data = sift(100, 4);
    const auto source = data.source();
    const TrainingOptions good;
    EXPECT_INVALID(fit(*source, 0, good), "k = 0");
    EXPECT_INVALID(fit(*source, 101, good), "k = 101");

    TrainingOptions options = good;
    options.hard_iterations = -1;
    EXPECT_INVALID(fit(*source, 5, options), "hard_iterations = -1");
    options = good;
    options.niter = -2;
    EXPECT_INVALID(fit(*source, 5, options), "niter = -2");
    options = good;
    options.tolerance = std::nan("");
    EXPECT_INVALID(fit(*source, 5, options), "tolerance = nan");
    options = good;
    options.variance_floor = 0;
    EXPECT_INVALID(fit(*source, 5, options), "variance_floor = 0");
    options = good;
    options.min_count = -1;
    EXPECT_INVALID(fit(*source, 5, options), "min_count = -1");
    options = good;
    options.covariance = Covariance(77);
    EXPECT_INVALID(fit(*source, 5, options), "covariance = 77");
    options = good;
    options.init = Initialisation(77);
    EXPECT_INVALID(fit(*source, 5, options), "init = 77");
    options.init = Initialisation::hierarchical;
    for (auto covariance : {Covariance::full, Covariance::tied}) {
        options.covariance = covariance;
        EXPECT_INVALID(fit(*source, 5, options), "init = 2");
    }

    std::vector<float> weights(data.n, 1.0f);
    weights[7] = -0.5f;
    EXPECT_INVALID(fit(*source, 5, good, weights.data()), "weights[7] = -0.5");
    weights[7] = std::numeric_limits<float>::infinity();
    EXPECT_INVALID(fit(*source, 5, good, weights.data()), "weights[7] = inf");
    std::fill(weights.begin(), weights.end(), 0.0f);
    EXPECT_INVALID(fit(*source, 5, good, weights.data()), "0 are positive");

    options = good;
    options.init = Initialisation::given_means;
    EXPECT_INVALID(fit(*source, 5, options), "start: k = 0");
    GaussianMixture start = means_only(data, 5);
    EXPECT_INVALID(fit(*source, 6, options, nullptr, &start), "start: k = 5");
    start.variances.assign(5, -1.0f);
    EXPECT_INVALID(
            fit(*source, 5, options, nullptr, &start), "variances[0] = -1");
    start.variances.assign(5, 1.0f);
    options.covariance = Covariance::diagonal;
    EXPECT_INVALID(
            fit(*source, 5, options, nullptr, &start), "covariance kind");

    data.x[4 * 42 + 3] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_INVALID(fit(*source, 5, good), "row 42, dimension 3 is nan");
    data.x[4 * 42 + 3] = -std::numeric_limits<float>::infinity();
    EXPECT_INVALID(fit(*source, 5, good), "row 42, dimension 3 is -inf");
    data.x[4 * 42 + 3] = 1e30f;
    EXPECT_INVALID(fit(*source, 5, good), "standard deviation");
    data.x[0] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_INVALID(fit(*source, 5, good), "row 0");
}
