#include "HostWarp.h" // before device code: its instructions

#include "cuda/score/Select.cuh"

#include <gtest/gtest.h>

#include <random>

/** The candidate lists of the Hopper and portable kernels, as they are compiled
 * for the device, on an emulated warp: no device is needed. */
namespace {

using namespace gmm::cuda;

constexpr int kGroups = 16;
constexpr int kColumns = kGroups * 8;

/// What one unit of rows leaves, and the scores that it came from.
struct Unit {
    int rows = kUnitRows;
    int tiles = 8;
    int capacity = 14;
    float bound = 20;
    float keep_bound = 12;
    std::vector<float> score;  ///< [kUnitRows][tiles * kColumns]
    std::vector<float> weight; ///< [kUnitRows], or empty

    std::vector<uint32_t> keys = std::vector<uint32_t>(kUnitCapacity, ~0u);
    std::vector<uint2> values = std::vector<uint2>(kUnitCapacity);
    std::vector<uint16_t> ranges = std::vector<uint16_t>(kUnitRows);
    std::vector<float> lse = std::vector<float>(kUnitRows);
    uint64_t counts = 0, pilot = 0;
    float dropped = 0;

    int components() const {
        return tiles * kColumns;
    }

    float& at(int row, int k) {
        return score[size_t(row) * components() + k];
    }

    void run() {
        ScoreArgs args;
        args.rows = rows;
        args.components = components();
        SelectArgs out{};
        out.bound = bound;
        out.keep_bound = keep_bound;
        out.row_weight = weight.empty() ? nullptr : weight.data();
        out.keys = keys.data();
        out.values = values.data();
        out.row_ranges = ranges.data();
        out.unit_counts = &counts;
        out.unit_dropped = &dropped;
        out.row_lse = lse.data();
        out.pilot = &pilot;
        out.pilot_rows = kUnitRows;
        pilot = 0;
        host_warp::warp.shared.assign(
                size_t(capacity) * SelectEpilogue::kSharedPerRecord, 0xff);
        const std::vector<float4> constants(
                components() / 2, make_float4(1, 1, 0, 0));
        host_warp::run([&] {
            SelectEpilogue epilogue(args, out, 0, capacity);
            const int lane = threadIdx.x;
            epilogue.begin(0);
            for (int tile = 0; tile < tiles; tile++) {
                float c[kGroups][4];
                for (int g = 0; g < kGroups; g++) {
                    for (int i = 0; i < 4; i++) {
                        const int row = lane / 4 + i / 2 * 8;
                        c[g][i] = at(
                                row,
                                tile * kColumns + g * 8 + lane % 4 * 2 + i % 2);
                    }
                }
                // Scores as products, or to be made of them.
                if (bound > 0) {
                    epilogue.scores(c, tile * kColumns);
                } else {
                    epilogue.tile(c, tile * kColumns, constants.data());
                }
            }
            if (bound > 0) {
                epilogue.finish_scores();
            } else {
                epilogue.finish();
            }
        });
    }

