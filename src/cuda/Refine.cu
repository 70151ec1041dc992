#include "Evaluate.cuh"
#include "Sparse.h"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr float kLn2 = 0.6931472f;

struct RefineArgs {
    ExactArgs exact;
    uint32_t* keys;
    uint2* values;
    uint64_t* unit_counts;
    float* unit_dropped;
    const uint16_t* row_ranges;
    float* row_lse;
    int rows;
    const float* row_weight;
    const float* row_constant; ///< from the block's first row
    const float* row_error;    ///< likewise
    const float* mean_error;   ///< [k]
    const unsigned char* narrow;
    bool all;
    float tolerance;
    float bound;
    float keep_bound;
};

/** Whether fp16 leaves an error that shows in this pair's score.
 *
 * Rounding row and mean by dy and dm moves a score by (dy - dm) (m - y) / v.
 * Its standard deviation follows from the lengths of the three, and the last
 * from the score; what hardly weighs in its row may be off by more.
 */
__device__ __forceinline__ bool rounding_shows(
        const RefineArgs& args, uint32_t k, uint32_t row, float score) {
    const float inverse = 2 * kLn2 * args.exact.half_inverse[k]; // 1 / v
    const float dy =
            args.row_error[row] * args.exact.unpower * args.exact.unpower;
    const float square = 2 * kLn2 * (args.exact.log_constant[k] - score);
    const float sigma2 = inverse * (dy + args.mean_error[k]) *
            fmaxf(square, 0.f) / float(args.exact.d);
    // The matrix units truncate sums as large as |y|^2 / (2 v), once a step.
    const float cut = 3e-7f * inverse * args.exact.unpower *
            args.exact.unpower * -args.row_constant[row];
    const float weight = fminf(1.f, 16 * exp2f(score - args.row_lse[row]));
    return (sigma2 + cut * cut) * weight * weight >
            args.tolerance * args.tolerance;
}

/** One warp a unit of rows, four dimensions a lane.
 *
 * All of the unit's entries are read at once and evaluated a few at a time,
 * whatever their rows: a warp that took its rows in turn would wait for one
 * row's chain of loads after the other's.
 */
template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads, 3)
        refine_kernel(const __grid_constant__ RefineArgs args) {
    __shared__ float all_scores[kThreads / 32][kUnitCapacity];
    const int unit = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (unit * kUnitRows >= args.rows) {
        return;
    }
    float* const scores = all_scores[threadIdx.x / 32];
    const size_t first = size_t(unit) * kUnitCapacity;
    const uint64_t counts = args.unit_counts[unit];
    const int count = int(uint32_t(counts));
    for (int i0 = 0; i0 < count; i0 += 32) {
        const int i = i0 + lane;
        const bool inside = i < count;
        const uint32_t k = inside ? args.keys[first + i] : 0;
        const uint2 value = inside ? args.values[first + i] : make_uint2(0, 0);
        float score = __uint_as_float(value.y);
        bool needed = inside;
        if (inside && !args.all) {
            needed = kEachDimension ? bool(args.narrow[k])
                                    : rounding_shows(args, k, value.x, score);
        }
        evaluate_pairs<kAligned, kEachDimension>(
                args.exact,
                __ballot_sync(0xffffffffu, needed),
                k,
                value.x,
                score);
        if (inside) {
            scores[i] = score;
        }
    }
    __syncwarp();
    // A lane a row: its entries are neighbours.
    const int row = unit * kUnitRows + lane;
    float dropped = 0;
    if (lane < kUnitRows && row < args.rows && !isnan(args.row_lse[row])) {
        const int range = args.row_ranges[row];
        const int begin = range >> 8, end = begin + (range & 255);
        float best = -3e38f, sum = 0;
        for (int i = begin; i < end; i++) {
            best = fmaxf(best, scores[i]);
        }
        // What a row's slack let in counts no more than it would without.
        for (int i = begin; i < end; i++) {
            sum += scores[i] < best - args.bound ? 0.f
                                                 : exp2f(scores[i] - best);
        }
        const float lse = best + log2f(sum);
        const float weight = args.row_weight ? args.row_weight[row] : 1.f;
        for (int i = begin; i < end; i++) {
            const float r = weight * exp2f(scores[i] - lse);
            const bool kept = scores[i] >= best - args.keep_bound;
            dropped += kept || scores[i] < best - args.bound ? 0.f : r;
            scores[i] = kept ? r : -1.f;
        }
        args.row_lse[row] = lse;
    }
    __syncwarp();
#pragma unroll
    for (int step = 16; step; step /= 2) {
        dropped += __shfl_xor_sync(0xffffffffu, dropped, step);
    }
    // What is left moves together. A lane reads before any writes as far.
    int kept = 0;
    for (int i0 = 0; i0 < count; i0 += 32) {
        const int i = i0 + lane;
        const bool mine = i < count && scores[i] >= 0;
        const uint32_t k = mine ? args.keys[first + i] : 0;
        const uint32_t number = mine ? args.values[first + i].x : 0;
        const uint32_t all = __ballot_sync(0xffffffffu, mine);
        if (mine) {
            const size_t to = first + kept + __popc(all & ((1u << lane) - 1));
            args.keys[to] = k;
            args.values[to] = make_uint2(number, __float_as_uint(scores[i]));
        }
        kept += __popc(all);
        __syncwarp();
    }
    if (lane == 0) {
        args.unit_counts[unit] = (counts >> 32 << 32) | uint32_t(kept);
        args.unit_dropped[unit] = dropped;
    }
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
        const RefineOptions& options,
        cudaStream_t stream) {
    RefineArgs args;
    args.exact = exact_args(prepared, row_begin, power, model);
    args.keys = scratch.keys;
    args.values = scratch.values;
    args.unit_counts = scratch.unit_counts;
    args.unit_dropped = scratch.unit_dropped;
    args.row_ranges = scratch.row_ranges;
    args.row_lse = scratch.row_lse;
    args.rows = rows;
    args.row_weight = row_weight;
    args.row_constant = prepared.row_constant + row_begin;
    args.row_error = prepared.row_error + row_begin;
    args.mean_error = model.mean_error;
    args.narrow = model.narrow;
    args.all = options.all;
    args.tolerance = options.tolerance;
    args.bound = options.bound;
    args.keep_bound = options.keep_bound;
    const bool squares = model.covariance == Covariance::diagonal;
    const auto kernel = model.d % 4 == 0
            ? (squares ? refine_kernel<true, true> : refine_kernel<true, false>)
            : (squares ? refine_kernel<false, true>
                       : refine_kernel<false, false>);
    const int units = scratch.units(rows);
    kernel<<<(units + 7) / 8, kThreads, 0, stream>>>(args);
    check_launch("refinement");
}

} // namespace gmm::cuda
