// Kernels that make, look up and scan codes: against double, and to the bit
// against the portable ones.
#include "CodeKernelsTools.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "faiss_ext/codes/AlignedBytes.h"

namespace faiss_ext {
namespace {

constexpr int kBits[] = {1, 2, 4};

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
