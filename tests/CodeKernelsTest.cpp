// Kernels against slow sums, and every instruction set against the portable
// one: to the bit, since what a search finds must not depend on the machine.
#include "faiss_ext/codes/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "faiss_ext/codes/AlignedBytes.h"

namespace faiss_ext {
namespace {

constexpr size_t kDimensions[] = {
        1, 3, 16, 50, 64, 96, 100, 128, 384, 576, 1536};
constexpr size_t kLengths[] = {1, 2, 15, 16, 17, 31, 100, 1000};
constexpr int kBits[] = {1, 2, 4};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const CodeKernels& portable() {
    return *code_kernels(SimdLevel::portable);
}

struct Level {
    const char* name;
    const CodeKernels* kernels;
};

/// Those that this machine has beside the portable one.
std::vector<Level> levels() {
    std::vector<Level> out;
    for (const Level& level :
         {Level{"avx2", code_kernels(SimdLevel::avx2)},
          Level{"avx512", code_kernels(SimdLevel::avx512)}}) {
        if (level.kernels) {
            out.push_back(level);
        }
    }
    return out;
}

/// Runs body(kernels) with all of them; what it returns must be the same.
template <class Body>
auto same_on_all(Body&& body) {
    const auto expected = body(portable());
    for (const Level& level : levels()) {
        EXPECT_TRUE(body(*level.kernels) == expected) << level.name;
    }
    return expected;
}

std::mt19937& rng() {
    static std::mt19937 generator(5);
    return generator;
}

std::vector<float> normal(size_t n, float scale = 1, float mean = 0) {
    std::normal_distribution<float> value(mean, scale);
    std::vector<float> out(n);
    for (float& v : out) {
        v = value(rng());
    }
    return out;
}

/// As bits, so that zeros of either sign and NaNs are told apart.
std::vector<uint32_t> bits_of(const std::vector<float>& x) {
    std::vector<uint32_t> out(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        out[i] = std::bit_cast<uint32_t>(x[i]);
    }
    return out;
}

CodeShape shape_of(size_t d, int bits) {
    CodeShape shape;
    shape.d = d;
    shape.bits = bits;
    shape.groups = (d * bits + 15) / 16;
    return shape;
}

/// Where the nibble of a column is among a group's bytes of one entry.
uint8_t nibble_of(const uint8_t* bytes, size_t stride, size_t column) {
    const uint8_t byte = bytes[(column / 4 * 2 + (column & 1)) * stride];
    return column & 2 ? byte >> 4 : byte & 15;
}

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

struct Encoded {
    std::vector<uint8_t> level;
    CodeProducts products;
    bool operator==(const Encoded& other) const {
        const CodeProducts &p = products, &q = other.products;
        return level == other.level && p.rr == q.rr && p.ro == q.ro &&
                p.oo == q.oo && p.mo == q.mo;
    }
};

/// Together with others, which must not matter.
Encoded encoded(
        const CodeKernels& k,
        int bits,
        const std::vector<float>& y,
        const float* own,
        const float* partner,
        float a) {
    const size_t d = y.size(), n = kEncodedTogether, at = n / 2, pitch = d + 3;
    std::vector<float> room(2 * n * d), all;
    std::vector<const float*> owns(n, partner), partners(n, own);
    std::vector<float> as(n, 0.5f);
    owns[at] = own;
    partners[at] = partner;
    as[at] = a;
    for (size_t i = 0; i < n; i++) {
        const std::vector<float> others(d, float(i));
        all.insert(
                all.end(),
                i == at ? y.begin() : others.begin(),
                i == at ? y.end() : others.end());
    }
    std::vector<uint8_t> level(n * pitch, 77);
    std::vector<CodeProducts> products(n);
    k.encode(
            {d,
             bits,
             n,
             all.data(),
             owns.data(),
             partners.data(),
             as.data(),
             room.data(),
             level.data(),
             pitch,
             products.data()});
    Encoded out{std::vector<uint8_t>(d), {}};
    k.encode(
            {d,
             bits,
             1,
             y.data(),
             &own,
             &partner,
             &a,
             room.data(),
             out.level.data(),
             d,
             &out.products});
    const auto own_level = level.begin() + at * pitch;
    EXPECT_TRUE((Encoded{{own_level, own_level + d}, products[at]} == out));
    EXPECT_EQ(own_level[d], 77);
    return out;
}

TEST(CodeKernels, CodesComeNearTheDirection) {
    for (size_t d : kDimensions) {
        for (int bits : kBits) {
            SCOPED_TRACE(std::to_string(d) + ", bits " + std::to_string(bits));
            for (float scale : {1.0f, 1e-12f, 1e12f}) {
                const auto y = normal(d, scale);
                const auto own = normal(d, scale);
                const auto partner = normal(d, scale);
                const float a = 0.3f;
                const auto [level, p] = same_on_all([&](const CodeKernels& k) {
                    return encoded(k, bits, y, own.data(), partner.data(), a);
                });
                const double middle = 0.5 * ((1 << bits) - 1);
                double rr = 0, ro = 0, oo = 0, mo = 0, size = 0;
                for (size_t j = 0; j < d; j++) {
                    ASSERT_LT(level[j], 1 << bits);
                    const double o = level[j] - middle;
                    const double m = own[j] + a * (partner[j] - double(own[j]));
                    const double r = y[j] - m;
                    rr += r * r;
                    ro += r * o;
                    oo += o * o;
                    mo += m * o;
                    size += std::abs(m * o);
                    ASSERT_GE(r * o, -1e-5 * scale); // on the same side of 0
                }
                EXPECT_NEAR(p.rr, rr, 1e-5 * rr);
                EXPECT_NEAR(p.ro, ro, 1e-5 * ro);
                EXPECT_NEAR(p.oo, oo, 1e-5 * oo);
                EXPECT_NEAR(p.mo, mo, 1e-5 * size);
                // of 2 / pi, 0.88 and 0.99 for many normal values
                const double cosine2 = ro * ro / (rr * oo);
                if (d >= 100) {
                    EXPECT_GT(
                            cosine2,
                            bits == 1           ? 0.55
                                    : bits == 2 ? 0.85
                                                : 0.95);
                }
                EXPECT_LE(cosine2, 1 + 1e-6);
            }
        }
    }
}

TEST(CodeKernels, NothingHasSomeCode) {
    for (int bits : kBits) {
        const std::vector<float> mean = normal(40);
        const auto code = same_on_all([&](const CodeKernels& k) {
            return encoded(k, bits, mean, mean.data(), mean.data(), 0.5f);
        });
        EXPECT_EQ(code.products.rr, 0);
        EXPECT_EQ(code.products.ro, 0);
        EXPECT_GT(code.products.oo, 0);
        for (uint8_t l : code.level) {
            EXPECT_LT(l, 1 << bits);
        }
    }
}

struct Tables {
    std::vector<uint8_t> bytes;
    float base, step;
    bool operator==(const Tables&) const = default;

