#include "Backend.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "EMTrainer.h"
#include "ExpectInvalid.h"
#include "RealData.h"

using gmm::Backend;
using gmm::Covariance;
using gmm::ElementType;
using gmm::EStep;
using gmm::Frame;
using gmm::GaussianMixture;
using gmm::Rows;
using gmm::SufficientStats;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Frame frame_of(const RealData& data, float scale) {
    Frame frame;
    frame.scale = scale;
    frame.center.resize(data.d);
    for (size_t i = 0; i < data.x.size(); i++) {
        frame.center[i % data.d] += data.x[i] / float(data.n);
    }
    return frame;
}

float unit_scale(const RealData& data) {
    double sum = 0, squares = 0;
    for (float x : data.x) {
        sum += x;
        squares += double(x) * x;
    }
    const double n = double(data.x.size());
    return float(1 / std::sqrt(squares / n - sum / n * sum / n));
}

GaussianMixture trained(
        const RealData& data, size_t k, Covariance covariance, int niter = 2) {
    gmm::TrainingOptions options;
    options.covariance = covariance;
    options.hard_iterations = 2;
    options.niter = niter;
    const auto backend = gmm::make_cpu_backend();
    return train(*data.source(), nullptr, k, options, *backend).model;
}

/// The double reference's statistics in the user's units.
struct Reference {
    std::vector<double> n_k;
    std::vector<double> sum_x;
    std::vector<double> log_prob;
    double objective = 0;

    Reference(const RealData& data, const GaussianMixture& model)
            : n_k(model.k), sum_x(model.k * model.d), log_prob(data.n) {
        const size_t step = 64, k = model.k, d = model.d;
        std::vector<double> joint(step * k);
        for (size_t begin = 0; begin < data.n; begin += step) {
            const size_t count = std::min(step, data.n - begin);
            const float* x = data.x.data() + begin * d;
            model.log_joint(count, x, joint.data());
            for (size_t i = 0; i < count; i++) {
                const double* row = joint.data() + i * k;
                const double top = *std::max_element(row, row + k);
                double sum = 0;
                for (size_t c = 0; c < k; c++) {
                    sum += std::exp(row[c] - top);
                }
                log_prob[begin + i] = top + std::log(sum);
                objective += log_prob[begin + i];
                for (size_t c = 0; c < k; c++) {
                    const double r = std::exp(row[c] - log_prob[begin + i]);
                    n_k[c] += r;
                    for (size_t j = 0; r > 1e-9 && j < d; j++) {
                        sum_x[c * d + j] += r * x[i * d + j];
                    }
                }
            }
        }
    }
};

struct Case {
    const char* data;
    Covariance covariance;
    size_t k;
    size_t d;
};

struct Agreement : testing::TestWithParam<Case> {};

std::vector<Case> all_cases() {
    std::vector<Case> out;
    for (const char* data : {"sift", "patches"}) {
        for (Covariance covariance :
             {Covariance::isotropic,
              Covariance::diagonal,
              Covariance::tied_spherical}) {
            for (size_t k : {1, 7, 256, 1024}) {
                for (size_t d : {1, 3, 96, 128, 960}) {
                    out.push_back({data, covariance, k, d});
                }
            }
        }
        for (Covariance covariance : {Covariance::full, Covariance::tied}) {
            for (size_t k : {1, 7, 256}) {
                for (size_t d : {1, 3, 50, 128, 384}) {
                    if (k * d * d < 10'000'000) {
                        out.push_back({data, covariance, k, d});
                    }
                }
            }
        }
    }
    return out;
}

std::string name_of(const testing::TestParamInfo<Case>& test) {
    const Case& c = test.param;
    return std::string(c.data) + "_" + to_string(c.covariance) + "_k" +
            std::to_string(c.k) + "_d" + std::to_string(c.d);
}

RealData load(const Case& c) {
    // Just above one block of 256 where the reference is slow; several blocks
    // and a rest elsewhere.
    const size_t n = c.k * c.d > 300'000 ? c.k + 291 : 1931 + c.k;
    return std::strcmp(c.data, "sift") == 0 ? sift(n, c.d) : patches(n, c.d);
}

} // namespace

