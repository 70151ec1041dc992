#include "InnerProducts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

using gmm::InstructionSet;
using gmm::PackedMeans;

namespace {

struct InnerProductsTest : testing::TestWithParam<InstructionSet> {
    const gmm::Kernels* kernel = gmm::kernels(GetParam());

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

std::vector<float> normal(size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> value;
    std::vector<float> out(size);
    for (float& x : out) {
        x = value(random);
    }
    return out;
}

constexpr float kUntouched = -12345;

} // namespace

TEST_P(InnerProductsTest, AgreeWithDoubleForAllShapes) {
    for (size_t d : {1, 3, 8, 50, 128, 1536}) {
        for (size_t k : {1, 7, 15, 16, 33, 100, 256, 300}) {
            const std::vector<float> means = normal(k * d, 1);
            const PackedMeans packed(k, d, means.data());
            for (size_t n : {1, 2, 3, 5, 12, 13, 25, 70}) {
                SCOPED_TRACE(
                        testing::Message()
                        << "d " << d << " k " << k << " n " << n);
                const std::vector<float> q = normal(n * d, 2);
                const size_t stride = k + 3;
                std::vector<float> out(n * stride, kUntouched);
                gmm::inner_products(
                        packed, n, q.data(), out.data(), stride, *kernel);
                for (size_t i = 0; i < n; i++) {
                    for (size_t c = 0; c < k; c++) {
                        double expected = 0, size = 0;
                        for (size_t j = 0; j < d; j++) {
                            const double term =
                                    double(q[i * d + j]) * means[c * d + j];
                            expected += term;
                            size += std::abs(term);
                        }
                        ASSERT_NEAR(
                                out[i * stride + c],
                                expected,
                                std::ldexp(size, -20))
                                << "query " << i << " mean " << c;
                    }
                    for (size_t c = k; c < stride; c++) {
                        ASSERT_EQ(out[i * stride + c], kUntouched);
                    }
                }
            }
        }
    }
}

/// Of means far from the origin, beside whose squares the differences are
/// small.
TEST_P(InnerProductsTest, ExponentsAgreeWithDouble) {
    for (size_t d : {1, 3, 50, 128}) {
        for (size_t k : {1, 15, 16, 33, 100}) {
            std::vector<float> scale = normal(k * d, 1), shift(k * d);
            for (size_t i = 0; i < k * d; i++) {
                scale[i] = 1 + std::fabs(scale[i]);
                shift[i] = 300 * scale[i];
            }
            const PackedMeans scales(k, d, scale.data());
            const PackedMeans shifts(k, d, shift.data());
            for (size_t n : {1, 5, 12, 13, 70}) {
                std::vector<float> q = normal(n * d, 2);
                for (float& value : q) {
                    value += 300;
                }
                const size_t stride = k + 3;
                std::vector<float> out(n * stride, kUntouched);
                gmm::exponents(
                        scales,
                        shifts,
                        n,
                        q.data(),
                        out.data(),
                        stride,
                        *kernel);
                for (size_t i = 0; i < n * stride; i++) {
                    const size_t c = i % stride;
                    if (c >= k) {
                        ASSERT_EQ(out[i], kUntouched);
                        continue;
                    }
                    double expected = 0;
                    for (size_t j = 0; j < d; j++) {
                        const double off = double(q[i / stride * d + j]) *
                                        scale[c * d + j] -
                                shift[c * d + j];
                        expected -= 0.5 * off * off;
                    }
                    // The portable kernel rounds products, 1e-3 of a value.
                    ASSERT_NEAR(
                            out[i],
                            expected,
                            GetParam() == InstructionSet::portable
                                    ? 1e-3 * (double(d) - expected)
                                    : -1e-5 * expected)
                            << d << " " << k << " " << n << " " << c;
                }
            }
        }
    }
}

TEST_P(InnerProductsTest, BitsDoNotDependOnTheBatch) {
    const size_t d = 300, k = 77, n = 501; // more than one block of queries
    const std::vector<float> means = normal(k * d, 3), q = normal(n * d, 4);
    const PackedMeans packed(k, d, means.data());
    std::vector<float> whole(n * k), single(k);
    gmm::inner_products(packed, n, q.data(), whole.data(), k, *kernel);
    for (size_t i = 0; i < n; i++) {
        gmm::inner_products(
                packed, 1, q.data() + i * d, single.data(), k, *kernel);
        for (size_t c = 0; c < k; c++) {
            ASSERT_EQ(whole[i * k + c], single[c]) << i << " " << c;
        }
    }
}

TEST_P(InnerProductsTest, TransposedMeansAreTheSame) {
    PackedMeans packed;
    for (size_t k : {77, 16, 3}) { // larger ones leave nothing behind
        const size_t d = 20, n = 5, stride = k + 9;
        const std::vector<float> means = normal(k * d, 3), q = normal(n * d, 4);
        std::vector<float> transposed(d * stride, NAN);
        for (size_t c = 0; c < k; c++) {
            for (size_t j = 0; j < d; j++) {
                transposed[j * stride + c] = means[c * d + j];
            }
        }
        packed.assign_transposed(k, d, transposed.data(), stride);
        std::vector<float> found(n * k), expected(n * k);
        gmm::inner_products(packed, n, q.data(), found.data(), k, *kernel);
        gmm::inner_products(
                PackedMeans(k, d, means.data()),
                n,
                q.data(),
                expected.data(),
                k,
                *kernel);
        EXPECT_EQ(found, expected);
    }
}

TEST_P(InnerProductsTest, NothingToDo) {
    const std::vector<float> means = normal(16, 5);
    float out = kUntouched;
    const PackedMeans packed(4, 4, means.data());
    gmm::inner_products(packed, 0, nullptr, &out, 4, *kernel);
    EXPECT_EQ(out, kUntouched);
}

INSTANTIATE_TEST_SUITE_P(
        InstructionSets,
        InnerProductsTest,
        testing::Values(
                InstructionSet::portable,
                InstructionSet::avx2,
                InstructionSet::avx512),
        name_of);
