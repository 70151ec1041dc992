#pragma once

#include "cuda/sparse/Evaluate.cuh"
#include "cuda/sparse/ResponsibilityTriple.cuh"

/** Sums of runs of entries of one component, a warp a range of the sorted
 * entries. */
namespace gmm::cuda {

/// Dimensions that a warp sums: eight a lane, each half its own entries.
constexpr int kSlab = 128;

struct SumArgs {
    const uint64_t* entries; ///< sorted
    TripleLayout layout;
    uint32_t count;
    const __half* hi; ///< plane, from the block's first row
    const __half* lo;
    const float* row_constant;
    const unsigned char* narrow; ///< components that lo counts in, or nullptr
    int d, pitch;
    float* head;  ///< [ranges] the piece that a range begins with
    float* tail;  ///< [ranges] the piece that it ends with, if another
    float* whole; ///< [groups][k] a piece that lies inside a range
    int k;
    uint32_t* starts; ///< [keys + 1] the first entry whose key is not below
    uint32_t keys;
};

__device__ __forceinline__ size_t whole_at(const SumArgs& args, uint32_t key) {
    return size_t(key >> args.layout.component_bits) * args.k +
            key_component(args.layout, key);
}

constexpr int kGroups = kRange / 32; ///< entries of a lane

/// What a warp holds of its range. Rows come a batch ahead.
template <bool kLo>
struct SumShared {
    static constexpr int kBatch = kLo ? 8 : 16; ///< rows
    __half x[2][kLo ? 2 : 1][kBatch][kSlab];
    uint32_t row[kRange];
    float value[kRange];
    uint32_t turns[kGroups]; ///< entries that begin another component
    uint32_t lo[kGroups];    ///< and those that second halves count in
};

/// What a lane keeps of its entries: every 32nd.
struct LaneEntries {
    float constant[kGroups]; ///< of their rows
    uint32_t key[kGroups];
};

/// Reads a range's entries; tell: where keys begin.
template <bool kLo>
__device__ __forceinline__ LaneEntries read_range(
        const SumArgs& args,
        uint32_t begin,
        int count,
        bool tell,
        SumShared<kLo>& shared) {
    constexpr uint32_t kAll = 0xffffffffu;
    const int lane = threadIdx.x % 32;
    // Entry `at` is the first of key `to`; those from `from` on have none.
    const auto begins = [&](uint32_t from, uint32_t to, uint32_t at) {
        for (uint32_t k = from + lane; k <= to && tell; k += 32) {
            args.starts[k] = at;
        }
    };
    uint64_t entry[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
        // Behind the end: the last entry, of which nothing is added.
        entry[g] = args.entries[begin + min(g * 32 + lane, count - 1)];
    }
    const uint32_t next_key =
            begin ? triple_key(args.layout, args.entries[begin - 1]) + 1 : 0;
    uint32_t last = __shfl_sync(kAll, triple_key(args.layout, entry[0]), 0);
    begins(next_key, last, begin);
    LaneEntries mine;
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
        const int i = g * 32 + lane;
        const uint32_t key = mine.key[g] = triple_key(args.layout, entry[g]);
        const uint32_t row = triple_row(args.layout, entry[g]);
        shared.row[i] = row;
        shared.value[i] = i < count ? triple_value(args.layout, entry[g]) : 0.f;
        mine.constant[g] = args.row_constant[row];
        uint32_t before = __shfl_up_sync(kAll, key, 1);
        before = lane ? before : last;
        last = __shfl_sync(kAll, key, 31);
        const uint32_t turns = __ballot_sync(kAll, key != before);
        for (uint32_t left = turns; left; left &= left - 1) {
            const int source = __ffs(left) - 1;
            begins(__shfl_sync(kAll, before, source) + 1,
                   __shfl_sync(kAll, key, source),
                   begin + g * 32 + source);
        }
        const bool needs_lo = kLo &&
                (!args.narrow ||
                 args.narrow[key_component(args.layout, key)] > 1);
        const uint32_t lo = __ballot_sync(kAll, needs_lo);
        if (lane == 0) {
            shared.turns[g] = turns;
            shared.lo[g] = lo;
        }
    }
    if (begin + count == args.count) {
        begins(last + 1, args.keys, args.count);
    }
    __syncwarp();
    return mine;
}

/** One warp a range and slab of dimensions. A half-warp takes every second
 * entry; each lane reads what it has copied itself. */