    /// Compares with all scores; the number of rows that overflowed.
    int check() {
        const int used = int(uint32_t(counts));
        EXPECT_LE(used, kUnitCapacity);
        std::vector<int> owner(kUnitCapacity, -1);
        double all_dropped = 0;
        int overflowed = 0;
        for (int row = 0; row < rows; row++) {
            const float* const s = &at(row, 0);
            const float best = *std::max_element(s, s + components());
            double sum = 0, kept = 0;
            int few = 0;
            std::vector<uint32_t> expected;
            for (int k = 0; k < components(); k++) {
                sum += std::exp2(double(s[k]) - best);
                few += s[k] >= best - bound;
                if (s[k] >= best - keep_bound) {
                    expected.push_back(k);
                    kept += std::exp2(double(s[k]) - best);
                }
            }
            if (std::isnan(lse[row])) {
                overflowed++;
                EXPECT_EQ(ranges[row], 0);
                // Alone within the bound: nothing can take its place.
                EXPECT_GT(few, 1) << "row " << row;
                continue;
            }
            const double log_sum = best + std::log2(sum);
            EXPECT_NEAR(
                    lse[row],
                    log_sum,
                    components() * std::exp2(-bound) +
                            1e-6 * std::fabs(log_sum) + 1e-4);
            all_dropped += 1 - kept / sum;
            std::vector<uint32_t> found;
            const int begin = ranges[row] >> 8;
            for (int i = begin; i < begin + (ranges[row] & 255); i++) {
                EXPECT_LT(i, used);
                EXPECT_EQ(owner[i], -1) << "entry " << i << " is of two rows";
                owner[i] = row;
                EXPECT_EQ(values[i].x, uint32_t(row));
                found.push_back(keys[i]);
                EXPECT_NEAR(
                        std::bit_cast<float>(values[i].y),
                        std::exp2(s[keys[i]] - lse[row]),
                        1e-5);
            }
            std::sort(found.begin(), found.end());
            EXPECT_EQ(found, expected) << "row " << row;
        }
        EXPECT_EQ(int(counts >> 32), overflowed);
        EXPECT_EQ(pilot, uint64_t(overflowed) | uint64_t(1) << 32);
        for (int i = 0; i < used; i++) {
            EXPECT_GE(owner[i], 0) << "entry " << i << " is of no row";
        }
        EXPECT_NEAR(
                dropped,
                all_dropped,
                1e-4 + rows * components() * std::exp2(-bound));
        return overflowed;
    }
};

/// Rows of scores with spreads of their own.
Unit random_unit(std::mt19937& random) {
    Unit unit;
    std::normal_distribution<float> normal;
    unit.tiles = 1 + random() % 9;
    unit.capacity = 8 + random() % 9;
    unit.bound = 10 + random() % 25;
    unit.keep_bound = std::min<float>(unit.bound, 6 + random() % 16);
    unit.rows = random() % 4 ? kUnitRows : 1 + random() % kUnitRows;
    unit.score.resize(size_t(kUnitRows) * unit.components());
    for (int row = 0; row < kUnitRows; row++) {
        const float spread = std::exp(1.2f * normal(random) + 2.5f);
        for (int k = 0; k < unit.components(); k++) {
            unit.at(row, k) = -300 + spread * normal(random);
        }
    }
    return unit;
}

TEST(SelectListTest, KeepsAllOrSaysThatItDoesNot) {
    std::mt19937 random(1);
    int overflowed = 0, rows = 0;
    for (int trial = 0; trial < 400; trial++) {
        SCOPED_TRACE(trial);
        Unit unit = random_unit(random);
        unit.run();
        overflowed += unit.check();
        rows += unit.rows;
    }
    EXPECT_GT(overflowed, rows / 20);
    EXPECT_LT(overflowed, rows * 19 / 20);
}

/// A row with one component far above all others keeps it, whatever its
/// neighbours do, and wherever it comes.
TEST(SelectListTest, FindsTheNarrowAmongTheWide) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (float spread : {1.f, 3.f, 6.f, 10.f, 15.f}) {
        for (int trial = 0; trial < 40; trial++) {
            Unit unit;
            unit.score.resize(size_t(kUnitRows) * unit.components());
            for (float& s : unit.score) {
                s = -300 + spread * normal(random);
            }
            const int narrow = random() % kUnitRows;
            unit.at(narrow, random() % unit.components()) = 200;
            unit.run();
            unit.check();
            EXPECT_EQ(unit.lse[narrow], 200) << "spread " << spread;
        }
    }
}

/// Equal scores beyond all room must not be tried for ever.
TEST(SelectListTest, EqualScores) {
    Unit unit;
    unit.score.assign(size_t(kUnitRows) * unit.components(), -7.5f);
    unit.run();
    EXPECT_EQ(unit.check(), kUnitRows);
    unit.at(5, 700) = 100;
    unit.run();
    EXPECT_EQ(unit.check(), kUnitRows - 1);
}