TEST_P(Agreement, WithTheDoubleReferenceOnRealData) {
    const Case c = GetParam();
    const RealData data = load(c);
    const GaussianMixture model = trained(data, c.k, c.covariance);
    const Reference expected(data, model);

    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    const Frame frame = frame_of(data, unit_scale(data));
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));

    std::vector<int64_t> components(data.n);
    std::vector<float> log_prob(data.n);
    backend->top_components(
            data.rows(),
            1,
            components.data(),
            nullptr,
            nullptr,
            log_prob.data());
    // A thousand components on a line are so narrow that single precision
    // shows.
    const double rounding = c.d == 1 && c.k > 1000 ? 1e-2 : 1e-3;
    for (size_t i = 0; i < data.n; i++) {
        ASSERT_NEAR(log_prob[i], expected.log_prob[i], rounding) << "row " << i;
    }

    SufficientStats stats;
    backend->accumulate(EStep::soft, stats);
    EXPECT_EQ(stats.weight, double(data.n));
    EXPECT_LT(stats.dropped_mass, 1e-7 * double(c.k * data.n));
    EXPECT_NEAR(
            stats.objective / data.n + c.d * std::log(frame.scale),
            expected.objective / data.n,
            5e-4);
    for (size_t k = 0; k < c.k; k++) {
        const double tolerance = 1e-4 * std::max(expected.n_k[k], 1.0);
        ASSERT_NEAR(stats.n_k[k], expected.n_k[k], tolerance) << k;
        for (size_t j = 0; j < c.d; j++) {
            const double sum = stats.sum_x[k * c.d + j] / frame.scale +
                    stats.n_k[k] * frame.center[j];
            ASSERT_NEAR(
                    sum,
                    expected.sum_x[k * c.d + j],
                    tolerance * (std::abs(frame.center[j]) + 4 / frame.scale));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
        RealData, Agreement, testing::ValuesIn(all_cases()), name_of);

TEST(CpuBackend, HardStepSendsEachVectorToTheNearestMean) {
    const RealData data = sift(3001, 128);
    const size_t k = 100;
    const GaussianMixture model =
            trained(data, k, Covariance::isotropic, /*niter=*/1);
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    const Frame frame = frame_of(data, unit_scale(data));
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    SufficientStats stats;
    backend->accumulate(EStep::hard, stats);

    std::vector<double> n_k(k);
    double distances = 0;
    for (size_t i = 0; i < data.n; i++) {
        double nearest = kInfinity;
        size_t best = 0;
        for (size_t c = 0; c < k; c++) {
            double sum = 0;
            for (size_t j = 0; j < data.d; j++) {
                const double diff = double(data.x[i * data.d + j]) -
                        model.means[c * data.d + j];
                sum += diff * diff;
            }
            if (sum < nearest) {
                nearest = sum;
                best = c;
            }
        }
        n_k[best]++;
        distances += nearest;
    }
    EXPECT_EQ(stats.n_k, n_k);
    EXPECT_NEAR(
            -stats.objective / frame.scale / frame.scale,
            distances,
            1e-6 * distances);
    EXPECT_EQ(stats.dropped_mass, 0);
}

TEST(CpuBackend, BitsDoNotDependOnThreads) {
    const RealData data = sift(5003, 128);
    const auto source = data.source();
    const Frame frame = frame_of(data, 0.02f);
    for (Covariance covariance :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical,
          Covariance::full,
          Covariance::tied}) {
        const GaussianMixture model = trained(data, 100, covariance);
        const int before = omp_get_max_threads();
        SufficientStats first;
        for (int threads : {1, 2, 5}) {
            omp_set_num_threads(threads);
            const auto backend = gmm::make_cpu_backend();
            backend->set_data(*source, nullptr, frame);
            backend->set_model(frame.to_frame(model));
            SufficientStats stats;
            backend->accumulate(EStep::soft, stats);
            if (threads == 1) {
                first = stats;
            }
            EXPECT_EQ(stats.n_k, first.n_k);
            EXPECT_EQ(stats.sum_x, first.sum_x);
            EXPECT_EQ(stats.sum_x2, first.sum_x2);
            EXPECT_EQ(stats.objective, first.objective);
        }
        omp_set_num_threads(before);
    }
}