    CodeQuery query() const {
        return {bytes.data(), base, step};
    }
    uint8_t entry(size_t column, size_t value) const {
        return bytes
                [(column & 2 ? bytes.size() / 2 : 0) + column / 4 * 32 +
                 (column & 1) * 16 + value];
    }
};

Tables tables_of(const CodeKernels& k, const CodeShape& shape, const float* q) {
    Tables t{std::vector<uint8_t>(shape.groups * 64, 77), -1, -1};
    k.make_tables(shape, q, t.bytes.data(), &t.base, &t.step);
    return t;
}

TEST(CodeKernels, TablesHoldTheSharesOfEveryValue) {
    for (size_t d : kDimensions) {
        for (int bits : kBits) {
            SCOPED_TRACE(std::to_string(d) + ", bits " + std::to_string(bits));
            const CodeShape shape = shape_of(d, bits);
            const size_t dims = 4 / bits;
            std::vector<float> outlier = normal(d);
            outlier[d / 2] = 1e4f;
            for (const auto& q :
                 {normal(d),
                  normal(d, 1e-20f),
                  normal(d, 1e15f),
                  outlier,
                  std::vector<float>(d, 0.0f)}) {
                const Tables t = same_on_all([&](const CodeKernels& k) {
                    return tables_of(k, shape, q.data());
                });
                ASSERT_GE(t.step, 0);
                size_t largest_sum = 0;
                for (size_t c = 0; c < shape.groups * 4; c++) {
                    double reach = 0; // the least share of the column, negated
                    for (size_t i = 0; i < dims; i++) {
                        const size_t j = c * dims + i;
                        reach += 0.5 * ((1 << bits) - 1) *
                                (j < d ? std::abs(double(q[j])) : 0);
                    }
                    uint8_t largest = 0;
                    for (size_t n = 0; n < 16; n++) {
                        double share = 0;
                        for (size_t i = 0; i < dims; i++) {
                            const size_t j = c * dims + i;
                            const int level =
                                    n >> (i * bits) & ((1 << bits) - 1);
                            share += (level - 0.5 * ((1 << bits) - 1)) *
                                    (j < d ? double(q[j]) : 0);
                        }
                        ASSERT_NEAR(
                                t.entry(c, n) * double(t.step),
                                share + reach,
                                0.5001 * t.step);
                        largest = std::max(largest, t.entry(c, n));
                    }
                    largest_sum += largest;
                    ASSERT_LE(largest, bits == 4 ? 127 : 63);
                }
                EXPECT_LE(largest_sum, 65535u);
            }
        }
    }
}

/// Lists of random codes. Places beyond the last entry hold what nothing may
/// look at.
TEST(CodeKernels, ProductsWithOneCode) {
    for (size_t d : kDimensions) {
        for (int bits : kBits) {
            SCOPED_TRACE(std::to_string(d) + ", bits " + std::to_string(bits));
            const CodeShape shape = shape_of(d, bits);
            const auto q = normal(d);
            AlignedBytes block(shape.block_bytes());
            for (uint8_t& byte : block) {
                byte = uint8_t(rng()());
            }
            const auto products = same_on_all([&](const CodeKernels& k) {
                std::vector<float> out(kBlockEntries);
                for (size_t lane = 0; lane < kBlockEntries; lane++) {
                    out[lane] =
                            k.code_product(shape, q.data(), block.data(), lane);
                }
                return bits_of(out);
            });
            const size_t dims = 4 / bits;
            for (size_t lane = 0; lane < kBlockEntries; lane++) {
                double sum = 0, size = 0;
                for (size_t j = 0; j < d; j++) {
                    const size_t column = j / dims;
                    const uint8_t byte =
                            block[column / 4 * 32 + (column & 1) * 16 + lane];
                    const int nibble = column & 2 ? byte >> 4 : byte & 15;
                    const int level =
                            nibble >> (j % dims * bits) & ((1 << bits) - 1);
                    const double o = level - 0.5 * ((1 << bits) - 1);
                    sum += q[j] * o;
                    size += std::abs(q[j] * o);
                }
                ASSERT_NEAR(
                        std::bit_cast<float>(products[lane]), sum, 1e-6 * size);
            }
        }
    }
}

struct Lists {
    CodeShape shape;
    std::vector<size_t> sizes;
    std::vector<AlignedBytes> blocks;

