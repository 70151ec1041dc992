#include "Evaluate.cuh"
#include "Sparse.h"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct RefineArgs {
    ExactArgs exact;
    uint32_t* keys;
    uint2* values;
    const uint64_t* unit_counts;
    const uint16_t* row_ranges;
    float* row_lse;
    int rows;
    const float* row_weight;
};

/// What a warp needs for a unit.
struct Unit {
    float scores[kUnitCapacity]; ///< of entries that were evaluated, else NaN
    unsigned char doubtful[kUnitCapacity]; ///< entries
};

/** One warp a unit of rows. All that is to be evaluated, whatever its row, is
 * evaluated a few at a time: a warp that took its rows in turn would wait for
 * one row's chain of loads after the other's. */
template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads, 3)
        refine_kernel(const __grid_constant__ RefineArgs args) {
    __shared__ Unit units[kWarps];
    const int number = blockIdx.x * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (number * kUnitRows >= args.rows) {
        return;
    }
    Unit& unit = units[threadIdx.x / 32];
    const size_t first = size_t(number) * kUnitCapacity;
    const int count = int(uint32_t(args.unit_counts[number]));
    int doubtful = 0;
    for (int i0 = 0; i0 < count; i0 += 32) {
        const int i = i0 + lane;
        const bool mine = i < count && args.keys[first + i] & kDoubtful;
        const uint32_t all = __ballot_sync(0xffffffffu, mine);
        if (mine) {
            unit.doubtful[doubtful + __popc(all & ((1u << lane) - 1))] = i;
        }
        if (i < count) {
            unit.scores[i] = NAN;
        }
        doubtful += __popc(all);
    }
    __syncwarp();
    uint32_t changed = 0; // rows
    for (int i0 = 0; i0 < doubtful; i0 += 32) {
        const bool inside = i0 + lane < doubtful;
        const int i = inside ? unit.doubtful[i0 + lane] : 0;
        const uint32_t k = args.keys[first + i] & ~kDoubtful;
        const uint32_t row = args.values[first + i].x;
        float score = 0;
        evaluate_pairs<kAligned, kEachDimension>(
                args.exact,
                __ballot_sync(0xffffffffu, inside),
                k,
                row,
                score);
        if (inside) {
            unit.scores[i] = score;
            args.keys[first + i] = k;
        }
        changed |= __reduce_or_sync(
                0xffffffffu, inside ? 1u << row % kUnitRows : 0);
    }
    __syncwarp();
    if (!(changed >> lane & 1)) {
        return;
    }
    // A lane a row.
    const int row = number * kUnitRows + lane;
    const int range = args.row_ranges[row];
    uint2* const values = args.values + first + (range >> 8);
    float* const scores = unit.scores + (range >> 8);
    const int entries = range & 255;
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
    float sum = old < best + 8 ? fmaxf(rest, 0.f) * exp2f(old - best) : 0;
    for (int i = 0; i < entries; i++) {
        sum += exp2f(scores[i] - best);
    }
    const float lse = best + log2f(sum);
    for (int i = 0; i < entries; i++) {
        values[i].y = __float_as_uint(weight * exp2f(scores[i] - lse));
    }
    args.row_lse[row] = lse;
}

} // namespace

void refine(
        const SparseScratch& scratch,
        int rows,
        const PreparedRows& prepared,
        int64_t row_begin,
        float power,
        const float* row_weight,
        const Model& model,
        cudaStream_t stream) {
    RefineArgs args;
    args.exact = exact_args(prepared, row_begin, power, model);
    args.keys = scratch.keys;
    args.values = scratch.values;
    args.unit_counts = scratch.unit_counts;
    args.row_ranges = scratch.row_ranges;
    args.row_lse = scratch.row_lse;
    args.rows = rows;
    args.row_weight = row_weight;
    const bool squares = model.covariance == Covariance::diagonal;
    const auto kernel = model.d % 4 == 0
            ? (squares ? refine_kernel<true, true> : refine_kernel<true, false>)
            : (squares ? refine_kernel<false, true>
                       : refine_kernel<false, false>);
    const int units = scratch.units(rows);
    kernel<<<(units + kWarps - 1) / kWarps, kThreads, 0, stream>>>(args);
    check_launch("refinement");
}

} // namespace gmm::cuda
