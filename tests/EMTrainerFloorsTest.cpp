// Trainings whose groups are far apart, narrow, few, or of equal vectors: what
// floors, starts and restarts are for.
#include "TrainingTools.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "FullCovariance.h"
#include "Initialise.h"

using gmm::EStep;
using gmm::TrainingIteration;

namespace {

/// Vectors around centres of spread 1, and perhaps one far away.
RealData clusters(size_t n, size_t d, size_t k, float spread, float far = 0) {
    std::mt19937_64 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> centres(k * d);
    for (float& v : centres) {
        v = normal(random);
    }
    RealData out(n, d, std::vector<float>(n * d));
    for (size_t i = 0; i < n; i++) {
        const size_t c = random() % k;
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = centres[c * d + j] + spread * normal(random);
        }
    }
    if (far != 0) {
        out.x[n / 2 * d] = far;
    }
    return out;
}

/// Mean squared distance to the nearest mean, but for one row.
double distortion(
        const RealData& data, const std::vector<float>& means, size_t but) {
    double sum = 0;
    for (size_t i = 0; i < data.n; i++) {
        double least = HUGE_VAL;
        for (size_t c = 0; i != but && c < means.size() / data.d; c++) {
            double square = 0;
            for (size_t j = 0; j < data.d; j++) {
                const double diff =
                        double(data.x[i * data.d + j]) - means[c * data.d + j];
                square += diff * diff;
            }
            least = std::min(least, square);
        }
        sum += i != but ? least : 0;
    }
    return sum / data.n;
}

} // namespace

/// Groups so far apart that a float product tells nothing of what is within.
TEST(EMTrainerFloors, KMeansPlusPlusSeesGroupsWithinFarGroups) {
    const size_t n = 8000, d = 2, k = 8;
    RealData data(n, d, std::vector<float>(n * d));
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < n; i++) {
        data.x[i * d] = float(i % 2) * 3e5f + normal(random);
        data.x[i * d + 1] = float(i / 2 % 4) * 100 + normal(random);
    }
    TrainingOptions options;
    options.init = Initialisation::kmeans_plus_plus;
    options.niter = 30;
    for (options.seed = 1; options.seed <= 3; options.seed++) {
        const GaussianMixture m = fit(*data.source(), k, options).model;
        for (double v : mean_variances(m)) {
            EXPECT_LT(v, 1.2);
        }
    }
}

TEST(EMTrainerFloors, DegenerateData) {
    struct Shape {
        const char* name;
        RealData data;
        size_t k;
    };
    Shape shapes[] = {
            {"k = n", sift(100), 100},
            {"one vector", sift(1, 3), 1},
            {"constant", sift(50, 4), 5},
            {"two different vectors", sift(60, 3), 7},
            {"far from zero", sift(60, 3), 4},
            {"one dimension, many duplicates", sift(3000, 1), 1024},
    };
    for (size_t i = 0; i < shapes[2].data.x.size(); i++) {
        shapes[2].data.x[i] = 1234.5f;
    }
    for (size_t i = 0; i < shapes[3].data.x.size(); i++) {
        shapes[3].data.x[i] = float(i / 3 % 2);
    }
    for (size_t i = 0; i < shapes[4].data.x.size(); i++) {
        shapes[4].data.x[i] = 1e6f + float(i / 3 % 5);
    }
    for (const Shape& shape : shapes) {
        for (Covariance covariance : kAll) {
            for (Initialisation init :
                 {Initialisation::kmeans_plus_plus,
                  Initialisation::random_subset}) {
                SCOPED_TRACE(shape.name);
                TrainingOptions options;
                options.covariance = covariance;
                options.init = init;
                const TrainingResult r =
                        fit(*shape.data.source(), shape.k, options);
                EXPECT_NO_THROW(r.model.validate());
                for (const TrainingIteration& it : r.iterations) {
                    EXPECT_TRUE(std::isfinite(it.objective));
                    EXPECT_TRUE(std::isfinite(it.imbalance));
                }
                EXPECT_TRUE(std::isfinite(mean_log_prob(shape.data, r.model)));
            }
        }
    }
}

TEST(EMTrainerFloors, DeadComponentsAreRestarted) {
    const RealData data = sift(4000);
    GaussianMixture start = means_only(data, 10);
    for (size_t i = 5 * data.d; i < start.means.size(); i++) {
        start.means[i] = 1e5f; // no vector is near
    }
    for (Covariance covariance : kAll) {
        TrainingOptions options;
        options.covariance = covariance;
        options.init = Initialisation::given_means;
        const TrainingResult r =
                fit(*data.source(), 10, options, nullptr, &start);
        EXPECT_EQ(r.iterations[0].reseeded, 5u);
        EXPECT_EQ(r.iterations.back().reseeded, 0u);
        EXPECT_LT(
                *std::max_element(r.model.means.begin(), r.model.means.end()),
                256);
        for (float log_weight : r.model.log_weights) {
            EXPECT_GT(log_weight, std::log(1e-3f));
        }
    }
}

