// Statistics beside a reference in double, on real data and on rows far away.
#include "Backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "CpuBackendTools.h"

using gmm::Covariance;
using gmm::ElementType;
using gmm::EStep;
using gmm::Frame;
using gmm::GaussianMixture;
using gmm::Rows;
using gmm::SufficientStats;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
    EXPECT_EQ(stats.n_k, HardReference(data, model).n_k);
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
