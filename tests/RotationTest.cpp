#include "faiss_ext/codes/Rotation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace faiss_ext {
namespace {

std::vector<size_t> dimensions() {
    std::vector<size_t> out;
    for (size_t d = 1; d <= 40; d++) {
        out.push_back(d);
    }
    out.insert(out.end(), {50, 96, 100, 127, 128, 129, 384, 500, 576, 768});
    return out;
}

std::vector<float> identity(size_t d) {
    std::vector<float> out(d * d);
    for (size_t i = 0; i < d; i++) {
        out[i * d + i] = 1;
    }
    return out;
}

/// Row i is P e_i.
std::vector<float> matrix(size_t d) {
    const std::vector<float> basis = identity(d);
    std::vector<float> out(d * d, 9);
    Rotation(d).apply(d, basis.data(), nullptr, 1, out.data());
    return out;
}

TEST(Rotation, IsOrthogonalForAnyDimension) {
    for (size_t d : dimensions()) {
        const std::vector<float> p = matrix(d);
        for (size_t i = 0; i < d; i++) {
            for (size_t k = 0; k <= i; k += 1 + (i - k > 3 ? d / 40 : 0)) {
                double product = 0;
                for (size_t j = 0; j < d; j++) {
                    product += double(p[i * d + j]) * p[k * d + j];
                }
                ASSERT_NEAR(product, i == k, 2e-6)
                        << d << ": " << i << ", " << k;
            }
        }
    }
}

/// Files hold codes and not rotations.
TEST(Rotation, IsTheSameEverywhere) {
    for (size_t d : {1, 7, 128}) {
        EXPECT_EQ(matrix(d), matrix(d));
    }
    const std::vector<float> expected_of_6 = {
            0.5f, 1, -3.25f, 2.25f, 7.75f, -3.75f};
    const std::vector<float> expected_of_100 = {
            45.53124f, -3.21875f, -31.67186f, -91.60934f, 112.07809f};
    for (const auto& [d, expected] :
         {std::pair(size_t(6), expected_of_6),
          std::pair(size_t(100), expected_of_100)}) {
        std::vector<float> x(d), y(d);
        std::iota(x.begin(), x.end(), 1.0f);
        Rotation(d).apply(1, x.data(), nullptr, 1, y.data());
        for (size_t j = 0; j < expected.size(); j++) {
            EXPECT_NEAR(y[j], expected[j], 1e-4) << d << " " << j;
        }
    }
}

TEST(Rotation, CanBeTakenBack) {
    for (size_t d : dimensions()) {
        std::vector<float> x(3 * d), y(3 * d), back(3 * d);
        for (size_t j = 0; j < x.size(); j++) {
            x[j] = float(int(j * 7919 % 101) - 50);
        }
        const Rotation rotation(d);
        rotation.apply(3, x.data(), nullptr, 1, y.data());
        rotation.apply_inverse(3, y.data(), back.data());
        for (size_t j = 0; j < x.size(); j++) {
            ASSERT_NEAR(back[j], x[j], 3e-4) << d << ": " << j;
        }
    }
}

TEST(Rotation, LeavesNoDirectionAsItWas) {
    for (size_t d : {32, 50, 96, 100, 128, 384, 768}) {
        const std::vector<float> p = matrix(d);
        float most = 0;
        for (float v : p) {
            most = std::max(most, std::abs(v));
        }
        // of a random one: about sqrt(2 log(d^2) / d), 0.66 to 0.18
        EXPECT_LT(most, 0.9) << d;
    }
}

/// Where the windows of the transform hardly overlap, too.
TEST(Rotation, MixesAllDimensions) {
    for (size_t d : {96, 100, 120, 127, 250, 255, 500, 511, 576, 768}) {
        const std::vector<float> p = matrix(d);
        for (bool last : {false, true}) {
            const size_t begin = last ? d - d / 4 : 0;
            double first_half = 0;
            for (size_t i = begin; i < begin + d / 4; i++) {
                for (size_t j = 0; j < d / 2; j++) {
                    first_half += double(p[i * d + j]) * p[i * d + j];
                }
            }
            EXPECT_NEAR(first_half / (d / 4), 0.5, 0.12) << d << " " << last;
        }
    }
}

TEST(Rotation, IsLinear) {
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    for (size_t d : {1, 5, 64, 100}) {
        std::vector<float> x(3 * d), centre(d), out(3 * d);
        for (float& v : x) {
            v = normal(rng);
        }
        for (float& v : centre) {
            v = normal(rng);
        }
        const std::vector<float> p = matrix(d);
        for (const float* c :
             {static_cast<const float*>(nullptr),
              static_cast<const float*>(centre.data())}) {
            Rotation(d).apply(3, x.data(), c, -2.5f, out.data());
            for (size_t i = 0; i < 3; i++) {
                for (size_t j = 0; j < d; j++) {
                    double expected = 0;
                    for (size_t k = 0; k < d; k++) {
                        expected += -2.5 * (x[i * d + k] - (c ? c[k] : 0)) *
                                p[k * d + j];
                    }
                    ASSERT_NEAR(out[i * d + j], expected, 1e-4) << d;
                }
            }
        }
    }
}

} // namespace
} // namespace faiss_ext