/// Rows that are no numbers (the range of folding was left) overflow.
TEST(SelectListTest, NotANumber) {
    std::mt19937 random(3);
    Unit unit = random_unit(random);
    unit.rows = kUnitRows;
    for (int k = 0; k < unit.components(); k++) {
        unit.at(4, k) = NAN;
    }
    unit.run();
    EXPECT_TRUE(std::isnan(unit.lse[4]));
    EXPECT_EQ(unit.ranges[4], 0);
}

/// k-means: the best alone, the first of equals, with the row's weight.
TEST(SelectListTest, Hard) {
    std::mt19937 random(5);
    Unit unit = random_unit(random);
    unit.bound = unit.keep_bound = 0;
    unit.rows = 13;
    for (int row = 0; row < kUnitRows; row++) {
        unit.weight.push_back(0.25f * row);
        for (int k = 0; k < unit.components(); k++) {
            unit.at(row, k) = std::round(unit.at(row, k)); // ties
        }
    }
    unit.run();
    EXPECT_EQ(unit.counts, uint64_t(unit.rows));
    for (int row = 0; row < unit.rows; row++) {
        const float* const s = &unit.at(row, 0);
        const auto best = std::max_element(s, s + unit.components());
        EXPECT_EQ(unit.lse[row], *best);
        EXPECT_EQ(unit.ranges[row] & 255, 1);
        const int at = unit.ranges[row] >> 8;
        EXPECT_EQ(unit.keys[at], uint32_t(best - s));
        EXPECT_EQ(unit.values[at].x, uint32_t(row));
        EXPECT_EQ(std::bit_cast<float>(unit.values[at].y), unit.weight[row]);
    }
}

TEST(SelectListTest, GivesUp) {
    std::mt19937 random(7);
    Unit unit = random_unit(random);
    unit.rows = 11;
    unit.run();
    unit.lse[12] = 5; // behind the last row
    ScoreArgs args;
    args.rows = unit.rows;
    SelectArgs out{};
    out.row_ranges = unit.ranges.data();
    out.unit_counts = &unit.counts;
    out.unit_dropped = &unit.dropped;
    out.row_lse = unit.lse.data();
    host_warp::run([&] { SelectEpilogue::overflow_strip(args, out, 0); });
    EXPECT_EQ(unit.counts, uint64_t(unit.rows) << 32);
    EXPECT_EQ(unit.dropped, 0);
    for (int row = 0; row < unit.rows; row++) {
        EXPECT_TRUE(std::isnan(unit.lse[row])) << row;
        EXPECT_EQ(unit.ranges[row], 0) << row;
    }
    EXPECT_EQ(unit.lse[12], 5);
}

TEST(SelectListTest, PilotFailsFromThreeQuartersOn) {
    uint64_t pilot = 0;
    SelectArgs out{};
    EXPECT_FALSE(SelectEpilogue::pilot_failed(out));
    out.pilot = &pilot;
    out.pilot_rows = 12 * kUnitRows;
    for (uint64_t overflowed : {0, 144, 145, 192}) {
        pilot = overflowed | uint64_t(12) << 32;
        EXPECT_EQ(SelectEpilogue::pilot_failed(out), overflowed > 144);
    }
}

TEST(SelectListTest, Weights) {
    std::mt19937 random(6);
    Unit plain = random_unit(random);
    plain.rows = kUnitRows;
    Unit weighted = plain;
    for (int row = 0; row < kUnitRows; row++) {
        weighted.weight.push_back(0.5f * row);
    }
    plain.run();
    weighted.run();
    EXPECT_EQ(plain.keys, weighted.keys);
    EXPECT_EQ(plain.counts, weighted.counts);
    ASSERT_GT(uint32_t(plain.counts), 0u);
    for (int i = 0; i < int(uint32_t(plain.counts)); i++) {
        EXPECT_EQ(
                std::bit_cast<float>(weighted.values[i].y),
                weighted.weight[plain.values[i].x] *
                        std::bit_cast<float>(plain.values[i].y));
    }
}

} // namespace
