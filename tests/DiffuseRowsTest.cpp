#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <random>

#include "Backend.h"
#include "CpuBackendTools.h"

/** Vectors that most components have a share of: the CPU backend sums them as a
 * product, not one share at a time. */

using gmm::Covariance;
using gmm::EStep;
using gmm::Frame;
using gmm::GaussianMixture;
using gmm::SufficientStats;

namespace {

RealData noise(size_t n, size_t d) {
    std::vector<float> x(n * d);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (float& value : x) {
        value = normal(random);
    }
    return {n, d, std::move(x)};
}

/// Means among the vectors, most variances 1.2; of kinds with variances of
/// their own one component is that of a single vector.
GaussianMixture wide_model(
        const RealData& data, size_t k, Covariance covariance) {
    GaussianMixture model;
    model.covariance = covariance;
    model.d = data.d;
    model.k = k;
    for (size_t c = 0; c < k; c++) {
        model.log_weights.push_back(-std::log(float(k)));
        for (size_t j = 0; j < data.d; j++) {
            model.means.push_back(0.3f * data.x[c * data.d + j]);
        }
    }
    model.variances.assign(gmm::num_variances(covariance, k, data.d), 1.2f);
    if (covariance != Covariance::tied_spherical) {
        const size_t each = model.variances.size() / k;
        std::fill_n(&model.variances[5 * each], each, 1e-4f);
        std::copy_n(&data.x[9 * data.d], data.d, &model.means[5 * data.d]);
    }
    return model;
}

SufficientStats statistics(
        const RealData& data,
        const GaussianMixture& model,
        const float* weights = nullptr) {
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    Frame frame;
    frame.center.assign(data.d, 0.0f);
    frame.scale = 1;
    backend->set_data(*source, weights, frame);
    backend->set_model(model);
    SufficientStats stats;
    backend->accumulate(EStep::soft, stats);
    return stats;
}

SufficientStats in_double(
        const RealData& data,
        const GaussianMixture& model,
        const std::vector<float>& weights) {
    const size_t k = model.k, d = model.d;
    SufficientStats expected(model.covariance, k, d);
    std::vector<double> joint(k);
    for (size_t i = 0; i < data.n; i++) {
        const float* x = &data.x[i * d];
        model.log_joint(1, x, joint.data());
        const double top = *std::max_element(joint.begin(), joint.end());
        double sum = 0, norm = 0;
        for (double j : joint) {
            sum += std::exp(j - top);
        }
        for (size_t j = 0; j < d; j++) {
            norm += double(x[j]) * x[j];
        }
        expected.objective += weights[i] * (top + std::log(sum));
        for (size_t c = 0; c < k; c++) {
            const double r = weights[i] * std::exp(joint[c] - top) / sum;
            const bool diagonal = model.covariance == Covariance::diagonal;
            expected.n_k[c] += r;
            if (!diagonal) {
                expected.sum_x2[c] += r * norm;
            }
            for (size_t j = 0; j < d; j++) {
                expected.sum_x[c * d + j] += r * x[j];
                if (diagonal) {
                    expected.sum_x2[c * d + j] += r * x[j] * x[j];
                }
            }
        }
    }
    return expected;
}

void expect_equal_to_double(
        const SufficientStats& stats,
        const RealData& data,
        const GaussianMixture& model,
        const std::vector<float>& weights) {
    const size_t k = model.k, d = model.d;
    const SufficientStats expected = in_double(data, model, weights);
    const double n = double(data.n);
    EXPECT_NEAR(stats.objective / n, expected.objective / n, 1e-4);
    const size_t squares = expected.sum_x2.size() / k;
    for (size_t i = 0; i < expected.sum_x2.size(); i++) {
        ASSERT_NEAR(
                stats.sum_x2[i],
                expected.sum_x2[i],
                1e-4 * std::max(expected.sum_x2[i], double(d) / squares))
                << i;
    }
    for (size_t c = 0; c < k; c++) {
        const double of = std::max(expected.n_k[c], 1.0);
        ASSERT_NEAR(stats.n_k[c], expected.n_k[c], 1e-4 * of) << c;
        for (size_t j = 0; j < d; j++) {
            ASSERT_NEAR(
                    stats.sum_x[c * d + j],
                    expected.sum_x[c * d + j],
                    4e-4 * of)
                    << c;
        }
    }
}

/// Of a component in dimension 0.
void expect_variance_in_double(
        const RealData& data,
        const GaussianMixture& model,
        size_t c,
        float weight) {
    const std::vector<float> weights(data.n, weight);
    const auto variance = [&](const SufficientStats& stats) {
        const double mean = stats.sum_x[c * data.d] / stats.n_k[c];
        return stats.sum_x2[c * data.d] / stats.n_k[c] - mean * mean;
    };
    const double expected = variance(in_double(data, model, weights));
    const double found = variance(statistics(data, model, weights.data()));
    EXPECT_NEAR(found, expected, 1e-3 * expected);
}

} // namespace

TEST(DiffuseRows, AgreeWithTheDoubleReference) {
    for (Covariance covariance :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical}) {
        for (size_t d : {1, 8, 100}) {
            SCOPED_TRACE(d);
            RealData data = noise(4100, d);
            const GaussianMixture model = wide_model(data, 257, covariance);
            std::vector<float> weights(data.n, 1.0f);
            // Far away, without weight, of other weights, amid the others.
            for (size_t j = 0; j < d; j++) {
                data.x[30 * d + j] *= 300;
                data.x[1111 * d + j] = 0;
            }
            for (size_t i = 0; i < data.n; i += 3) {
                weights[i] = float(i % 7) / 2;
            }
            EXPECT_NO_FATAL_FAILURE(expect_equal_to_double(
                    statistics(data, model, weights.data()),
                    data,
                    model,
                    weights));
        }
    }
}