TEST(CpuBackend, WeightsCountAsCopies) {
    const RealData data = patches(1001, 96);
    const GaussianMixture model = trained(data, 20, Covariance::diagonal);
    const Frame frame = frame_of(data, unit_scale(data));
    std::vector<float> weights(data.n), copies;
    for (size_t i = 0; i < data.n; i++) {
        weights[i] = float(i % 3);
        for (size_t r = 0; r < i % 3; r++) {
            copies.insert(
                    copies.end(),
                    data.x.begin() + i * data.d,
                    data.x.begin() + (i + 1) * data.d);
        }
    }
    const auto weighted = data.source();
    const auto copied =
            gmm::memory_source(copies.data(), copies.size() / data.d, data.d);
    SufficientStats a, b;
    const auto backend = gmm::make_cpu_backend();
    backend->set_model(frame.to_frame(model));
    backend->set_data(*weighted, weights.data(), frame);
    backend->accumulate(EStep::soft, a);
    backend->set_data(*copied, nullptr, frame);
    backend->accumulate(EStep::soft, b);
    EXPECT_EQ(a.weight, b.weight);
    EXPECT_NEAR(a.objective, b.objective, 1e-6 * std::abs(b.objective));
    for (size_t c = 0; c < model.k; c++) {
        EXPECT_NEAR(a.n_k[c], b.n_k[c], 1e-5 * b.weight);
    }
}

TEST(CpuBackend, TopComponentsAreTheBestInOrder) {
    const RealData data = sift(700, 128);
    for (Covariance covariance :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical,
          Covariance::full,
          Covariance::tied}) {
        const size_t k = 300;
        const GaussianMixture model = trained(data, k, covariance);
        const auto source = data.source();
        const Frame frame = frame_of(data, unit_scale(data));
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, frame);
        backend->set_model(frame.to_frame(model));
        std::vector<double> joint(data.n * k), distance(data.n * k);
        model.log_joint(data.n, data.x.data(), joint.data());
        GaussianMixture unit = model;
        unit.covariance = Covariance::tied_spherical;
        unit.variances = {1};
        unit.precisions_cholesky.clear();
        unit.log_weights.assign(k, 0.0f);
        unit.log_joint(data.n, data.x.data(), distance.data());
        const double at_mean =
                -0.5 * double(data.d) * std::log(2 * std::acos(-1.0));
        for (EStep order : {EStep::soft, EStep::hard}) {
            const auto& score = order == EStep::soft ? joint : distance;
            for (size_t m : {size_t(1), size_t(10), size_t(64), k}) {
                std::vector<int64_t> found(data.n * m);
                std::vector<double> log_joint(data.n * m);
                std::vector<float> d2(data.n * m);
                std::vector<float> log_prob(data.n);
                backend->top_components(
                        data.rows(),
                        m,
                        found.data(),
                        log_joint.data(),
                        d2.data(),
                        log_prob.data(),
                        order);
                for (size_t i = 0; i < data.n; i++) {
                    std::vector<double> sorted(
                            score.begin() + i * k, score.begin() + (i + 1) * k);
                    std::sort(sorted.rbegin(), sorted.rend());
                    for (size_t r = 0; r < m; r++) {
                        const size_t c = found[i * m + r];
                        ASSERT_LT(c, k);
                        ASSERT_NEAR(
                                score[i * k + c],
                                sorted[r],
                                1e-3 + 1e-7 * std::abs(sorted[r]));
                        ASSERT_NEAR(
                                log_joint[i * m + r],
                                joint[i * k + c],
                                1e-3 + 5e-7 * std::abs(joint[i * k + c]));
                        const double expected =
                                2 * (at_mean - distance[i * k + c]);
                        ASSERT_NEAR(
                                d2[i * m + r],
                                expected,
                                1e-5 * expected + 1e-6);
                    }
                    std::vector<int64_t> distinct(
                            found.begin() + i * m, found.begin() + (i + 1) * m);
                    std::sort(distinct.begin(), distinct.end());
                    ASSERT_EQ(
                            std::unique(distinct.begin(), distinct.end()),
                            distinct.end());
                }
            }
        }
    }
}

// The float sgemm cannot see these distances at all: |x|^2 / variance is 1e10.
TEST(CpuBackend, TinyVariancesFarFromTheCenterAreExact) {
    const RealData data = patches(600, 96);
    GaussianMixture model;
    model.d = data.d;
    model.k = 50;
    model.means.assign(data.x.begin(), data.x.begin() + model.k * model.d);
    model.variances.assign(model.k, 1.0f);
    model.log_weights.assign(model.k, -std::log(50.0f));
    for (size_t c = 0; c < model.k; c += 2) {
        model.variances[c] = 1e-9f;
    }
    Frame frame;
    frame.center.assign(data.d, -3.0f); // deliberately bad
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    const GaussianMixture rounded = frame.to_user(frame.to_frame(model));
    std::vector<double> joint(data.n * model.k);
    rounded.log_joint(data.n, data.x.data(), joint.data());
    std::vector<int64_t> found(data.n);
    std::vector<float> distance(data.n);
    backend->top_components(
            data.rows(), 1, found.data(), nullptr, distance.data());
    size_t on_a_mean = 0;
    for (size_t i = 0; i < data.n; i++) {
        const double* row = joint.data() + i * model.k;
        ASSERT_EQ(found[i], std::max_element(row, row + model.k) - row) << i;
        on_a_mean += distance[i] < 1e-9f;
    }
    EXPECT_GE(on_a_mean, 25u);
    SufficientStats stats;
    backend->accumulate(EStep::soft, stats);
    const Reference expected(data, rounded);
    for (size_t c = 0; c < model.k; c++) {
        EXPECT_NEAR(stats.n_k[c], expected.n_k[c], 1e-3) << c;
    }
}

