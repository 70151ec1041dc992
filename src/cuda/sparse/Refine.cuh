#pragma once

#include "cuda/ptx/Ptx.cuh"
#include "cuda/sparse/Compact.cuh"
#include "cuda/sparse/Evaluate.cuh"

/** Entries evaluated exactly, a warp some units of them: see refine(). */
namespace gmm::cuda {

struct RefineArgs {
    ExactArgs exact;
    CompactArgs compact;
    uint2* values; ///< that and row_lse: what compact reads, to be changed
    const uint16_t* row_ranges;
    float* row_lse;
    const float* row_weight;
    const float4* doubt;       ///< Model's
    const float* row_error;    ///< from the block's first row, as is
    const float* row_constant; ///< this
    bool all;
    float tolerance;
    /// Of a log-sum-exp at most, by exact scores: the row whose falls further
    /// lacks components that should be listed, and overflows.
    float most_fall;
    uint32_t* rejected; ///< rows of which that is so
};

/** Whether fp16 leaves an error that shows in an entry: its standard deviation
 * times what the entry may weigh in its row.
 *
 * Rounding row and mean by dy and dm moves a score by (dy - dm) (m - y) / v,
 * which follows from the lengths of the three, the last of which the score
 * tells. The matrix units cut sums as large as |y|^2 / (2 v) off, once a step.
 * Diagonal: Y and Y^2 are rounded each for itself, and what that costs does not
 * vanish at the mean.
 */
template <bool kEachDimension>
__device__ __forceinline__ bool is_doubtful(
        const RefineArgs& args, uint32_t k, uint32_t row, float r) {
    const float4 c = args.doubt[k];
    const float log_r =
            ptx::log2_approx(args.row_weight ? r / args.row_weight[row] : r);
    const float below = c.z - (args.row_lse[row] + log_r);
    const float row_error = kEachDimension
            ? 0.f
            : args.row_error[row] * args.exact.inverse_fp16_scale *
                    args.exact.inverse_fp16_scale;
    const float least = kEachDimension ? c.w : c.w * args.row_constant[row];
    const float error = ptx::sqrt_approx(
            c.x * (row_error + c.y) * fmaxf(below, 0.f) + least * least);
    // The score may be higher by some errors, and these larger than estimated.
    const float weight = fminf(1.f, ptx::exp2_approx(log_r + 1 + 12 * error));
    return r > 0 && error * weight > args.tolerance;
}

/// What a warp knows of its units' entries.
struct RefineShared {
    float scores[kWarpUnits * kUnitCapacity]; ///< of those evaluated, else NaN
    uint16_t doubtful[kWarpUnits * kUnitCapacity]; ///< which
};

/** A row's responsibilities and log-sum-exp, where some scores are new. Whether
 * the latter fell so far that entries may weigh more than they were judged by.
 */
__device__ __forceinline__ bool renew_row(
        const RefineArgs& args, int row, float* unit_scores) {
    const int range = args.row_ranges[row];
    const int entries = range & 255;
    float* const scores = unit_scores + (range >> 8);
    uint2* const values = args.values +
            size_t(row / kUnitRows) * kUnitCapacity + (range >> 8);
    const float weight = args.row_weight ? args.row_weight[row] : 1.f;
    const float old = args.row_lse[row];
    float best = -3e38f, rest = 1;
    for (int i = 0; i < entries; i++) {
        const float r = __uint_as_float(values[i].y) / weight;
        rest -= r;
        if (isnan(scores[i])) {
            scores[i] = old + log2f(r);
        }
        best = fmaxf(best, scores[i]);
    }
    // What is no entry counts as it did, unless that is but what rounding
    // left of a sum far above.
    float sum = !args.all && old < best + 2
            ? fmaxf(rest, 0.f) * exp2f(old - best)
            : 0;
    for (int i = 0; i < entries; i++) {
        sum += exp2f(scores[i] - best);
    }
    const float lse = best + log2f(sum);
    const bool rejected = old > lse + args.most_fall;
    for (int i = 0; i < entries; i++) {
        values[i].y =
                rejected ? 0 : __float_as_uint(weight * exp2f(scores[i] - lse));
    }
    args.row_lse[row] = rejected ? NAN : lse;
    if (rejected) {
        atomicAdd(args.rejected, 1);
    }
    return old > lse + 1 && !rejected;
}

/** One warp some units of rows. All that is to be evaluated, whatever its row,
 * is evaluated a few at a time: a warp that took its rows in turn would wait
 * for one row's chain of loads after the other's. Rows of weight 0 have no
 * entries above 0, and stay as they are. */
template <bool kAligned, bool kEachDimension>
__device__ __forceinline__ void refine_units(
        const RefineArgs& args, int warp, RefineShared& shared) {
    const int lane = threadIdx.x % 32;
    const int first_row = warp * kWarpRows;
    const size_t first = size_t(warp) * kWarpUnits * kUnitCapacity;
    const UnitPlaces places(args.compact, warp * kWarpUnits);
    uint64_t again = 0; // rows all of whose entries are evaluated
    do {
        int doubtful = 0;
        for (int i = lane; i - lane < places.most; i += 32) {
            uint32_t key[kWarpUnits];
            uint2 value[kWarpUnits];
#pragma unroll
            for (int u = 0; u < kWarpUnits; u++) {
                const size_t at = first + u * kUnitCapacity + i;
                const bool inside = i < places.count[u];
                key[u] = inside ? args.compact.keys[at] : 0;
                value[u] = inside ? args.values[at]
                                  : make_uint2(first_row, __float_as_uint(0));
            }
#pragma unroll
            for (int u = 0; u < kWarpUnits; u++) {
                const float r = __uint_as_float(value[u].y);
                const bool mine = again ? i < places.count[u] &&
                                again >> (value[u].x - first_row) & 1
                        : args.all ? r > 0
                                   : is_doubtful<kEachDimension>(
                                             args, key[u], value[u].x, r);
                const uint32_t all = __ballot_sync(0xffffffffu, mine);
                const int at = u * kUnitCapacity + i;
                const uint32_t before = all & ((1u << lane) - 1);
                if (mine) {
                    shared.doubtful[doubtful + __popc(before)] = at;
                }
                shared.scores[at] = NAN;
                doubtful += __popc(all);
            }
        }
        __syncwarp();
        uint64_t changed = 0; // rows
        for (int i0 = 0; i0 < doubtful; i0 += 32) {
            const bool inside = i0 + lane < doubtful;
            const int i = inside ? shared.doubtful[i0 + lane] : 0;
            const uint32_t k = args.compact.keys[first + i];
            const uint32_t row = args.values[first + i].x;
            float score = 0;
            evaluate_pairs<kAligned, kEachDimension>(
                    args.exact,
                    __ballot_sync(0xffffffffu, inside),
                    k,
                    row,
                    score);
            if (inside) {
                shared.scores[i] = score;
            }
            const int bit = int(row) - first_row;
            const uint32_t low = inside && bit < 32 ? 1u << bit : 0;
            const uint32_t high = inside && bit >= 32 ? 1u << (bit - 32) : 0;
            changed |= __reduce_or_sync(0xffffffffu, low) |
                    uint64_t(__reduce_or_sync(0xffffffffu, high)) << 32;
        }
        __syncwarp();
        const bool last = again || args.all;
        again = 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = half * 32 + lane;
            const bool fell = changed >> i & 1 &&
                    renew_row(args,
                              first_row + i,
                              shared.scores + i / kUnitRows * kUnitCapacity);
            again |= uint64_t(__ballot_sync(0xffffffffu, fell && !last))
                    << half * 32;
        }
        __syncwarp();
    } while (again);
    if (warp * kWarpUnits < args.compact.units) {
        compact_units(args.compact, warp * kWarpUnits, places);
    }
}
static_assert(kWarpRows == 64);

} // namespace gmm::cuda
