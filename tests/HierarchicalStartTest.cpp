#include "HierarchicalStart.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <limits>
#include <random>

#include "EMTrainer.h"
#include "Initialise.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::HierarchicalStart;

namespace {

HierarchicalStart start(
        const RealData& data,
        size_t k,
        const float* weights = nullptr,
        Covariance covariance = Covariance::isotropic,
        int iterations = 10) {
    const auto source = data.source();
    const gmm::DataFrame frame = gmm::fit_frame(*source, weights);
    std::mt19937_64 random(7);
    return gmm::hierarchical_start(
            *source, weights, frame.frame, covariance, k, iterations, random);
}

/// Mean squared distance to the nearest mean, of every fifth vector.
double distortion(
        const RealData& data, size_t k, const std::vector<float>& means) {
    double sum = 0;
    size_t counted = 0;
    for (size_t i = 0; i < data.n; i += 5) {
        double least = std::numeric_limits<double>::infinity();
        for (size_t c = 0; c < k; c++) {
            double distance = 0;
            for (size_t j = 0; j < data.d; j++) {
                const double diff =
                        double(data.x[i * data.d + j]) - means[c * data.d + j];
                distance += diff * diff;
            }
            least = std::min(least, distance);
        }
        sum += least;
        counted++;
    }
    return sum / double(counted);
}

std::vector<float> trained_means(
        const RealData& data,
        size_t k,
        gmm::Initialisation init,
        int hard_iterations) {
    gmm::TrainingOptions options;
    options.init = init;
    options.hard_iterations = hard_iterations;
    options.niter = 0;
    const auto backend = gmm::make_cpu_backend();
    return gmm::train(*data.source(), nullptr, k, options, *backend)
            .model.means;
}

} // namespace

/// The distortion, over that of iterations with all means.
double beside_all_means(const RealData& data, size_t k) {
    const auto of = [&](gmm::Initialisation start) {
        return distortion(data, k, trained_means(data, k, start, 5));
    };
    return of(gmm::Initialisation::hierarchical) /
            of(gmm::Initialisation::random_subset);
}

TEST(HierarchicalStart, AsGoodAsIterationsWithAllMeans) {
    for (const RealData& data : {sift(20000), patches(3000)}) {
        const size_t k = 100;
        EXPECT_LT(beside_all_means(data, k), 1.04) << data.d;
    }
}

TEST(HierarchicalStart, GroupsFarApart) {
    RealData data{12000, 16, std::vector<float>(12000 * 16)};
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < data.x.size(); i++) {
        data.x[i] = (i / data.d % 2 ? 1e5f : -1e5f) + normal(random);
    }
    const size_t k = 300;
    EXPECT_LT(beside_all_means(data, k), 1.15);
}

TEST(HierarchicalStart, StatisticsAreThoseOfTheSample) {
    const RealData data = sift(3000); // k * 128 and more: all of them
    std::vector<float> weights(data.n);
    double total = 0;
    for (size_t i = 0; i < data.n; i++) {
        weights[i] = 0.5f * float(i % 4);
        total += weights[i];
    }
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal, Covariance::tied}) {
        const size_t k = 65, d = data.d;
        const HierarchicalStart found =
                start(data, k, weights.data(), covariance);
        EXPECT_EQ(found.stats.covariance, covariance);
        EXPECT_NEAR(found.stats.weight, total, 1e-6 * total);
        double weight = 0, sum = 0, squares = 0;
        for (double n : found.stats.n_k) {
            weight += n;
        }
        for (size_t c = 0; c < k; c++) {
            sum += found.stats.sum_x[c * d + 3];
        }
        for (double s : found.stats.sum_x2) {
            squares += s;
        }
        const gmm::Frame frame =
                gmm::fit_frame(*data.source(), weights.data()).frame;
        double expected_sum = 0, expected_squares = 0;
        for (size_t i = 0; i < data.n; i++) {
            for (size_t j = 0; j < d; j++) {
                const double y = (data.x[i * d + j] - frame.center[j]) *
                        double(frame.scale);
                expected_sum += j == 3 ? weights[i] * y : 0;
                expected_squares += weights[i] * y * y;
            }
        }
        EXPECT_NEAR(weight, total, 1e-6 * total);
        EXPECT_NEAR(sum, expected_sum, 1e-4 * total);
        EXPECT_NEAR(squares, expected_squares, 1e-5 * expected_squares);
    }
}

TEST(HierarchicalStart, BitsDoNotDependOnTheNumberOfThreads) {
    const RealData data = sift(9000);
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    const HierarchicalStart one = start(data, 70);
    omp_set_num_threads(4);
    const HierarchicalStart four = start(data, 70);
    omp_set_num_threads(before);
    EXPECT_EQ(one.means, four.means);
    EXPECT_EQ(one.stats.n_k, four.stats.n_k);
    EXPECT_EQ(one.stats.sum_x, four.stats.sum_x);
    EXPECT_EQ(one.stats.sum_x2, four.stats.sum_x2);
}

TEST(HierarchicalStart, AnyNumberOfMeansAndDimensions) {
    for (size_t d : {1, 8, 300}) {
        const RealData data = sift(200, d);
        for (size_t k : {1, 2, 3, 7, 100, 199, 200}) {
            SCOPED_TRACE(testing::Message() << "d " << d << " k " << k);
            const HierarchicalStart found = start(data, k);
            ASSERT_EQ(found.means.size(), k * d);
            double weight = 0;
            for (double n : found.stats.n_k) {
                weight += n;
            }
            EXPECT_EQ(weight, std::min<size_t>(200, 128 * k));
        }
    }
}

TEST(HierarchicalStart, FewDifferentVectors) {
    RealData data = sift(1000);
    for (size_t i = 3 * data.d; i < data.x.size(); i++) {
        data.x[i] = data.x[i % (3 * data.d)];
    }
    const auto backend = gmm::make_cpu_backend();
    gmm::TrainingOptions options;
    options.init = gmm::Initialisation::hierarchical;
    options.niter = 2;
    const gmm::TrainingResult r =
            gmm::train(*data.source(), nullptr, 50, options, *backend);
    EXPECT_NEAR(distortion(data, 50, r.model.means), 0, 1e-3);
}

TEST(HierarchicalStart, RowsOfWeightZeroAreNotUsed) {
    RealData data = sift(2000);
    std::vector<float> weights(data.n, 1);
    for (size_t i = 0; i < data.n; i += 2) {
        weights[i] = 0;
        std::fill_n(data.x.begin() + i * data.d, data.d, 1e6f);
    }
    const HierarchicalStart found = start(data, 80, weights.data());
    for (float mean : found.means) {
        EXPECT_LT(mean, 100);
    }
    EXPECT_DOUBLE_EQ(found.stats.weight, 1000);
}