/// A component with one vector has a variance that differs from the others'
/// by as much as the regularisation says.
TEST(CpuBackend, ComponentsOfOneVectorAmongOthers) {
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal}) {
        for (size_t k : {40, 160}) { // without and with a product of bytes
            const RealData data = sift(1500, 128);
            GaussianMixture model = trained(data, k, covariance);
            const size_t each = model.variances.size() / k;
            for (size_t c : {size_t(0), size_t(17), k - 1}) {
                std::copy_n(
                        data.x.begin() + (9 * c + 5) * data.d,
                        data.d,
                        model.means.begin() + c * data.d);
                std::fill_n(model.variances.begin() + c * each, each, 1e-6f);
            }
            // One dimension of one more, as where a value repeats.
            std::fill_n(model.variances.begin() + 3 * each, 1, 2e-6f);
            const Frame frame = frame_of(data, unit_scale(data));
            const GaussianMixture inside = frame.to_frame(model);
            RealData y = data;
            for (size_t i = 0; i < y.x.size(); i++) {
                const float x = y.x[i];
                y.x[i] = (x - frame.center[i % y.d]) * frame.scale;
            }
            const Reference expected(y, inside);
            const auto source = data.source();
            const auto backend = gmm::make_cpu_backend();
            backend->set_data(*source, nullptr, frame);
            backend->set_model(inside);
            SufficientStats stats;
            backend->accumulate(EStep::soft, stats);
            EXPECT_NEAR(
                    stats.objective,
                    expected.objective,
                    1e-6 * std::fabs(expected.objective));
            for (size_t c = 0; c < k; c++) {
                ASSERT_NEAR(
                        stats.n_k[c],
                        expected.n_k[c],
                        1e-4 * std::max(expected.n_k[c], 1.0))
                        << c;
                for (size_t j = 0; j < data.d; j++) {
                    ASSERT_NEAR(
                            stats.sum_x[c * data.d + j],
                            expected.sum_x[c * data.d + j],
                            4e-4 * std::max(expected.n_k[c], 1.0));
                }
            }
            EXPECT_NEAR(stats.n_k[17], 1, 1e-6);

            const size_t m = 5;
            std::vector<int64_t> found(data.n * m);
            std::vector<float> log_prob(data.n);
            std::vector<double> joint(data.n * k);
            backend->top_components(
                    data.rows(),
                    m,
                    found.data(),
                    nullptr,
                    nullptr,
                    log_prob.data());
            inside.log_joint(y.n, y.x.data(), joint.data());
            const double volume = double(data.d) * std::log(frame.scale);
            for (size_t i = 0; i < data.n; i++) {
                ASSERT_NEAR(log_prob[i], expected.log_prob[i] + volume, 1e-3);
                const double* const row = &joint[i * k];
                std::vector<double> sorted(row, row + k);
                std::sort(sorted.rbegin(), sorted.rend());
                for (size_t r = 0; r < m; r++) {
                    ASSERT_NEAR(
                            row[found[i * m + r]],
                            sorted[r],
                            1e-3 + 1e-7 * std::fabs(sorted[r]));
                }
            }
        }
    }
}

/// One mean far from all others: their distances are not rounded as its are.
TEST(CpuBackend, HardStepWithAMeanFarAway) {
    RealData data = sift(1000, 128);
    data.x[0] = 1e7f;
    const size_t k = 150;
    GaussianMixture model;
    model.d = data.d;
    model.k = k;
    model.means.assign(data.x.begin(), data.x.begin() + k * data.d);
    model.variances.assign(k, 1.0f);
    model.log_weights.assign(k, -std::log(float(k)));
    Frame frame;
    frame.center.resize(data.d);
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    SufficientStats stats;
    backend->accumulate(EStep::hard, stats);
    std::vector<double> n_k(k);
    for (size_t i = 0; i < data.n; i++) {
        double nearest = kInfinity;
        size_t best = 0;
        for (size_t c = 0; c < k; c++) {
            double sum = 0;
            for (size_t j = 0; j < data.d; j++) {
                const double off = double(data.x[i * data.d + j]) -
                        model.means[c * data.d + j];
                sum += off * off;
            }
            best = sum < nearest ? c : best;
            nearest = std::min(nearest, sum);
        }
        n_k[best]++;
    }
    EXPECT_EQ(stats.n_k, n_k);
    EXPECT_EQ(stats.n_k[0], 1);
}