template <bool kLo, bool kSquares>
__device__ __forceinline__ void sum_range(
        const SumArgs& args, uint32_t range, int slab, SumShared<kLo>& shared) {
    constexpr uint32_t kAll = 0xffffffffu;
    constexpr int kBatch = SumShared<kLo>::kBatch;
    constexpr uint32_t kBatchBits = (1u << kBatch) - 1;
    const int lane = threadIdx.x % 32;
    const int half = lane / 16, x_at = lane % 16 * 8;
    const uint32_t begin = range * kRange;
    if (begin >= args.count) {
        return;
    }
    const int count = int(min(uint32_t(kRange), args.count - begin));
    const int column = slab * kSlab + x_at;
    const int size = piece_size(args.d, kSquares);
    const LaneEntries entries =
            read_range<kLo>(args, begin, count, slab == 0, shared);
    const auto bits = [&](const uint32_t(&of)[kGroups], int first) {
        return of[first / 32] >> first % 32 & kBatchBits;
    };
    const auto fetch = [&](int first) {
        if (first < count && column < args.pitch) {
            auto& x = shared.x[first / kBatch % 2];
            // Entries are sorted by component: it is rarely some of them.
            const bool any_lo = kLo && bits(shared.lo, first);
            uint32_t row[kBatch / 2];
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                row[i / 2] = shared.row[first + i + half];
            }
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                const size_t at = size_t(row[i / 2]) * args.pitch + column;
                ptx::copy_async(
                        ptx::smem_address(&x[0][i + half][x_at]),
                        args.hi + at,
                        true);
                if (any_lo) {
                    ptx::copy_async(
                            ptx::smem_address(&x[kLo][i + half][x_at]),
                            args.lo + at,
                            true);
                }
            }
        }
        ptx::copy_async_commit();
    };

    float y[8] = {}, y2[8] = {};
    const auto add = [&](int i, float r, bool any_lo) {
        const auto& x = shared.x[i / kBatch % 2];
        float v[8];
        widen(*reinterpret_cast<const uint4*>(&x[0][i % kBatch][x_at]), v);
        if (any_lo) {
            float rest[8];
            widen(*reinterpret_cast<const uint4*>(&x[kLo][i % kBatch][x_at]),
                  rest);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] += rest[j];
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float rx = r * v[j];
            y[j] = kSquares ? y[j] + rx : fmaf(r, v[j], y[j]);
            y2[j] = kSquares ? fmaf(rx, v[j], y2[j]) : 0.f;
        }
    };
    int from = 0; // where the current component begins
    const auto flush = [&](int to, float* piece) {
        float n = 0, q = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const int i = g * 32 + lane;
            const float r = i >= from && i < to ? shared.value[i] : 0.f;
            n += r;
            q = fmaf(r, entries.constant[g], q);
        }
#pragma unroll
        for (int step = 16; step; step /= 2) {
            n += __shfl_xor_sync(kAll, n, step);
            q += __shfl_xor_sync(kAll, q, step);
        }
        if (slab == 0 && lane == 0) {
            piece[0] = n;
            piece[1] = q;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            y[j] += __shfl_xor_sync(kAll, y[j], 16);
            y2[j] += kSquares ? __shfl_xor_sync(kAll, y2[j], 16) : 0.f;
            if (half == j / 4 && column + j < args.d) {
                piece[2 + column + j] = y[j];
                if (kSquares) {
                    piece[2 + args.d + column + j] = y2[j];
                }
            }
            y[j] = y2[j] = 0;
        }
        from = to;
    };
    const auto key_at = [&](int i) {
        uint32_t key = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const uint32_t other = __shfl_sync(kAll, entries.key[g], i % 32);
            key = i / 32 == g ? other : key;
        }
        return key;
    };

    fetch(0);
#pragma unroll 1
    for (int batch = 0; batch < count; batch += kBatch) {
        fetch(batch + kBatch);
        ptx::copy_async_wait<1>();
        const bool any_lo = kLo && bits(shared.lo, batch);
        // Once, but for the batches in which components change.
        uint32_t turns = bits(shared.turns, batch);
        for (int done = 0;; turns &= turns - 1) {
            const int to = turns ? __ffs(turns) - 1 : kBatch;
            const uint32_t mine = ((1u << to) - (1u << done)) >> half;
            asm volatile("" ::: "memory"); // registers are short for all rows
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                const float r = shared.value[batch + i + half];
                add(batch + i + half, mine >> i & 1 ? r : 0.f, any_lo);
            }
            if (!turns) {
                break;
            }
            float* const piece = from
                    ? args.whole + whole_at(args, key_at(from)) * size
                    : args.head + size_t(range) * size;
            flush(batch + to, piece);
            done = to;
        }
        __syncwarp(); // all has been read where the next fetch writes
    }
    flush(count, (from ? args.tail : args.head) + size_t(range) * size);
}

/** A component's sum in one group of rows: the pieces that its entries
 * [begin, end) left, in their order. Piece j of each. */
__device__ __forceinline__ double collect_pieces(
        const SumArgs& args,
        uint32_t begin,
        uint32_t end,
        uint32_t key,
        int size,
        int j) {
    if (begin == end) {
        return 0;
    }
    const uint32_t first = begin / kRange, last = (end - 1) / kRange;
    // A range's last piece is its tail also where it ends with it.
    const bool reaches_end =
            last > first || end % kRange == 0 || end == args.count;
    double sum = begin % kRange == 0 ? args.head[size_t(first) * size + j]
            : reaches_end            ? args.tail[size_t(first) * size + j]
                          : args.whole[whole_at(args, key) * size + j];
    for (uint32_t r = first + 1; r <= last; r++) {
        sum += args.head[size_t(r) * size + j];
    }
    return sum;
}

} // namespace gmm::cuda
