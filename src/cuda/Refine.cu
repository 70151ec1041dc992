#include "Sparse.h"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;

struct RefineArgs {
    const uint32_t* keys;
    uint2* values;
    const uint64_t* unit_counts;
    const uint16_t* row_ranges;
    float* row_lse;
    int rows;
    const __half* hi;
    const __half* lo; ///< or nullptr
    int d, pitch;
    float unpower; ///< Y to the frame's units
    const float* row_weight;
    const float* means;
    const float* half_inverse; ///< [k], or [k][d]
    const float* log_constant;
    const unsigned char* narrow; ///< nullptr: every component
    float bound;
};

/// Candidates that are evaluated at a time, to have their loads in flight.
constexpr int kBatch = 4;

/// Four dimensions of a row or a mean; the last may be fewer.
template <bool kAligned>
__device__ __forceinline__ float4 load4(const float* from, int j, int d) {
    if (kAligned) {
        return *reinterpret_cast<const float4*>(from + j);
    }
    return make_float4(
            from[j],
            j + 1 < d ? from[j + 1] : 0.f,
            j + 2 < d ? from[j + 2] : 0.f,
            j + 3 < d ? from[j + 3] : 0.f);
}

__device__ __forceinline__ float4 load_row(const __half* from, int j) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from + j);
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
    const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    return make_float4(a.x, a.y, b.x, b.y);
}

/** One warp a unit of rows, four dimensions a lane.
 *
 * All of the unit's entries are read at once and evaluated a few at a time,
 * whatever their rows: a warp that took its rows in turn would wait for one
 * row's chain of loads after the other's.
 */
template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads)
        refine_kernel(const __grid_constant__ RefineArgs args) {
    __shared__ float all_scores[kThreads / 32][kUnitCapacity];
    const int unit = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (unit * kUnitRows >= args.rows) {
        return;
    }
    float* const scores = all_scores[threadIdx.x / 32];
    const size_t first = size_t(unit) * kUnitCapacity;
    const int count = int(uint32_t(args.unit_counts[unit]));
    for (int i0 = 0; i0 < count; i0 += 32) {
        const int i = i0 + lane;
        const bool inside = i < count;
        const uint32_t k = inside ? args.keys[first + i] : 0;
        const uint2 value = inside ? args.values[first + i] : make_uint2(0, 0);
        float score = __uint_as_float(value.y);
        uint32_t left = __ballot_sync(
                0xffffffffu, inside && (!args.narrow || args.narrow[k]));
        while (left) {
            int from[kBatch];
            const float* mean[kBatch];
            const float* inverse[kBatch];
            size_t row[kBatch];
            float sum[kBatch] = {};
            int batch = 0;
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                from[b] = left ? __ffs(left) - 1 : from[0];
                batch += left != 0;
                left &= left - 1;
                const uint32_t c = __shfl_sync(0xffffffffu, k, from[b]);
                row[b] = size_t(__shfl_sync(0xffffffffu, value.x, from[b])) *
                        args.pitch;
                mean[b] = args.means + size_t(c) * args.d;
                inverse[b] = args.half_inverse +
                        (kEachDimension ? size_t(c) * args.d : c);
            }
            for (int j = lane * 4; j < args.d; j += 128) {
                float4 y[kBatch], m[kBatch], v[kBatch];
#pragma unroll
                for (int b = 0; b < kBatch; b++) {
                    y[b] = load_row(args.hi + row[b], j);
                    m[b] = load4<kAligned>(mean[b], j, args.d);
                    if (kEachDimension) {
                        v[b] = load4<kAligned>(inverse[b], j, args.d);
                    }
                }
                if (args.lo) {
#pragma unroll
                    for (int b = 0; b < kBatch; b++) {
                        const float4 rest = load_row(args.lo + row[b], j);
                        y[b].x += rest.x;
                        y[b].y += rest.y;
                        y[b].z += rest.z;
                        y[b].w += rest.w;
                    }
                }
#pragma unroll
                for (int b = 0; b < kBatch; b++) {
                    auto add = [&](float yj, float mj, float vj) {
                        const float t = fmaf(yj, args.unpower, -mj);
                        sum[b] = fmaf(kEachDimension ? t * vj : t, t, sum[b]);
                    };
                    add(y[b].x, m[b].x, v[b].x);
                    add(y[b].y, m[b].y, v[b].y);
                    add(y[b].z, m[b].z, v[b].z);
                    add(y[b].w, m[b].w, v[b].w);
                }
            }
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
#pragma unroll
                for (int step = 16; step; step /= 2) {
                    sum[b] += __shfl_xor_sync(0xffffffffu, sum[b], step);
                }
            }
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                if (b < batch && lane == from[b]) {
                    score = args.log_constant[k] -
                            (kEachDimension ? sum[b] : sum[b] * inverse[b][0]);
                }
            }
        }
        if (inside) {
            scores[i] = score;
        }
    }
    __syncwarp();
    // A lane a row: its entries are neighbours.
    const int row = unit * kUnitRows + lane;
    if (lane < kUnitRows && row < args.rows && !isnan(args.row_lse[row])) {
        const int range = args.row_ranges[row];
        const int begin = range >> 8, end = begin + (range & 255);
        float best = -3e38f, sum = 0;
        for (int i = begin; i < end; i++) {
            best = fmaxf(best, scores[i]);
        }
        for (int i = begin; i < end; i++) {
            sum += exp2f(scores[i] - best);
        }
        const float lse = best + log2f(sum);
        const float weight = args.row_weight ? args.row_weight[row] : 1.f;
        for (int i = begin; i < end; i++) {
            scores[i] = scores[i] < lse - args.bound
                    ? 0.f
                    : weight * exp2f(scores[i] - lse);
        }
        args.row_lse[row] = lse;
    }
    __syncwarp();
    for (int i = lane; i < count; i += 32) {
        args.values[first + i].y = __float_as_uint(scores[i]);
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
        bool all,
        float bound,
        cudaStream_t stream) {
    RefineArgs args;
    args.keys = scratch.keys;
    args.values = scratch.values;
    args.unit_counts = scratch.unit_counts;
    args.row_ranges = scratch.row_ranges;
    args.row_lse = scratch.row_lse;
    args.rows = rows;
    args.d = model.d;
    args.pitch = prepared.operand.pitch;
    const bool squares = model.covariance == Covariance::diagonal;
    const int planes = prepared.operand.planes;
    args.hi = prepared.operand.data + row_begin * args.pitch;
    args.lo = planes > (squares ? 2 : 1)
            ? args.hi + prepared.operand.rows * args.pitch * (squares ? 2 : 1)
            : nullptr;
    args.unpower = 1 / power;
    args.row_weight = row_weight;
    args.means = model.means;
    args.half_inverse = model.half_inverse;
    args.log_constant = model.log_constant;
    args.narrow = all ? nullptr : model.narrow;
    args.bound = bound;
    const auto kernel = args.d % 4 == 0
            ? (squares ? refine_kernel<true, true> : refine_kernel<true, false>)
            : (squares ? refine_kernel<false, true>
                       : refine_kernel<false, false>);
    const int units = scratch.units(rows);
    kernel<<<(units + 7) / 8, kThreads, 0, stream>>>(args);
    check_launch("refinement");
}

} // namespace gmm::cuda
