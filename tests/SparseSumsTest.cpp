#include "HostWarp.h" // before device code: its instructions

#include "cuda/sparse/SparseSums.cuh"

#include <gtest/gtest.h>

#include <random>

#include "cuda/sparse/Compact.cuh"

/** Entries on their way from lists to sums, as device code has it, on an
 * emulated warp: no device is needed. */
namespace {

using namespace gmm::cuda;

/// Entries as words give back what was put in, responsibilities as far as there
/// is room.
TEST(SparseSumsTest, EntriesAsWords) {
    std::mt19937 random(8);
    struct Case {
        int rows, k, groups;
        float precision;
    };
    for (const Case& c :
         {Case{1, 1, 1, 0},
          Case{1216512, 1024, 16, 0},
          Case{1216512, 65536, 1, 1e-5f},
          Case{1216512, 1000000, 1, 2e-5f},
          Case{1216512, 1 << 23, 1, 1.3e-4f},
          Case{3370752, 1024, 64, 0},
          Case{3370752, 1 << 23, 1, 2.5e-4f},
          Case{77, 1000000, 1, 0}}) {
        const TripleLayout layout = entry_layout(c.rows, c.k, c.groups);
        EXPECT_GE(layout.value_bits, 19);
        for (int i = 0; i < 2000; i++) {
            const uint32_t row = i ? random() % c.rows : c.rows - 1;
            const uint32_t k = i ? random() % c.k : c.k - 1;
            const float r = i == 1 ? NAN
                    : i == 2       ? 0
                    : i == 3       ? 1
                    : i == 4       ? -0.f
                    : i == 5       ? -NAN
                                   : std::exp2(-float(random() % 1000) / 50);
            const uint32_t group = row / layout.group_rows;
            const uint64_t entry = pack_triple(layout, group, row, k, r);
            EXPECT_EQ(triple_row(layout, entry), row);
            const uint32_t key = triple_key(layout, entry);
            EXPECT_EQ(key_component(layout, key), k);
            EXPECT_EQ(key >> layout.component_bits, group);
            EXPECT_LT(group, uint32_t(c.groups));
            const float value = triple_value(layout, entry);
            if (std::isnan(r)) {
                EXPECT_TRUE(std::isnan(value));
            } else {
                EXPECT_LE(std::fabs(value - r), c.precision * r) << r;
            }
        }
    }
}

/// Entries and overflowed rows of all units, in order; the last warp has fewer
/// units, the last unit fewer rows.
TEST(SparseSumsTest, CompactsUnits) {
    std::mt19937 random(9);
    const int rows = 10 * kUnitRows - 5, units = 10, k = 300;
    std::vector<uint32_t> keys(units * kUnitCapacity);
    std::vector<uint2> values(units * kUnitCapacity);
    std::vector<float> row_lse(rows);
    std::vector<uint64_t> offsets(units + 1);
    std::vector<uint32_t> overflowed;
    struct Entry {
        uint32_t k, row;
        float r;
    };
    std::vector<Entry> expected;
    for (int u = 0; u < units; u++) {
        offsets[u] = expected.size() | uint64_t(overflowed.size()) << 32;
        const int count = u == 3 ? kUnitCapacity : u == 4 ? 0 : random() % 90;
        const int end = std::min(rows, (u + 1) * kUnitRows);
        for (int i = 0; i < count; i++) {
            const Entry e{
                    uint32_t(random() % k),
                    uint32_t(u * kUnitRows + random() % (end - u * kUnitRows)),
                    float(random() % 1000) / 1000};
            keys[u * kUnitCapacity + i] = e.k;
            values[u * kUnitCapacity + i] =
                    make_uint2(e.row, std::bit_cast<uint32_t>(e.r));
            expected.push_back(e);
        }
        for (int row = u * kUnitRows; row < end; row++) {
            row_lse[row] = u % 3 == 1 && random() % 2 ? NAN : 0;
            if (std::isnan(row_lse[row])) {
                overflowed.push_back(row);
            }
        }
    }
    offsets[units] = expected.size() | uint64_t(overflowed.size()) << 32;
    std::vector<uint64_t> entries(expected.size());
    std::vector<uint32_t> found(overflowed.size());
    const CompactArgs args{
            units,
            rows,
            keys.data(),
            values.data(),
            row_lse.data(),
            offsets.data(),
            entry_layout(rows, k, 3),
            entries.data(),
            found.data()};
    for (int unit = 0; unit < units; unit += kWarpUnits) {
        host_warp::run(
                [&] { compact_units(args, unit, UnitPlaces(args, unit)); });
    }
    EXPECT_EQ(found, overflowed);
    for (size_t i = 0; i < expected.size(); i++) {
        const Entry& e = expected[i];
        EXPECT_EQ(triple_row(args.layout, entries[i]), e.row) << i;
        const uint32_t key = triple_key(args.layout, entries[i]);
        EXPECT_EQ(key_component(args.layout, key), e.k) << i;
        EXPECT_EQ(triple_value(args.layout, entries[i]), e.r) << i;
    }
}

struct Shape {
    int rows, d, k, groups;
    double per_row; ///< entries
};

/// Sums of a block of random entries, all ranges and slabs, against double.
template <bool kLo, bool kSquares>
void check_sums(const Shape& shape, bool with_narrow, unsigned seed) {
    SCOPED_TRACE(
            testing::Message()
            << "rows " << shape.rows << " d " << shape.d << " k " << shape.k
            << " lo " << kLo << " squares " << kSquares);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform;
    const int d = shape.d, pitch = (d + 15) / 16 * 16;
    std::vector<__half> hi(shape.rows * pitch), lo(shape.rows * pitch);
    std::vector<float> constant(shape.rows);
    for (int row = 0; row < shape.rows; row++) {
        constant[row] = -uniform(random);
        for (int j = 0; j < d; j++) {
            const float y = normal(random);
            const __half first = __float2half(y);
            hi[row * pitch + j] = first;
            lo[row * pitch + j] = __float2half(y - __half2float(first));
        }
    }
    std::vector<unsigned char> narrow(shape.k);
    for (unsigned char& x : narrow) {
        x = random() % 3;
    }
    const TripleLayout layout = entry_layout(shape.rows, shape.k, shape.groups);
    std::vector<uint64_t> entries;
    for (int row = 0; row < shape.rows; row++) {
        const uint32_t group = row / layout.group_rows;
        for (double left = shape.per_row; uniform(random) < left; left--) {
            entries.push_back(pack_triple(
                    layout, group, row, random() % shape.k, uniform(random)));
        }
    }
    std::stable_sort(entries.begin(), entries.end(), [&](auto a, auto b) {
        return triple_key(layout, a) < triple_key(layout, b);
    });

    const int size = piece_size(d, kSquares);
    const uint32_t keys = uint32_t(shape.groups) << layout.component_bits;
    const size_t ranges = (entries.size() + kRange - 1) / kRange;
    std::vector<float> head(ranges * size, NAN), tail(head),
            whole(size_t(shape.groups) * shape.k * size, NAN);
    std::vector<uint32_t> starts(keys + 1, ~0u);
    const bool in_use = kLo && with_narrow;
    const SumArgs args{
            entries.data(),
            layout,
            uint32_t(entries.size()),
            hi.data(),
            kLo ? lo.data() : nullptr,
            constant.data(),
            in_use ? narrow.data() : nullptr,
            d,
            pitch,
            head.data(),
            tail.data(),
            whole.data(),
            shape.k,
            starts.data(),
            keys};
    // What is not copied must not count: no number.
    host_warp::warp.shared.assign(sizeof(SumShared<kLo>), 0xff);
    auto& shared =
            *reinterpret_cast<SumShared<kLo>*>(host_warp::warp.shared.data());
    for (uint32_t range = 0; range <= ranges; range++) {
        for (int slab = 0; slab * kSlab < d; slab++) {
            for (auto& groups : host_warp::warp.copies) {
                groups.clear();
            }
            host_warp::run([&] {
                sum_range<kLo, kSquares>(args, range, slab, shared);
            });
        }
    }

    for (uint32_t key = 0; key <= keys; key++) {
        const auto at = std::find_if(
                entries.begin(), entries.end(), [&](uint64_t entry) {
                    return triple_key(layout, entry) >= key;
                });
        ASSERT_EQ(starts[key], uint32_t(at - entries.begin())) << key;
    }
    std::vector<double> expected(size_t(shape.k) * size);
    for (uint64_t entry : entries) {
        const double r = triple_value(layout, entry);
        const uint32_t row = triple_row(layout, entry);
        const uint32_t k = key_component(layout, triple_key(layout, entry));
        double* const to = &expected[k * size];
        to[0] += r;
        to[1] += r * constant[row];
        for (int j = 0; j < d; j++) {
            double x = __half2float(hi[row * pitch + j]);
            x += kLo ? __half2float(lo[row * pitch + j]) : 0.;
            to[2 + j] += r * x;
            if (kSquares) {
                to[2 + d + j] += r * x * x;
            }
        }
    }
    for (int k = 0; k < shape.k; k++) {
        // Second halves count for a whole batch, or where they are asked for.
        const double tolerance = in_use && narrow[k] < 2 ? 1e-2 : 1e-5;
        for (int j = 0; j < 2 + d * (kSquares ? 2 : 1); j++) {
            double sum = 0;
            for (int g = 0; g < shape.groups; g++) {
                const uint32_t key = uint32_t(g) << layout.component_bits | k;
                sum += collect_pieces(
                        args, starts[key], starts[key + 1], key, size, j);
            }
            ASSERT_NEAR(
                    sum,
                    expected[k * size + j],
                    tolerance * (1 + expected[k * size]))
                    << "component " << k << " piece " << j;
        }
    }
}

/// Ranges of one component and of many, batches that end early, several slabs;
/// copies as early and as late as can be.
TEST(SparseSumsTest, SumsOfRanges) {
    const Shape shapes[] = {
            {1, 1, 1, 1, 1},
            {40, 3, 7, 1, 2},
            {500, 100, 5, 3, 1.4},
            {300, 128, 700, 2, 3},
            {64, 128, 1, 1, 2}, // one range, full
            {129, 16, 2, 1, 1},
            {150, 300, 40, 4, 2},
            {900, 20, 30, 64, 2}};
    for (bool early : {false, true}) {
        host_warp::warp.copy_early = early;
        for (const Shape& shape : shapes) {
            check_sums<false, false>(shape, false, 1);
            check_sums<false, true>(shape, false, 2);
            check_sums<true, false>(shape, true, 3);
            check_sums<true, false>(shape, false, 4);
            check_sums<true, true>(shape, true, 5);
        }
    }
}

} // namespace
