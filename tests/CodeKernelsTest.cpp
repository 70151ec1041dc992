// Kernels against slow sums, and every instruction set against the portable
// one: to the bit, since what a search finds must not depend on the machine.
#include "CodeKernelsTools.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace faiss_ext {
namespace {

TEST(CodeKernels, TheBestIsOneOfThoseThatThereAre) {
    bool found = &best_code_kernels() == &portable();
    for (const Level& level : levels()) {
        found |= &best_code_kernels() == level.kernels;
    }
    EXPECT_TRUE(found);
    EXPECT_EQ(levels().empty(), &best_code_kernels() == &portable());
}

TEST(CodeKernels, FaissSimdLevelHoldsThemToo) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto uses = [](const char* value, SimdLevel level) {
        setenv("FAISS_SIMD_LEVEL", value, 1);
        const CodeKernels* expected = code_kernels(level);
        std::exit(!expected || &best_code_kernels() == expected ? 0 : 1);
    };
    EXPECT_EXIT(
            uses("NONE", SimdLevel::portable), testing::ExitedWithCode(0), "");
    EXPECT_EXIT(uses("AVX2", SimdLevel::avx2), testing::ExitedWithCode(0), "");
    EXPECT_EXIT(
            uses("AVX512", SimdLevel::avx512), testing::ExitedWithCode(0), "");
}

TEST(CodeKernels, DistancesAndProductsOfTwoVectors) {
    for (size_t d : kDimensions) {
        for (float mean : {0.0f, 100.0f}) {
            const auto x = normal(d, 1, mean), y = normal(d, 3, mean);
            double distance = 0, product = 0, size = 0;
            for (size_t j = 0; j < d; j++) {
                distance += (double(x[j]) - y[j]) * (double(x[j]) - y[j]);
                product += double(x[j]) * y[j];
                size += std::abs(double(x[j]) * y[j]);
            }
            const auto both = same_on_all([&](const CodeKernels& k) {
                return std::vector<float>{
                        k.squared_distance(x.data(), y.data(), d),
                        k.inner_product(x.data(), y.data(), d)};
            });
            EXPECT_NEAR(both[0], distance, 1e-6 * distance + 1e-9) << d;
            EXPECT_NEAR(both[1], product, 1e-6 * size + 1e-9) << d;
        }
    }
}

TEST(CodeKernels, DistancesToAllOfARun) {
    for (size_t d : kDimensions) {
        const size_t n = 5;
        const auto x = normal(d, 1), y = normal(n * d, 3);
        for (bool similarity : {false, true}) {
            const auto all = same_on_all([&](const CodeKernels& k) {
                std::vector<float> out(n);
                k.all_distances(
                        similarity, x.data(), y.data(), n, d, out.data());
                return out;
            });
            for (size_t i = 0; i < n; i++) {
                const float* row = &y[i * d];
                EXPECT_EQ(
                        all[i],
                        similarity ? -portable().inner_product(x.data(), row, d)
                                   : portable().squared_distance(
                                             x.data(), row, d));
            }
        }
    }
}

TEST(CodeKernels, Bytes) {
    for (size_t d : kDimensions) {
        const auto scale = normal(d), offset = normal(d, 10);
        std::vector<uint8_t> code(d);
        for (uint8_t& c : code) {
            c = uint8_t(rng()());
        }
        const auto x = same_on_all([&](const CodeKernels& k) {
            std::vector<float> out(d);
            k.decode_bytes(
                    d, code.data(), scale.data(), offset.data(), out.data());
            return out;
        });
        for (size_t j = 0; j < d; j++) {
            ASSERT_NEAR(
                    x[j],
                    double(offset[j]) + double(scale[j]) * code[j],
                    1e-6 * (10 + 300 * std::abs(scale[j])));
        }
    }
}

