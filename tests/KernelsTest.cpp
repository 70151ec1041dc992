#include "cpu/Kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "RealData.h"

using gmm::InstructionSet;
using gmm::Kernels;
using gmm::kLanes;

namespace {

struct KernelsTest : testing::TestWithParam<InstructionSet> {
    const Kernels* kernel = gmm::kernels(GetParam());

    void SetUp() override {
        if (!kernel) {
            GTEST_SKIP() << "not on this machine";
        }
    }
};

std::string name_of(const testing::TestParamInfo<InstructionSet>& test) {
    const char* const names[] = {"portable", "avx2", "avx512"};
    return names[int(test.param)];
}

/// Log-joints like those of a row: a few large, most far below, then padding.
std::vector<float> row_of_scores(size_t k, size_t padding) {
    const RealData data = sift(k, 1);
    std::vector<float> v(k + padding, -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < k; i++) {
        v[i] = -700 - 0.37f * data.x[i] - 0.01f * float(i % 7);
    }
    return v;
}

} // namespace

TEST_P(KernelsTest, ExpIsExact) {
    std::vector<float> x;
    for (float at = -87; at <= 80; at += 0.0137f) {
        x.push_back(at);
    }
    x.resize((x.size() + kLanes - 1) / kLanes * kLanes, 0.0f);
    std::vector<float> found = x;
    kernel->exp(found.size(), found.data());
    for (size_t i = 0; i < x.size(); i++) {
        const double expected = std::exp(double(x[i]));
        EXPECT_NEAR(found[i], expected, 3e-7 * expected) << x[i];
    }
    std::vector<float> low(kLanes, -std::numeric_limits<float>::infinity());
    low[1] = -1e30f;
    kernel->exp(kLanes, low.data());
    EXPECT_LT(low[0], 1e-37f);
    EXPECT_LT(low[1], 1e-37f);
}

TEST_P(KernelsTest, MahalanobisDistancesOfFewDimensions) {
    for (size_t d : {1, 3, 4, 16, 17, 32}) {
        for (size_t rows : {kLanes, 3 * kLanes}) {
            const size_t pitch = (d + 3) / 4 * 4;
            std::vector<float> y(d * rows), mean(d), u(d * pitch);
            for (size_t i = 0; i < y.size(); i++) {
                y[i] = std::sin(float(i * i % 101));
            }
            for (size_t j = 0; j < d; j++) {
                mean[j] = 0.1f * float(j % 5);
                for (size_t i = 0; i <= j; i++) {
                    u[i * pitch + j] = i == j ? 2 : std::cos(float(i + 3 * j));
                }
            }
            std::vector<float> square(rows), length(rows);
            kernel->mahalanobis(
                    rows,
                    d,
                    y.data(),
                    mean.data(),
                    u.data(),
                    pitch,
                    square.data(),
                    length.data());
            for (size_t i = 0; i < rows; i++) {
                double expected = 0, norm = 0;
                for (size_t j = 0; j < d; j++) {
                    double sum = 0;
                    for (size_t l = 0; l <= j; l++) {
                        sum += (double(y[l * rows + i]) - mean[l]) *
                                u[l * pitch + j];
                    }
                    expected += sum * sum;
                    norm += std::pow(double(y[j * rows + i]) - mean[j], 2);
                }
                EXPECT_NEAR(square[i], expected, 1e-5 * (1 + expected));
                EXPECT_NEAR(length[i], norm, 1e-5 * (1 + norm));
            }
        }
    }
}

TEST_P(KernelsTest, MomentsOfFewDimensions) {
    for (size_t d : {1, 3, 8, 16, 29, 32}) {
        for (size_t n : {size_t(0), size_t(1), gmm::kMomentRows}) {
            // Far from the origin: what is summed are differences.
            std::vector<float> y(n * d), r(n), mean(d);
            std::vector<const float*> rows;
            for (size_t j = 0; j < d; j++) {
                mean[j] = 1000 + float(j);
            }
            for (size_t i = 0; i < n; i++) {
                rows.push_back(y.data() + i * d);
                r[i] = 0.3f * float(i % 4);
                for (size_t j = 0; j < d; j++) {
                    y[i * d + j] = mean[j] + std::sin(float(i * d + j));
                }
            }
            std::vector<double> first(d, 0.5), second(d * d, 0.25);
            kernel->moments(
                    n,
                    d,
                    rows.data(),
                    mean.data(),
                    r.data(),
                    first.data(),
                    second.data());
            auto diff = [&](size_t i, size_t j) {
                return double(y[i * d + j]) - mean[j];
            };
            for (size_t j = 0; j < d; j++) {
                double sum = 0.5;
                for (size_t i = 0; i < n; i++) {
                    sum += r[i] * diff(i, j);
                }
                EXPECT_NEAR(first[j], sum, 1e-5);
                for (size_t l = 0; l < d; l++) {
                    double expected = 0.25;
                    for (size_t i = 0; i < n && l <= j; i++) {
                        expected += r[i] * diff(i, j) * diff(i, l);
                    }
                    EXPECT_NEAR(second[j * d + l], expected, 1e-5);
                }
            }
        }
    }
}

