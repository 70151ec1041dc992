#include "cpu/Screen.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "Backend.h"
#include "cpu/Kernels.h"

using gmm::kLanes;
using gmm::Screen;

namespace {

std::vector<float> normal(size_t size, unsigned seed, float scale = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> value(0, scale);
    std::vector<float> out(size);
    for (float& x : out) {
        x = value(random);
    }
    return out;
}

double norm(const float* y, size_t d) {
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        sum += double(y[j]) * y[j];
    }
    return sum;
}

struct ScreenTest : testing::Test {
    void SetUp() override {
        if (!gmm::byte_kernels()) {
            GTEST_SKIP() << "not on this machine";
        }
    }
};

} // namespace

TEST_F(ScreenTest, BoundsHoldAndAreNear) {
    for (size_t d : {32, 33, 50, 128, 391}) {
        for (size_t k : {128, 141, 160, 177}) {
            for (size_t n : {1, 11, 12, 13, 30}) {
                SCOPED_TRACE(
                        testing::Message()
                        << "d " << d << " k " << k << " n " << n);
                const size_t padded = (k + kLanes - 1) / kLanes * kLanes;
                std::vector<float> f = normal(k * d, 1, 0.7f);
                std::fill_n(f.begin() + 3 * d, d, 0.0f);
                std::vector<float> y = normal(n * d, 2, 3);
                std::fill_n(y.begin() + n / 2 * d, n > 1 ? d : 0, 0.0f);
                std::vector<float> bias(
                        padded, -std::numeric_limits<float>::infinity());
                std::vector<float> precision(padded);
                for (size_t c = 0; c < k; c++) {
                    bias[c] = 0.3f * float(c % 7);
                    precision[c] = 1 + 0.1f * float(c % 5);
                }
                const Screen screen(k, d, f.data());
                ASSERT_EQ(screen.k, k);
                Screen::Scratch scratch;
                std::vector<float> v(n * padded);
                screen.multiply(n, y.data(), scratch, v.data(), padded);
                for (size_t i = 0; i < n; i++) {
                    const double yy = norm(&y[i * d], d);
                    float* row = &v[i * padded];
                    const float lower = screen.bounds(
                            i, yy, bias.data(), precision.data(), scratch, row);
                    double best = -HUGE_VAL;
                    for (size_t c = 0; c < k; c++) {
                        double value = bias[c] - 0.5 * precision[c] * yy;
                        for (size_t j = 0; j < d; j++) {
                            value += double(y[i * d + j]) * f[c * d + j];
                        }
                        best = std::max(best, value);
                        const double lengths =
                                std::sqrt(yy * norm(&f[c * d], d));
                        const double rounding =
                                1e-6 * (lengths + std::fabs(value) + yy);
                        EXPECT_GE(row[c], value - rounding);
                        EXPECT_LE(row[c], value + 0.05 * lengths + rounding);
                    }
                    EXPECT_LE(lower, best + 1e-6 * (yy + std::fabs(best)));
                    std::vector<int32_t> expected, index(padded);
                    for (size_t c = 0; c < padded; c++) {
                        if (row[c] >= lower) {
                            expected.push_back(int32_t(c));
                        }
                    }
                    index.resize(screen.select(row, lower, index.data()));
                    EXPECT_EQ(index, expected);
                }
            }
        }
    }
}

TEST_F(ScreenTest, DistancesAreAsExactAsIsSaid) {
    for (size_t d : {32, 33, 47, 128, 391, 2048}) {
        const std::vector<float> f = normal(128 * d, 1), y = normal(d, 2);
        const Screen screen(128, d, f.data());
        for (size_t c = 0; c < 128; c++) {
            double expected = 0;
            for (size_t j = 0; j < d; j++) {
                const double off = double(y[j]) - f[c * d + j];
                expected += off * off;
            }
            EXPECT_NEAR(
                    screen.distance(y.data(), &f[c * d]),
                    expected,
                    screen.distance_error() * expected);
        }
    }
}

TEST_F(ScreenTest, FewComponentsAndFewOrVeryManyDimensionsAreNotScreened) {
    const std::vector<float> f(1024 * 1024);
    EXPECT_EQ(Screen(16, 1024, f.data()).k, 0u);
    EXPECT_EQ(Screen(1024, 3, f.data()).k, 0u);
    EXPECT_EQ(Screen().k, 0u);
    const std::vector<float> many(128 * 140'000); // sums beyond 31 bits
    EXPECT_EQ(Screen(128, 133'145, many.data()).k, 0u);
    EXPECT_EQ(Screen(128, 133'144, many.data()).k, 128u);
}

/// Where half of the components share each row, it is computed as ever: what
/// comes out does not depend on whether bytes were tried.
TEST_F(ScreenTest, DiffuseRowsAreComputedWhole) {
    const size_t d = 64, k = 256, n = 500;
    const std::vector<float> x = normal(n * d, 3);
    gmm::GaussianMixture model;
    model.covariance = gmm::Covariance::isotropic;
    model.d = d;
    model.k = k;
    model.means = normal(k * d, 4, 0.1f);
    model.variances.assign(k, 1);
    model.log_weights.assign(k, -std::log(float(k)));
    gmm::Frame frame;
    frame.center.assign(d, 0);
    frame.scale = 1;
    const auto source = gmm::memory_source(x.data(), n, d);
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    gmm::SufficientStats stats;
    backend->accumulate(gmm::EStep::soft, stats);
    std::vector<double> joint(n * k);
    model.log_joint(n, x.data(), joint.data());
    double objective = 0;
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t c = 0; c < k; c++) {
            sum += std::exp(joint[i * k + c]);
        }
        objective += std::log(sum);
    }
    EXPECT_NEAR(stats.objective, objective, 1e-6 * std::fabs(objective));
    EXPECT_NEAR(stats.weight, double(n), 1e-9);
}