TEST(CodeKernels, EveryHalf) {
    std::vector<uint16_t> code(65536);
    for (size_t i = 0; i < code.size(); i++) {
        code[i] = uint16_t(i);
    }
    const auto bits = same_on_all([&](const CodeKernels& k) {
        std::vector<float> out(code.size());
        k.decode_halves(
                code.size(),
                reinterpret_cast<const uint8_t*>(code.data()),
                out.data());
        return bits_of(out);
    });
    for (size_t i = 0; i < code.size(); i++) {
        const float x = std::bit_cast<float>(bits[i]);
        const int exponent = i >> 10 & 31, mantissa = i & 1023;
        EXPECT_EQ(std::signbit(x), i >= 32768) << i;
        if (exponent == 31) {
            EXPECT_EQ(std::isnan(x), mantissa != 0) << i;
            EXPECT_EQ(std::isinf(x), mantissa == 0) << i;
            continue;
        }
        const float size = exponent == 0
                ? std::ldexp(float(mantissa), -24)
                : std::ldexp(float(1024 + mantissa), exponent - 25);
        EXPECT_EQ(std::abs(x), size) << i;
    }
}

TEST(CodeKernels, HadamardsTransform) {
    for (size_t n = 1; n <= 1024; n *= 2) {
        const auto x = normal(n);
        const auto y = same_on_all([&](const CodeKernels& k) {
            std::vector<float> out = x;
            k.hadamard(out.data(), nullptr, n);
            return out;
        });
        std::vector<float> signs(n), signed_x(n);
        for (size_t i = 0; i < n; i++) {
            signs[i] = i % 3 ? 1.0f : -1.0f;
            signed_x[i] = signs[i] * x[i];
        }
        portable().hadamard(signed_x.data(), nullptr, n);
        EXPECT_EQ(signed_x, same_on_all([&](const CodeKernels& k) {
                      std::vector<float> out = x;
                      k.hadamard(out.data(), signs.data(), n);
                      return out;
                  }));
        for (size_t i = 0; i < n; i += 1 + n / 50) {
            double sum = 0;
            for (size_t j = 0; j < n; j++) {
                sum += std::popcount(i & j) % 2 ? -x[j] : x[j];
            }
            ASSERT_NEAR(y[i], sum / std::sqrt(double(n)), 1e-5)
                    << n << " " << i;
        }
    }
}

TEST(CodeKernels, DistancesFromProducts) {
    for (size_t n : kLengths) {
        const auto products = normal(n, 5), norms = normal(n, 1, 8);
        const float offset = 3;
        for (float scale : {-2.0f, -0.01f, 0.0f}) {
            const auto out = same_on_all([&](const CodeKernels& k) {
                std::vector<float> all(n + 2);
                k.distances(
                        n,
                        products.data(),
                        norms.data(),
                        scale,
                        offset,
                        all.data(),
                        &all[n],
                        &all[n + 1]);
                return bits_of(all);
            });
            std::vector<float> expected(n);
            for (size_t j = 0; j < n; j++) {
                expected[j] = std::max(
                        0.0f, products[j] * scale + (offset + norms[j]));
            }
            const auto [low, high] =
                    std::minmax_element(expected.begin(), expected.end());
            expected.insert(expected.end(), {*low, *high});
            for (size_t j = 0; j < n + 2; j++) {
                ASSERT_NEAR(std::bit_cast<float>(out[j]), expected[j], 1e-5);
            }
        }
    }
}

TEST(CodeKernels, ScoresOfCells) {
    const auto distances = normal(50, 2, 9);
    for (size_t n : kLengths) {
        std::vector<int32_t> partner(n);
        for (int32_t& p : partner) {
            p = int32_t(rng()() % distances.size());
        }
        const auto gap = normal(n, 1, 4);
        for (float limit : {kInfinity, 5.0f}) {
            const float a = 0.3f, own = 7, weight = 0.21f;
            const auto out = same_on_all([&](const CodeKernels& k) {
                std::vector<float> all(n);
                float least = limit, largest = -limit;
                k.score_cells(
                        n,
                        distances.data(),
                        partner.data(),
                        gap.data(),
                        a,
                        own,
                        weight,
                        all.data(),
                        &least,
                        &largest);
                all.insert(all.end(), {least, largest});
                return all;
            });
            float least = limit, largest = -limit;
            for (size_t l = 0; l < n; l++) {
                ASSERT_NEAR(
                        out[l],
                        own + a * distances[partner[l]] - weight * gap[l],
                        1e-5);
                least = std::min(least, out[l]);
                largest = std::max(largest, out[l]);
            }
            EXPECT_EQ(out[n], least);
            EXPECT_EQ(out[n + 1], largest);
        }
    }
}