/// A tight group away from the origin keeps its variance beside noise.
TEST(DiffuseRows, NarrowComponentsAreSummedInDouble) {
    const size_t d = 8, n = 4100, k = 256;
    RealData data = noise(n, d);
    GaussianMixture model = wide_model(data, k, Covariance::isotropic);
    std::fill_n(&model.means[7 * d], d, 2.0f);
    model.variances[7] = 1e-6f;
    double scatter = 0, sum[d] = {}, squares = 0;
    size_t group = 0;
    for (size_t i = 20; i < n; i += 2, group++) {
        for (size_t j = 0; j < d; j++) {
            float& x = data.x[i * d + j];
            x = 2 + 1e-3f * x;
            sum[j] += x;
            squares += double(x) * x;
        }
    }
    for (double s : sum) {
        scatter += s * s / group;
    }
    scatter = squares - scatter;
    const SufficientStats stats = statistics(data, model);
    double found = stats.sum_x2[7];
    for (size_t j = 0; j < d; j++) {
        const double s = stats.sum_x[7 * d + j];
        found -= s * s / stats.n_k[7];
    }
    EXPECT_NEAR(stats.n_k[7], group, 1e-3 * group);
    EXPECT_NEAR(found, scatter, 1e-3 * scatter);
}

/// So does one dimension of a group.
TEST(DiffuseRows, NarrowDimensionsAreSummedInDouble) {
    const size_t d = 8;
    RealData data = noise(4100, d);
    GaussianMixture model = wide_model(data, 256, Covariance::diagonal);
    model.means[7 * d] = 2;
    model.variances[7 * d] = 1e-6f;
    for (size_t i = 20; i < data.n; i += 2) {
        data.x[i * d] = 2 + 1e-3f * data.x[i * d];
    }
    expect_variance_in_double(data, model, 7, 1);
}

TEST(DiffuseRows, DimensionsOfTinyValuesAndWeights) {
    const size_t d = 8;
    RealData data = noise(4100, d);
    GaussianMixture model = wide_model(data, 256, Covariance::diagonal);
    for (size_t i = 0; i < data.n; i++) {
        data.x[i * d] *= 1e-12f;
    }
    for (size_t c = 0; c < model.k; c++) {
        model.means[c * d] = 0;
        model.variances[c * d] = 1e-24f;
    }
    expect_variance_in_double(data, model, 7, 1e-19f);
}

TEST(DiffuseRows, WeightsOfAnySize) {
    const RealData data = noise(5000, 8);
    for (auto [covariance, weight] :
         {std::pair(Covariance::isotropic, 1e-37f),
          std::pair(Covariance::isotropic, 1e38f),
          std::pair(Covariance::diagonal, 1e-37f),
          std::pair(Covariance::diagonal, 1e38f)}) {
        SCOPED_TRACE(weight);
        const GaussianMixture model = wide_model(data, 257, covariance);
        const SufficientStats expected = statistics(data, model);
        const std::vector<float> weights(data.n, weight);
        const SufficientStats stats = statistics(data, model, weights.data());
        const auto near = [&, weight = weight](double sum, double of_ones) {
            return std::abs(sum / weight - of_ones) <
                    1e-3 * std::max(std::abs(of_ones), 1.0);
        };
        for (size_t c = 0; c < model.k; c++) {
            ASSERT_PRED2(near, stats.n_k[c], expected.n_k[c]) << c;
            for (size_t j = c * data.d; j < (c + 1) * data.d; j++) {
                ASSERT_PRED2(near, stats.sum_x[j], expected.sum_x[j]) << c;
            }
        }
        for (size_t i = 0; i < stats.sum_x2.size(); i++) {
            ASSERT_PRED2(near, stats.sum_x2[i], expected.sum_x2[i]) << i;
        }
    }
}

TEST(DiffuseRows, BitsDoNotDependOnThreads) {
    const RealData data = noise(5003, 20);
    const int before = omp_get_max_threads();
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal}) {
        const GaussianMixture model = wide_model(data, 300, covariance);
        omp_set_num_threads(1);
        const SufficientStats one = statistics(data, model);
        omp_set_num_threads(5);
        const SufficientStats five = statistics(data, model);
        omp_set_num_threads(before);
        EXPECT_EQ(one.n_k, five.n_k);
        EXPECT_EQ(one.sum_x, five.sum_x);
        EXPECT_EQ(one.sum_x2, five.sum_x2);
        EXPECT_EQ(one.objective, five.objective);
    }
}

TEST(DiffuseRows, TrainingDoesNotLowerTheLikelihood) {
    const RealData data = noise(8000, 32);
    const auto backend = gmm::make_cpu_backend();
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal}) {
        gmm::TrainingOptions options;
        options.covariance = covariance;
        options.niter = 12;
        options.tolerance = 0;
        double last = -HUGE_VAL;
        options.progress = [&](const gmm::TrainingIteration& at) {
            if (at.step == EStep::soft) {
                EXPECT_GE(at.objective, last - 1e-5);
                last = at.objective;
            }
            return true;
        };
        train(*data.source(), nullptr, 200, options, *backend);
        EXPECT_GT(last, -HUGE_VAL);
    }
}