TEST(CpuBackend, QueriesFarAwayOrNotFinite) {
    const RealData data = sift(500, 3);
    const GaussianMixture model = trained(data, 10, Covariance::isotropic);
    const Frame frame = frame_of(data, unit_scale(data));
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float x[] = {
            nan, 0, 0, 1, 2, 3, 0, kInfinity, 0, 1e25f, 0, 1e25f, 4, 5, 6};
    const Rows rows{x, ElementType::f32, 5, 3, 12};
    int64_t found[10];
    double log_joint[10];
    float distance[10], log_prob[5];
    for (EStep order : {EStep::soft, EStep::hard}) {
        backend->top_components(
                rows, 2, found, log_joint, distance, log_prob, order);
        for (size_t i : {0, 2}) {
            for (size_t r = 2 * i; r < 2 * i + 2; r++) {
                EXPECT_EQ(found[r], -1);
                EXPECT_EQ(log_joint[r], -kInfinity);
                EXPECT_EQ(distance[r], kInfinity);
            }
            EXPECT_EQ(log_prob[i], -kInfinity);
        }
        for (size_t i : {1, 3, 4}) {
            EXPECT_GE(found[2 * i], 0);
            EXPECT_GE(found[2 * i + 1], 0);
            EXPECT_NE(found[2 * i], found[2 * i + 1]);
            EXPECT_FALSE(std::isnan(log_prob[i]));
        }
        EXPECT_TRUE(std::isfinite(log_prob[4]));
    }
}

/// In float their distances are hundreds of nats off, and yet the one component
/// that there is has all of them.
TEST(CpuBackend, RowsFarAwayKeepTheirResponsibilities) {
    for (auto covariance : {Covariance::isotropic, Covariance::diagonal}) {
        for (size_t d : {64, 384, 768}) {
            for (float far : {1e4f, 2e4f, 2.9e4f}) {
                constexpr size_t kN = 200;
                std::mt19937 random(3);
                std::normal_distribution<double> normal;
                std::vector<float> x(kN * d);
                for (size_t i = 0; i < kN; i++) {
                    std::vector<double> u(d);
                    double sum = 0;
                    for (double& v : u) {
                        v = normal(random);
                        sum += v * v;
                    }
                    for (size_t j = 0; j < d; j++) {
                        x[i * d + j] = float(u[j] * far / std::sqrt(sum));
                    }
                }
                GaussianMixture model;
                model.covariance = covariance;
                model.k = 1;
                model.d = d;
                model.means.assign(d, 0.3f);
                model.variances.assign(
                        covariance == Covariance::diagonal ? d : 1, 1.0f);
                model.log_weights = {0};
                Frame frame;
                frame.center.assign(d, 0);
                const auto source = gmm::memory_source(x.data(), kN, d);
                const auto backend = gmm::make_cpu_backend();
                backend->set_data(*source, nullptr, frame);
                backend->set_model(model);
                SufficientStats stats;
                backend->accumulate(EStep::soft, stats);
                EXPECT_NEAR(stats.n_k[0], double(kN), 1e-3) << d << " " << far;
            }
        }
    }
}

TEST(CpuBackend, EqualMeansAreOrderedByNumber) {
    const RealData data = sift(40, 128);
    GaussianMixture model;
    model.covariance = Covariance::tied_spherical;
    model.d = data.d;
    model.k = 20;
    for (size_t c = 0; c < model.k; c++) {
        const float* from = data.x.data() + c / 4 * data.d;
        model.means.insert(model.means.end(), from, from + data.d);
    }
    model.variances = {100};
    model.log_weights.assign(model.k, -std::log(20.0f));
    Frame frame;
    frame.center.resize(data.d);
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    std::vector<int64_t> found(data.n * 4);
    for (EStep order : {EStep::soft, EStep::hard}) {
        backend->top_components(
                data.rows(), 4, found.data(), nullptr, nullptr, nullptr, order);
        for (size_t i = 0; i < data.n; i++) {
            for (size_t r = 1; r < 4; r++) {
                EXPECT_EQ(found[4 * i + r], found[4 * i] + int64_t(r));
            }
            EXPECT_EQ(found[4 * i] % 4, 0);
        }
    }
    SufficientStats stats;
    backend->accumulate(EStep::hard, stats);
    EXPECT_EQ(stats.n_k[1] + stats.n_k[2] + stats.n_k[3], 0);
}

