// Trainings whose groups are far apart, narrow, few, or of equal vectors: what
// floors, starts and restarts are for.
#include "TrainingTools.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "FullCovariance.h"

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
