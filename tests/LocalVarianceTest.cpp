#include "LocalVariance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "Backend.h"
#include "RealData.h"

using gmm::Covariance;

namespace {

/// In units of the vectors: centre 0, scale 1.
std::vector<double> measured(
        const RealData& data,
        const std::vector<float>& means,
        Covariance covariance = Covariance::isotropic) {
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    gmm::Frame frame;
    frame.center.assign(data.d, 0.0f);
    backend->set_data(*source, nullptr, frame);
    gmm::GaussianMixture model;
    model.covariance = covariance;
    model.d = data.d;
    model.k = means.size() / data.d;
    model.means = means;
    model.variances.assign(
            gmm::num_variances(covariance, model.k, model.d), 1.0f);
    model.log_weights.assign(model.k, -std::log(float(model.k)));
    backend->set_model(model);
    gmm::SufficientStats stats;
    backend->accumulate(gmm::EStep::hard, stats);
    return gmm::local_variances(stats, means, 777);
}

double square(const float* a, const float* b, size_t d) {
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        const double diff = double(a[j]) - b[j];
        sum += diff * diff;
    }
    return sum;
}

} // namespace

TEST(LocalVariance, IsThatOfTheVectorsAroundAMean) {
    const RealData data = sift(2000);
    const size_t d = data.d, k = 20;
    const std::vector<float> means(data.x.begin(), data.x.begin() + k * d);
    std::vector<double> n(k), sum(k * d), squares(k), expected(k);
    for (size_t i = 0; i < data.n; i++) {
        const float* x = data.x.data() + i * d;
        size_t best = 0;
        for (size_t c = 1; c < k; c++) {
            if (square(x, &means[c * d], d) < square(x, &means[best * d], d)) {
                best = c;
            }
        }
        n[best]++;
        for (size_t j = 0; j < d; j++) {
            sum[best * d + j] += x[j];
            squares[best] += double(x[j]) * x[j];
        }
    }
    for (size_t c = 0; c < k; c++) {
        expected[c] = squares[c];
        for (size_t j = 0; j < d; j++) {
            expected[c] -= sum[c * d + j] * sum[c * d + j] / n[c];
        }
        expected[c] /= n[c] * d;
    }
    for (Covariance covariance :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical}) {
        const auto found = measured(data, means, covariance);
        for (size_t c = 0; c < k; c++) {
            EXPECT_NEAR(found[c], expected[c], 1e-5 * expected[c]);
        }
    }
}

/// One vector, equal ones, none at all; equal means, and a vector far away.
TEST(LocalVariance, ReachesHalfwayWhereVectorsDoNotDiffer) {
    const size_t d = 2;
    const float x[][d] = {
            {0, 0}, {3, 4}, {3, 4}, {3, 4}, {100, 0}, {101, 0}, {1e6f, 0}};
    const size_t n = std::size(x);
    const RealData data(n, d, std::vector<float>(x[0], x[0] + n * d));
    const std::vector<float> means = {
            0, 0, 3, 4, 100.5f, 0, 1e6f, 0, 3, 4, -6, -8};
    const auto found = measured(data, means);
    const double far = 1e6 - 100.5;
    const double expected[] = {
            25 / 8., 25 / 8., 0.125, far * far / 8, 25 / 8., 25 / 8.};
    for (size_t c = 0; c < 6; c++) {
        EXPECT_NEAR(found[c], expected[c], 1e-6 * expected[c]) << c;
    }
}

/// The distances are the same whoever names the nearest means; where all named
/// ones are equal, the others are looked at.
TEST(LocalVariance, AsksForTheNearestMeans) {
    const size_t d = 3, k = 40;
    const RealData rows = sift(k);
    std::vector<float> means(k * d);
    for (size_t c = 0; c < k; c++) { // six times the same, the others alone
        std::copy_n(&rows.x[(c < 6 ? 0 : c) * rows.d + 20], d, &means[c * d]);
    }
    gmm::SufficientStats stats(Covariance::isotropic, k, d);
    stats.n_k.assign(k, 1);
    stats.sum_x.assign(means.begin(), means.end());
    const auto expected = gmm::local_variances(stats, means, 777);
    size_t asked = 0;
    const auto nearest = [&](const std::vector<size_t>& wanted,
                             size_t m,
                             int64_t* out) {
        asked += wanted.size();
        for (size_t i = 0; i < wanted.size(); i++) {
            std::vector<std::pair<double, int64_t>> all;
            for (size_t c = 0; c < k; c++) {
                all.emplace_back(
                        square(&means[wanted[i] * d], &means[c * d], d), c);
            }
            std::sort(all.begin(), all.end());
            for (size_t r = 0; r < m; r++) {
                out[i * m + r] = all[r].second;
            }
        }
    };
    EXPECT_EQ(gmm::local_variances(stats, means, 777, nearest), expected);
    EXPECT_EQ(asked, k);
}

/// Two means of one component that has been split, on equal vectors: they are
/// no distance apart, whichever has these vectors.
TEST(LocalVariance, HalvesOnEqualVectorsHaveWhatTheWholeHas) {
    const RealData data(5, 2, {1, 1, 1, 1, 1, 1, 1, 1, 4, 5});
    const std::vector<float> whole = {1, 1, 4, 5};
    const std::vector<float> halves = {1.01f, 1, 0.99f, 1, 4, 5};
    const auto expected = measured(data, whole);
    const auto found = measured(data, halves);
    EXPECT_NEAR(expected[0], 25 / 8., 1e-6);
    EXPECT_NEAR(found[0], expected[0], 1e-6);
    EXPECT_NEAR(found[1], expected[0], 1e-6);
    EXPECT_NEAR(found[2], expected[1], 1e-6);
}

TEST(LocalVariance, HasAValueWhereAllAreEqual) {
    const RealData data(5, 3, std::vector<float>(15, 2.0f));
    for (double v : measured(data, std::vector<float>(12, 2.0f))) {
        EXPECT_EQ(v, 777);
    }
}

TEST(LocalVariance, RoundingGoesByVectorsAndNotByTheirWeight) {
    const size_t n = 100000, d = 3;
    std::vector<float> x;
    for (size_t i = 0; i < n; i++) {
        x.insert(x.end(), {1.2345f, -0.777f, 2.1f});
    }
    const float weight = 1.0f / n;
    const std::vector<float> weights(n, weight);
    const auto source = gmm::memory_source(x.data(), n, d);
    const auto backend = gmm::make_cpu_backend();
    gmm::Frame frame;
    frame.center.assign(d, 0.0f);
    backend->set_data(*source, weights.data(), frame);
    gmm::GaussianMixture model;
    model.covariance = Covariance::diagonal;
    model.d = d;
    model.k = 1;
    model.means = {1, 0, 0};
    model.variances = {1, 1, 1};
    model.log_weights = {0};
    backend->set_model(model);
    gmm::SufficientStats stats;
    backend->accumulate(gmm::EStep::hard, stats);
    const std::vector<double> equal(d, 1.0);
    EXPECT_EQ(gmm::local_shape(stats, weight), equal);
    EXPECT_EQ(
            gmm::local_variances(stats, model.means, 777, {}, weight),
            std::vector<double>{777});
}
