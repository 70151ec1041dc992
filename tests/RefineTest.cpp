#include "HostWarp.h" // before device code: its instructions

#include "cuda/sparse/Refine.cuh"

#include <gtest/gtest.h>

#include <memory>
#include <random>

/** Exact evaluation of entries, and their way on, as device code on an emulated
 * warp: no device is needed. */
namespace {

using namespace gmm::cuda;

/// Rows in units, with lists of components whose scores are a little wrong.
struct Block {
    int rows = 150, d = 20, k = 30;
    bool each_dimension = false, all = true;
    std::vector<float> weight; ///< [rows], or empty
    float most_fall = INFINITY;

    uint32_t lost_before = 0, rejected = 0;
    int pitch = 0, units = 0;
    std::vector<__half> hi, lo;
    std::vector<float> means, half_inverse, log_constant, row_lse;
    std::vector<float> zeros;
    std::vector<float4> doubt;
    std::vector<uint32_t> keys;
    std::vector<uint2> values;
    std::vector<uint16_t> ranges;
    std::vector<uint64_t> offsets, entries;
    std::vector<uint32_t> overflowed;
    std::vector<double> rough; ///< [rows][k] scores, log2
    std::mt19937 random{1};

    double y(int row, int j) const {
        return double(__half2float(hi[row * pitch + j])) +
                __half2float(lo[row * pitch + j]);
    }
    double exact(int row, int c) const {
        double sum = 0;
        for (int j = 0; j < d; j++) {
            const double t = y(row, j) - means[c * d + j];
            sum += t * t * half_inverse[each_dimension ? c * d + j : c];
        }
        return log_constant[c] - sum;
    }
    float weight_of(int row) const {
        return weight.empty() ? 1.f : weight[row];
    }
    bool is_doubtful(int c) const {
        return c % 3 == 0;
    }

    /// error(row, component): what a score is wrong by.
    template <class Error>
    void make(const Error& error) {
        std::normal_distribution<float> normal;
        std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
        pitch = (d + 15) / 16 * 16;
        units = (rows + kUnitRows - 1) / kUnitRows;
        hi.assign(rows * pitch, __float2half(0));
        lo = hi;
        for (int i = 0; i < rows * pitch; i++) {
            if (i % pitch < d) {
                const float x = normal(random);
                hi[i] = __float2half(x);
                lo[i] = __float2half(x - __half2float(hi[i]));
            }
        }
        means.resize(k * d);
        for (float& m : means) {
            m = 0.3f * normal(random);
        }
        half_inverse.resize(each_dimension ? k * d : k);
        for (float& v : half_inverse) {
            v = uniform(random);
        }
        for (int c = 0; c < k; c++) {
            log_constant.push_back(normal(random));
            // Wrong by much, wherever it is, or not at all.
            doubt.push_back(
                    is_doubtful(c) ? make_float4(1, 1, 1e6f, 0)
                                   : make_float4(0, 0, 0, 0));
        }
        zeros.assign(rows, 0);
        row_lse.resize(rows);
        ranges.assign(rows, 0);
        keys.resize(units * kUnitCapacity);
        values.resize(units * kUnitCapacity);
        rough.resize(rows * k);
        uint32_t used = 0, lost = 0;
        for (int unit = 0; unit < units; unit++) {
            offsets.push_back(used | uint64_t(lost) << 32);
            int at = 0;
            for (int row = unit * kUnitRows;
                 row < std::min(rows, (unit + 1) * kUnitRows);
                 row++) {
                if (row % 13 == 5) {
                    row_lse[row] = NAN;
                    lost++;
                    continue;
                }
                // The first few, whose mass is all that there is.
                const int listed = 1 + row % 7;
                double sum = 0;
                for (int c = 0; c < listed; c++) {
                    rough[row * k + c] = exact(row, c) + error(row, c);
                    sum += std::exp2(rough[row * k + c]);
                }
                row_lse[row] = float(std::log2(sum));
                ranges[row] = uint16_t(at << 8 | listed);
                for (int c = 0; c < listed; c++, at++) {
                    keys[unit * kUnitCapacity + at] = c;
                    const float r = weight_of(row) *
                            float(std::exp2(rough[row * k + c]) / sum);
                    values[unit * kUnitCapacity + at] =
                            make_uint2(row, std::bit_cast<uint32_t>(r));
                }
            }
            used += at;
        }
        offsets.push_back(used | uint64_t(lost) << 32);
        entries.assign(used, 0);
        overflowed.assign(rows, 0); // rejected rows, too
        lost_before = lost;
    }

    template <bool kAligned, bool kEachDimension>
    void run() {
        RefineArgs args;
        args.exact.hi = hi.data();
        args.exact.lo = lo.data();
        args.exact.d = d;
        args.exact.pitch = pitch;
        args.exact.inverse_fp16_scale = 1;
        args.exact.means = means.data();
        args.exact.half_inverse = half_inverse.data();
        args.exact.log_constant = log_constant.data();
        args.compact = {
                units,
                rows,
                keys.data(),
                values.data(),
                row_lse.data(),
                offsets.data(),
                entry_layout(rows, k, 2),
                entries.data(),
                overflowed.data()};
        args.values = values.data();
        args.row_ranges = ranges.data();
        args.row_lse = row_lse.data();
        args.row_weight = weight.empty() ? nullptr : weight.data();
        args.doubt = doubt.data();
        args.row_error = zeros.data();
        args.row_constant = zeros.data();
        args.all = all;
        args.tolerance = 0.005f;
        args.most_fall = most_fall;
        args.rejected = &rejected;
        const int warps = (units + kWarpUnits - 1) / kWarpUnits + 1;
        for (int warp = 0; warp < warps; warp++) {
            auto shared = std::make_unique<RefineShared>();
            host_warp::run([&] {
                refine_units<kAligned, kEachDimension>(args, warp, *shared);
            });
        }
    }