TEST(EMTrainerFloors, VarianceFloorIsRelativeToTheVectorsAround) {
    const RealData data = sift(3000);
    TrainingOptions options;
    options.niter = 0;
    const GaussianMixture around = fit(*data.source(), 30, options).model;
    options.niter = 8;
    const GaussianMixture free = fit(*data.source(), 30, options).model;
    options.variance_floor = 0.9;
    const GaussianMixture m = fit(*data.source(), 30, options).model;
    size_t bound = 0;
    for (size_t c = 0; c < m.k; c++) {
        EXPECT_GE(m.variances[c], 0.9 * 0.999 * around.variances[c]);
        bound += free.variances[c] < 0.9 * around.variances[c];
    }
    EXPECT_GT(bound, 0u);
}

/// Floors that were found when components were wide do not hold up what they
/// become.
TEST(EMTrainerFloors, WideBeginningsLeaveNoFloor) {
    const RealData data = clusters(3000, 3, 5, 0.001f);
    for (Covariance covariance : kAll) {
        SCOPED_TRACE(int(covariance));
        TrainingOptions options;
        options.covariance = covariance;
        options.niter = 200;
        options.init = Initialisation::kmeans_plus_plus;
        const TrainingResult cold = fit(*data.source(), 5, options);
        GaussianMixture start = cold.model;
        for (float& v : start.variances) {
            v *= 1e4f;
        }
        for (float& u : start.precisions_cholesky) {
            u *= 0.01f;
        }
        options.init = Initialisation::given_means;
        const TrainingResult warm =
                fit(*data.source(), 5, options, nullptr, &start);
        EXPECT_NEAR(warm.lower_bound(), cold.lower_bound(), 0.01);
        for (double v : mean_variances(warm.model)) {
            EXPECT_NEAR(v, 1e-6, 1e-7);
        }
    }
}

TEST(EMTrainerFloors, TightClustersKeepTheirMeansApart) {
    for (size_t d : {8, 32}) {
        for (float spread : {1e-3f, 1e-2f, 1.0f}) {
            SCOPED_TRACE(testing::Message() << d << ", " << spread);
            const RealData data = clusters(6000, d, 4, spread);
            TrainingOptions options;
            options.niter = 0;
            options.hard_iterations = 15;
            const double hard = distortion(
                    data, fit(*data.source(), 64, options).model.means, data.n);
            options.hard_iterations = 5;
            options.niter = 10;
            const GaussianMixture soft = fit(*data.source(), 64, options).model;
            // Responsibilities that are shared bring means together.
            EXPECT_LT(distortion(data, soft.means, data.n), 1.2 * hard);
            for (float v : soft.variances) {
                EXPECT_LT(v, 2 * spread * spread);
            }
            options.niter = 8;
            options.last_hard_iterations = 2;
            const TrainingResult r = fit(*data.source(), 64, options);
            EXPECT_LT(distortion(data, r.model.means, data.n), 1.02 * hard);
            ASSERT_EQ(r.iterations.size(), 15u);
            EXPECT_EQ(r.iterations[12].step, EStep::soft);
            EXPECT_EQ(r.iterations[13].step, EStep::hard);
            EXPECT_EQ(r.n_iter(), 8);
            EXPECT_EQ(r.lower_bound(), r.iterations[12].objective);
        }
    }
}

TEST(EMTrainerFloors, OneVectorFarAwayChangesNoOtherVariance) {
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal, Covariance::full}) {
        for (float far : {1e4f, 1e6f}) {
            SCOPED_TRACE(
                    testing::Message()
                    << gmm::to_string(covariance) << ", " << far);
            const RealData data = clusters(6000, 16, 20, 0.03f, far);
            TrainingOptions options;
            options.covariance = covariance;
            options.niter = 8;
            const GaussianMixture m = fit(*data.source(), 40, options).model;
            EXPECT_LT(distortion(data, m.means, data.n / 2), 16 * 0.5);
            size_t tight = 0;
            for (size_t c = 0; c < m.k; c++) {
                tight += m.variance(c, 3) < 2 * 0.03 * 0.03;
            }
            EXPECT_GT(tight, m.k / 2);
        }
    }
}

/// The statistics of an E-step, in the data's own units.
static gmm::SufficientStats soft_pass(
        const RealData& data, const GaussianMixture& model) {
    gmm::Frame frame;
    frame.center.assign(data.d, 0);
    const auto source = gmm::memory_source(data.x.data(), data.n, data.d);
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    gmm::SufficientStats stats;
    backend->accumulate(EStep::soft, stats);
    return stats;
}