TEST(CodeKernels, TheLargestDifference) {
    for (size_t n : kLengths) {
        for (int distinct : {1000000, 3}) { // with few values there are ties
            std::vector<float> x(n), y(n);
            for (size_t j = 0; j < n; j++) {
                x[j] = float(int(rng()() % distinct)) - 20;
                y[j] = float(rng()() % distinct);
            }
            const size_t place = same_on_all([&](const CodeKernels& k) {
                return k.largest_difference(n, x.data(), y.data());
            });
            size_t expected = 0;
            for (size_t j = 1; j < n; j++) {
                if (x[j] - y[j] > x[expected] - y[expected]) {
                    expected = j;
                }
            }
            EXPECT_EQ(place, expected) << n;
        }
    }
}

TEST(CodeKernels, TheNearestCell) {
    for (size_t n : kLengths) {
        for (int distinct : {1000000, 3}) { // with few values there are ties
            const size_t nlist = 50;
            std::vector<float> products(nlist), half_norms(nlist), gap(n);
            std::vector<int32_t> partner(n);
            for (size_t i = 0; i < nlist; i++) {
                products[i] = float(int(rng()() % distinct)) - 20;
                half_norms[i] = float(rng()() % distinct);
            }
            for (size_t l = 0; l < n; l++) {
                partner[l] = int32_t(rng()() % nlist);
                gap[l] = float(rng()() % distinct);
            }
            const size_t cell = same_on_all([&](const CodeKernels& k) {
                return k.nearest_cell(
                        n,
                        products.data(),
                        0.5f,
                        half_norms.data(),
                        partner.data(),
                        gap.data(),
                        0.25f);
            });
            std::vector<float> value(n);
            for (size_t l = 0; l < n; l++) {
                value[l] = half_norms[partner[l]] -
                        0.5f * products[partner[l]] - 0.25f * gap[l];
            }
            EXPECT_EQ(
                    cell,
                    size_t(std::min_element(value.begin(), value.end()) -
                           value.begin()))
                    << n;
        }
    }
}

TEST(CodeKernels, Buckets) {
    for (size_t n : kLengths) {
        auto x = normal(n, 10);
        const float least = *std::min_element(x.begin(), x.end());
        const float width = *std::max_element(x.begin(), x.end()) - least;
        for (float scale : {0.0f, width > 0 ? 511.99f / width : 0}) {
            const auto out = same_on_all([&](const CodeKernels& k) {
                std::vector<uint16_t> bucket(n);
                k.buckets(n, x.data(), least, scale, 500, bucket.data());
                return bucket;
            });
            for (size_t j = 0; j < n; j++) {
                ASSERT_EQ(
                        out[j],
                        std::min<uint16_t>(
                                500, uint16_t((x[j] - least) * scale)));
            }
        }
    }
}

TEST(CodeKernels, Places) {
    for (size_t n : kLengths) {
        std::vector<uint16_t> value(n);
        for (uint16_t& v : value) {
            v = rng()() % 20;
        }
        for (int low : {0, 3, 19, 25}) {
            for (int width : {0, 1, 7, 511, 65535 - low}) {
                const auto out = same_on_all([&](const CodeKernels& k) {
                    std::vector<uint32_t> place(n);
                    place.resize(k.places(
                            n,
                            value.data(),
                            uint16_t(low),
                            uint16_t(width),
                            place.data()));
                    return place;
                });
                std::vector<uint32_t> expected;
                for (size_t j = 0; j < n; j++) {
                    if (value[j] >= low && value[j] <= low + width) {
                        expected.push_back(uint32_t(j));
                    }
                }
                ASSERT_EQ(out, expected) << n << " " << low << " " << width;
            }
        }
    }
}

TEST(CodeKernels, CutHasSoManyBelow) {
    for (size_t n : kLengths) {
        const auto x = normal(n, 10);
        for (size_t most : {size_t(1), n / 5 + 1, n / 2 + 1, n}) {
            const size_t least = most - most / 8;
            const auto below = same_on_all([&](const CodeKernels& k) {
                const float cut = k.cut(n, x.data(), least, most);
                return size_t(std::count_if(
                        x.begin(), x.end(), [&](float v) { return v < cut; }));
            });
            // the largest is never below
            EXPECT_GE(below, std::min(least, n - 1)) << n << " " << most;
            EXPECT_LE(below, most) << n;
        }
        const std::vector<float> equal(n, 7);
        EXPECT_EQ(best_code_kernels().cut(n, equal.data(), 1, 1), 7);
    }
}

} // namespace
} // namespace faiss_ext