    void run() {
        if (d % 4 == 0) {
            each_dimension ? run<true, true>() : run<true, false>();
        } else {
            each_dimension ? run<false, true>() : run<false, false>();
        }
    }

    /// Against double; score(row, component): what an entry's ought to be.
    template <class Score>
    void check(const Score& score) {
        uint32_t at = 0, lost = 0;
        const TripleLayout layout = entry_layout(rows, k, 2);
        for (int row = 0; row < rows; row++) {
            if (row % 13 == 5) {
                EXPECT_TRUE(std::isnan(row_lse[row])) << row;
                EXPECT_EQ(overflowed[lost++], uint32_t(row));
                continue;
            }
            const int listed = ranges[row] & 255;
            double sum = 0;
            for (int c = 0; c < listed; c++) {
                sum += std::exp2(score(row, c));
            }
            if (weight_of(row) > 0) {
                EXPECT_NEAR(row_lse[row], std::log2(sum), 1e-4) << row;
            }
            for (int c = 0; c < listed; c++, at++) {
                const double r =
                        weight_of(row) * std::exp2(score(row, c)) / sum;
                const uint64_t entry = entries[at];
                EXPECT_NEAR(triple_value(layout, entry), r, 1e-4)
                        << "row " << row << " component " << c;
                EXPECT_EQ(triple_row(layout, entry), uint32_t(row));
                const uint32_t key = triple_key(layout, entry);
                EXPECT_EQ(key_component(layout, key), uint32_t(c));
            }
        }
        EXPECT_EQ(at, entries.size());
        EXPECT_EQ(lost, lost_before);
    }
};

double small_error(int row, int c) {
    return 0.3 * std::sin(row * 7 + c * 3);
}

/// All entries, of every kind of model, with dimensions that fill a vector load
/// and such that do not, more than one round of them, and fewer.
TEST(RefineTest, EvaluatesAll) {
    for (int d : {1, 20, 23, 128, 150}) {
        for (bool each_dimension : {false, true}) {
            SCOPED_TRACE(d);
            Block block;
            block.d = d;
            block.each_dimension = each_dimension;
            block.make(small_error);
            block.run();
            block.check([&](int row, int c) { return block.exact(row, c); });
        }
    }
}

TEST(RefineTest, EvaluatesWhatIsDoubtful) {
    Block block;
    block.all = false;
    block.make(small_error);
    block.run();
    block.check([&](int row, int c) {
        return block.is_doubtful(c) ? block.exact(row, c)
                                    : block.rough[row * block.k + c];
    });
}

/// A score far too high hides the rest, which must be looked at again where a
/// row's log-sum-exp falls by more than a bit.
TEST(RefineTest, EvaluatesAgainWhatWasHidden) {
    Block block;
    block.all = false;
    block.make([&](int row, int c) {
        return c == 0 && row % 2 ? 12. : small_error(row, c);
    });
    const std::vector<float> before = block.row_lse;
    block.run();
    const auto first = [&](int row, int c) {
        return block.is_doubtful(c) ? block.exact(row, c)
                                    : block.rough[row * block.k + c];
    };
    int fell = 0;
    block.check([&](int row, int c) {
        double sum = 0;
        for (int i = 0; i < (block.ranges[row] & 255); i++) {
            sum += std::exp2(first(row, i));
        }
        const bool again = before[row] > std::log2(sum) + 1;
        fell += again;
        return again ? block.exact(row, c) : first(row, c);
    });
    EXPECT_GT(fell, 0);
}

/// A row whose log-sum-exp falls further than its list reaches is left to be
/// listed again: its entries are 0. Others are what they would be.
TEST(RefineTest, RejectsWhatFellTooFar) {
    Block block;
    block.all = false;
    block.most_fall = 5;
    const auto too_high = [](int row, int c) {
        return c == 0 && row % 2 ? 30. : small_error(row, c);
    };
    block.make(too_high);
    const std::vector<float> before = block.row_lse;
    Block kept = block;
    kept.most_fall = INFINITY;
    block.run();
    kept.run();
    EXPECT_EQ(kept.rejected, 0u);
    uint32_t rejected = 0, at = 0;
    const TripleLayout layout = entry_layout(block.rows, block.k, 2);
    for (int row = 0; row < block.rows; row++) {
        if (row % 13 == 5) {
            continue;
        }
        const bool mine = std::isnan(block.row_lse[row]);
        double sum = 0;
        for (int c = 0; c < (block.ranges[row] & 255); c++) {
            sum += std::exp2(
                    block.is_doubtful(c) ? block.exact(row, c)
                                         : block.rough[row * block.k + c]);
        }
        EXPECT_EQ(mine, before[row] - std::log2(sum) > 5) << row;
        rejected += mine;
        for (int i = 0; i < (block.ranges[row] & 255); i++, at++) {
            if (mine) {
                EXPECT_EQ(triple_value(layout, block.entries[at]), 0) << row;
            } else {
                EXPECT_EQ(block.entries[at], kept.entries[at]) << row;
            }
        }
    }
    EXPECT_GT(rejected, 0u);
    EXPECT_EQ(block.rejected, rejected);
}

/// Rows of weight 0 have entries of 0, and no say in anything.
TEST(RefineTest, Weights) {
    Block block;
    for (int row = 0; row < block.rows; row++) {
        block.weight.push_back(0.25f * (row % 5));
    }
    block.make(small_error);
    block.run();
    block.check([&](int row, int c) { return block.exact(row, c); });
}

} // namespace