    Lists(const CodeShape& shape_in, const std::vector<size_t>& sizes_in)
            : shape(shape_in), sizes(sizes_in) {
        const size_t bytes = shape.block_bytes();
        for (size_t n : sizes) {
            AlignedBytes b((n + kBlockEntries - 1) / kBlockEntries * bytes);
            for (uint8_t& v : b) {
                v = uint8_t(rng()());
            }
            for (size_t block = 0; block * bytes < b.size(); block++) {
                const auto a = normal(kBlockEntries, 10, 50);
                auto terms = a;
                for (float v : normal(kBlockEntries, 0.2f, -1)) {
                    terms.push_back(v);
                }
                for (size_t l = 0; l < kBlockEntries; l++) {
                    if (block * kBlockEntries + l >= n) {
                        terms[l] = std::nanf("");
                        terms[kBlockEntries + l] = -kInfinity;
                    }
                }
                memcpy(&b[block * bytes + shape.groups * 32],
                       terms.data(),
                       terms.size() * sizeof(float));
            }
            blocks.push_back(std::move(b));
        }
    }

    Segment segment(uint32_t list, uint32_t begin, uint32_t end) const {
        const auto numbers = normal(2, 5, 20);
        return {blocks[list].data(), list, begin, end, numbers[0], numbers[1]};
    }

