#include "faiss_ext/codes/Rotation.h"

#include <cmath>
#include <random>
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

TEST(Rotation, IsTheSameEveryTime) {
    for (size_t d : {1, 7, 128}) {
        EXPECT_EQ(matrix(d), matrix(d));
    }
    // and everywhere: files hold codes and not rotations
    const std::vector<float> p = matrix(2);
    double sum = 0;
    for (size_t j = 0; j < 4; j++) {
        sum += (j + 1) * p[j];
    }
    EXPECT_NEAR(std::abs(p[0]), std::abs(p[3]), 1e-6);
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