TEST(CpuBackend, ElementTypesGiveTheSameResult) {
    const RealData data = sift(1000, 128); // whole numbers from 0 to 255
    std::vector<uint8_t> bytes(data.x.begin(), data.x.end());
    std::vector<uint16_t> halves;
    for (float x : data.x) { // exact: 11 bits are enough
        int exponent = 0;
        const float mantissa = std::frexp(x, &exponent);
        halves.push_back(
                x == 0 ? 0
                       : uint16_t(
                                 (exponent + 14) << 10 |
                                 (int(mantissa * 2048) & 1023)));
    }
    const GaussianMixture model = trained(data, 64, Covariance::isotropic);
    const Frame frame = frame_of(data, unit_scale(data));
    std::vector<SufficientStats> stats(3);
    for (int t = 0; t < 3; t++) {
        const void* const from[] = {data.x.data(), halves.data(), bytes.data()};
        const auto source =
                gmm::memory_source(from[t], data.n, data.d, ElementType(t));
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, frame);
        backend->set_model(frame.to_frame(model));
        backend->accumulate(EStep::soft, stats[t]);
        EXPECT_EQ(stats[t].sum_x, stats[0].sum_x);
        EXPECT_EQ(stats[t].objective, stats[0].objective);
    }
}

TEST(CpuBackend, SearchesFromSeveralThreadsDoNotDisturbEachOther) {
    const RealData data = sift(2000, 128);
    const GaussianMixture model = trained(data, 128, Covariance::isotropic);
    const Frame frame = frame_of(data, unit_scale(data));
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    std::vector<std::vector<int64_t>> found(
            4, std::vector<int64_t>(data.n * 5));
    std::vector<std::thread> threads;
    for (auto& mine : found) {
        threads.emplace_back([&] {
            backend->top_components(
                    data.rows(), 5, mine.data(), nullptr, nullptr);
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const auto& other : found) {
        EXPECT_EQ(other, found[0]);
    }
}

TEST(CpuBackend, WrongInputIsNamed) {
    RealData data = sift(600, 4);
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    Frame frame = frame_of(data, 1);
    SufficientStats stats;
    std::vector<int64_t> found(data.n * 3);
    EXPECT_EQ(backend->name(), "cpu");
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "set_data");
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 1, found.data(), nullptr, nullptr),
            "x.d = 4");
    backend->set_data(*source, nullptr, frame);
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "set_model");
    GaussianMixture model = trained(data, 3, Covariance::isotropic);
    backend->set_model(frame.to_frame(model));
    EXPECT_NO_THROW(backend->accumulate(EStep::soft, stats));
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 0, found.data(), nullptr, nullptr),
            "m = 0");
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 4, found.data(), nullptr, nullptr),
            "m = 4");
    Rows narrow = data.rows();
    narrow.d = 3;
    EXPECT_INVALID(
            backend->top_components(narrow, 1, found.data(), nullptr, nullptr),
            "x.d = 3");
    model.variances[1] = -1;
    EXPECT_INVALID(backend->set_model(model), "variances[1] = -1");
    Frame bad = frame;
    bad.center.pop_back();
    EXPECT_INVALID(backend->set_data(*source, nullptr, bad), "frame.center");
    bad = frame;
    bad.scale = -1;
    EXPECT_INVALID(backend->set_data(*source, nullptr, bad), "frame.scale");
    data.x[4 * 321] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "row 321");
}

TEST(CpuBackend, ASourcesExceptionReachesTheCaller) {
    const auto source = gmm::callback_source(
            100'000, 4, ElementType::u8, [](size_t begin, size_t, void*) {
                if (begin > 50'000) {
                    throw std::runtime_error("connection lost");
                }
            });
    const RealData data = sift(100, 4);
    const GaussianMixture model = trained(data, 3, Covariance::isotropic);
    Frame frame;
    frame.center.resize(4);
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    SufficientStats stats;
    EXPECT_THROW(backend->accumulate(EStep::soft, stats), std::runtime_error);
}