    /// The estimate of an entry, in the float operations of the header.
    float estimate(
            const Tables& t,
            bool similarity,
            const Segment& s,
            size_t entry) const {
        const uint8_t* block =
                s.blocks + entry / kBlockEntries * shape.block_bytes();
        const size_t lane = entry % kBlockEntries;
        int32_t sum = 0;
        for (size_t c = 0; c < shape.groups * 4; c++) {
            sum += t.entry(c, nibble_of(block + lane, kBlockEntries, c));
        }
        float terms[2 * kBlockEntries];
        memcpy(terms, block + shape.groups * 32, sizeof(terms));
        const volatile float scaled = float(sum) * t.step;
        const volatile float product = scaled + t.base;
        const volatile float with_slack = product + s.slack;
        const volatile float share = terms[kBlockEntries + lane] * with_slack;
        const volatile float own =
                similarity ? terms[lane] * s.score : terms[lane] + s.score;
        return share + own;
    }
};

TEST(CodeKernels, ScanGivesTheEntriesBelowTheThreshold) {
    for (size_t d : kDimensions) {
        for (int bits : kBits) {
            SCOPED_TRACE(std::to_string(d) + ", bits " + std::to_string(bits));
            const CodeShape shape = shape_of(d, bits);
            const Lists lists(shape, {53, 16, 1, 200, 2500});
            const auto q = normal(d, 0.5f);
            const Tables t = tables_of(portable(), shape, q.data());
            std::vector<Segment> segments;
            for (auto [list, begin, end] : std::vector<std::array<uint32_t, 3>>{
                         {0, 0, 1},      // inside a block
                         {0, 3, 13},     // the same block
                         {0, 13, 16},    // to its end
                         {0, 16, 32},    // a whole one
                         {0, 32, 53},    // to the list's last entry
                         {1, 0, 16},     // a list of one block
                         {2, 0, 1},      // of one entry
                         {3, 5, 180},    // from and to inside of blocks
                         {3, 180, 181},  // a block that has been read
                         {3, 192, 200},  // the last
                         {4, 7, 2490},   // more blocks than are gathered
                         {0, 15, 17}}) { // across a border, once more
                segments.push_back(lists.segment(list, begin, end));
            }
            size_t entries = 0;
            for (const Segment& s : segments) {
                entries += s.end - s.begin;
            }
            for (bool similarity : {false, true}) {
                std::vector<float> all;
                for (const Segment& s : segments) {
                    for (size_t e = s.begin; e < s.end; e++) {
                        all.push_back(lists.estimate(t, similarity, s, e));
                    }
                }
                std::vector<float> sorted = all;
                std::sort(sorted.begin(), sorted.end());
                for (float threshold :
                     {kInfinity,
                      sorted[entries / 2], // that one is not below it
                      sorted[2],
                      sorted[0],
                      -kInfinity}) {
                    struct Out {
                        std::vector<uint32_t> bounds, lists, entries;
                        bool operator==(const Out&) const = default;
                    };
                    auto scan = [&](const CodeKernels& k, size_t at_once) {
                        Out out;
                        std::vector<CodeCandidate> found(
                                entries + kMoreCandidates);
                        for (size_t s = 0; s < segments.size(); s += at_once) {
                            const size_t n =
                                    std::min(at_once, segments.size() - s);
                            const size_t m =
                                    k.scan(shape,
                                           t.query(),
                                           similarity,
                                           &segments[s],
                                           n,
                                           threshold,
                                           found.data());
                            for (size_t i = 0; i < m; i++) {
                                out.bounds.push_back(std::bit_cast<uint32_t>(
                                        found[i].bound));
                                out.lists.push_back(found[i].list);
                                out.entries.push_back(found[i].entry);
                            }
                        }
                        return out;
                    };
                    const Out out = same_on_all([&](const CodeKernels& k) {
                        return scan(k, segments.size());
                    });
                    EXPECT_TRUE(scan(best_code_kernels(), 3) == out);
                    Out expected;
                    size_t i = 0;
                    for (const Segment& s : segments) {
                        for (size_t e = s.begin; e < s.end; e++, i++) {
                            if (all[i] < threshold) {
                                expected.bounds.push_back(
                                        std::bit_cast<uint32_t>(all[i]));
                                expected.lists.push_back(s.list);
                                expected.entries.push_back(uint32_t(e));
                            }
                        }
                    }
                    EXPECT_TRUE(out == expected)
                            << similarity << " " << threshold << ": "
                            << out.entries.size() << " of "
                            << expected.entries.size();
                }
            }
        }
    }
}

} // namespace
} // namespace faiss_ext