TEST_P(KernelsTest, SelectFindsWhatIsNotLess) {
    for (size_t n : {0, 5, 16, 53}) {
        std::vector<float> x(n);
        std::vector<int32_t> expected;
        float others = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = float(i * 7 % 5);
            if (x[i] >= 3) {
                expected.push_back(int32_t(i));
            } else {
                others += x[i];
            }
        }
        std::vector<int32_t> found(n);
        float rest = -1;
        found.resize(kernel->select(n, x.data(), 3, found.data(), &rest));
        EXPECT_EQ(found, expected);
        EXPECT_EQ(rest, others);
    }
}

TEST_P(KernelsTest, FinishAddsBiasAndNorm) {
    const size_t k = 11 * kLanes;
    const std::vector<float> v = row_of_scores(k - 5, 5);
    std::vector<float> found = v, bias(k), precision(k);
    for (size_t i = 0; i < k; i++) {
        bias[i] = float(i % 13) - 4;
        precision[i] = 0.1f * float(i % 5);
    }
    const float largest = kernel->finish(
            k, 3.5f, bias.data(), precision.data(), found.data());
    float expected_largest = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < k - 5; i++) {
        const double expected =
                double(v[i]) + bias[i] - 3.5 * double(precision[i]);
        EXPECT_NEAR(found[i], expected, 2e-4);
        expected_largest = std::max(expected_largest, found[i]);
    }
    for (size_t i = k - 5; i < k; i++) {
        EXPECT_EQ(found[i], -std::numeric_limits<float>::infinity());
    }
    EXPECT_EQ(largest, expected_largest);
}

TEST_P(KernelsTest, SplitDividesARowAtTheThreshold) {
    const size_t k = 64 * kLanes;
    const std::vector<float> v = row_of_scores(k - 3, 3);
    const float largest = *std::max_element(v.begin(), v.end());
    for (float reach : {0.0f, 5.0f, 17.0f, 60.0f, 1000.0f}) {
        std::vector<int32_t> index(k);
        std::vector<float> value(k);
        double tail = -1;
        const size_t n = kernel->split(
                k,
                v.data(),
                largest - reach,
                largest,
                index.data(),
                value.data(),
                &tail);
        std::vector<int32_t> expected;
        double expected_tail = 0;
        for (size_t i = 0; i < k; i++) {
            if (v[i] >= largest - reach) {
                EXPECT_EQ(value[expected.size()], v[i] - largest);
                expected.push_back(int32_t(i));
            } else {
                expected_tail += std::exp(double(v[i]) - largest);
            }
        }
        index.resize(n);
        EXPECT_EQ(index, expected);
        EXPECT_NEAR(tail, expected_tail, 1e-5 * expected_tail + 1e-9);
    }
}

TEST_P(KernelsTest, ExponentialsOfARow) {
    for (size_t k : {16, 48, 1024}) {
        std::vector<float> v = row_of_scores(k, 0);
        v[3] = -std::numeric_limits<float>::infinity();
        const float largest = *std::max_element(v.begin(), v.end());
        std::vector<double> expected(k);
        double sum = 0;
        for (size_t i = 0; i < k; i++) {
            expected[i] =
                    v[i] < largest - 5 ? 0 : std::exp(double(v[i]) - largest);
            sum += expected[i];
        }
        EXPECT_NEAR(
                kernel->exponentials(k, largest - 5, largest, v.data()),
                sum,
                1e-6 * sum);
        for (size_t i = 0; i < k; i++) {
            ASSERT_NEAR(v[i], expected[i], 3e-6 * expected[i]) << i;
        }
    }
}

TEST_P(KernelsTest, LaneMax) {
    const size_t k = 5 * kLanes;
    const std::vector<float> v = row_of_scores(k, 0);
    float found[kLanes];
    kernel->lane_max(k, v.data(), found);
    for (size_t l = 0; l < kLanes; l++) {
        float expected = v[l];
        for (size_t i = l; i < k; i += kLanes) {
            expected = std::max(expected, v[i]);
        }
        EXPECT_EQ(found[l], expected);
    }
}

TEST_P(KernelsTest, SumsOverDimensionsAreInDouble) {
    for (size_t d : {1, 3, 96, 128, 131}) {
        const RealData data = sift(3, d);
        const float *y = data.x.data(), *mean = y + d, *p = y + 2 * d;
        double distance = 0, weighted = 0, norm = 0;
        std::vector<double> sum(d, 0.5), squares(d, 0.25);
        kernel->add(d, 0.3, y, sum.data());
        kernel->add_squares(d, 0.3, y, squares.data());
        for (size_t j = 0; j < d; j++) {
            const double diff = double(y[j]) - mean[j];
            distance += diff * diff;
            weighted += diff * diff * p[j];
            norm += double(y[j]) * y[j];
            EXPECT_NEAR(sum[j], 0.5 + 0.3 * y[j], 1e-11);
            EXPECT_NEAR(squares[j], 0.25 + 0.3 * y[j] * y[j], 1e-9);
        }
        EXPECT_EQ(kernel->distance(d, y, mean, nullptr), distance);
        EXPECT_EQ(kernel->distance(d, y, mean, p), weighted);
        EXPECT_EQ(kernel->norm(d, y), norm);
    }
}

INSTANTIATE_TEST_SUITE_P(
        InstructionSets,
        KernelsTest,
        testing::Values(
                InstructionSet::portable,
                InstructionSet::avx2,
                InstructionSet::avx512),
        name_of);