/// Two components a group, groups 1e4 deviations apart: what responsibilities
/// of floats sum to counts beside squares of 1e8.
TEST(EMTrainerFloors, TiedCovariancesOfGroupsFarApart) {
    const size_t n = 4000, d = 4, groups = 5, k = 2 * groups;
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> centres(groups * d);
    for (float& v : centres) {
        v = 1e4f * normal(random);
    }
    RealData data(n, d, std::vector<float>(n * d));
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            data.x[i * d + j] = centres[i % groups * d + j] + normal(random);
        }
    }
    GaussianMixture start;
    start.covariance = Covariance::tied;
    start.k = k;
    start.d = d;
    for (size_t c = 0; c < k; c++) {
        for (size_t j = 0; j < d; j++) {
            start.means.push_back(
                    centres[c / 2 * d + j] + 0.7f * normal(random));
        }
    }
    start.log_weights.assign(k, -std::log(float(k)));
    start.precisions_cholesky.assign(d * d, 0);
    for (size_t j = 0; j < d; j++) {
        start.precisions_cholesky[j * (d + 1)] = 1;
    }
    const gmm::SufficientStats stats = soft_pass(data, start);

    std::vector<double> joint(n * k), n_k(k), sum(k * d);
    start.log_joint(n, data.x.data(), joint.data());
    const auto responsibility = [&](size_t i, size_t c) {
        double total = 0;
        for (size_t b = 0; b < k; b++) {
            total += std::exp(joint[i * k + b] - joint[i * k + c]);
        }
        return 1 / total;
    };
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < k; c++) {
            const double r = responsibility(i, c);
            n_k[c] += r;
            for (size_t j = 0; j < d; j++) {
                sum[c * d + j] += r * data.x[i * d + j];
            }
        }
    }
    size_t at = k; // of the lower triangle
    for (size_t j = 0; j < d; j++) {
        at += j;
        double expected = 0, found = stats.sum_x2[at++];
        for (size_t c = 0; c < k; c++) {
            found -= stats.sum_x[c * d + j] * stats.sum_x[c * d + j] /
                    stats.n_k[c];
            for (size_t i = 0; i < n; i++) {
                const double diff = data.x[i * d + j] - sum[c * d + j] / n_k[c];
                expected += responsibility(i, c) * diff * diff;
            }
        }
        EXPECT_NEAR(found / n, expected / n, 2e-3 * expected / n) << j;
    }
}

/// Of few vectors what is small decides whether a component comes back.
TEST(EMTrainerFloors, AComponentThatHardlyAnyVectorIsLeftToComesBack) {
    const size_t n = 40, d = 2;
    RealData data(n, d, std::vector<float>(n * d));
    std::mt19937_64 random(4);
    std::normal_distribution<float> normal;
    for (float& v : data.x) {
        v = 0.3f * normal(random);
    }
    GaussianMixture start;
    start.covariance = Covariance::isotropic;
    start.k = 2;
    start.d = d;
    start.means = {0, 0, 7.5f, 0}; // e^-28 of a vector
    start.variances = {1, 1};
    start.log_weights.assign(2, std::log(0.5f));
    for (Covariance covariance : {Covariance::isotropic, Covariance::full}) {
        start.covariance = covariance;
        if (gmm::has_matrices(covariance)) {
            start.variances.clear();
            start.precisions_cholesky = {1, 0, 0, 1, 1, 0, 0, 1};
        }
        const gmm::SufficientStats stats = soft_pass(data, start);
        std::vector<double> joint(n * 2);
        start.log_joint(n, data.x.data(), joint.data());
        double expected = 0, sum = 0;
        for (size_t i = 0; i < n; i++) {
            const double r =
                    1 / (1 + std::exp(joint[2 * i] - joint[2 * i + 1]));
            expected += r;
            sum += r * data.x[i * d];
        }
        EXPECT_NEAR(stats.n_k[1], expected, 1e-3 * expected);
        EXPECT_NEAR(stats.sum_x[d] / stats.n_k[1], sum / expected, 1e-3);
    }
}

/// Each start of k-means++ has a mean in every group, or nearly each.
TEST(EMTrainerFloors, PlusPlusFindsTheGroups) {
    const size_t n = 1800, d = 3, k = 9;
    size_t complete = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        std::mt19937_64 random(seed);
        std::normal_distribution<float> normal;
        std::vector<float> centres(k * d);
        for (float& v : centres) {
            v = 40 * normal(random);
        }
        std::vector<float> x(n * d);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < d; j++) {
                x[i * d + j] = centres[i % k * d + j] + normal(random);
            }
        }
        gmm::Frame frame;
        frame.center.assign(d, 0);
        const auto source = gmm::memory_source(x.data(), n, d);
        const std::vector<float> means = gmm::initial_means(
                *source,
                nullptr,
                frame,
                k,
                Initialisation::kmeans_plus_plus,
                random);
        size_t groups = 0;
        for (size_t g = 0; g < k; g++) {
            double least = HUGE_VAL;
            for (size_t c = 0; c < k; c++) {
                double square = 0;
                for (size_t j = 0; j < d; j++) {
                    const double diff =
                            double(means[c * d + j]) - centres[g * d + j];
                    square += diff * diff;
                }
                least = std::min(least, square);
            }
            groups += least < 36;
        }
        complete += groups == k;
    }
    EXPECT_GE(complete, 57u);
}
