#pragma once

#include <cuda_fp16.h>

#include "Data.h"
#include "Model.h"

/** Scores of single pairs in fp32, straight from differences: no cancellation,
 * however narrow the component. */
namespace gmm::cuda {

struct ExactArgs {
    const __half* hi;
    const __half* lo; ///< or nullptr
    int d, pitch;
    float unpower;             ///< Y to the frame's units
    const float* means;        ///< [k][d]
    const float* half_inverse; ///< [k], or [k][d]
    const float* log_constant;
};

inline ExactArgs exact_args(
        const PreparedRows& rows,
        int64_t row_begin,
        float power,
        const Model& model) {
    ExactArgs args;
    const int halves = model.covariance == Covariance::diagonal ? 2 : 1;
    args.d = model.d;
    args.pitch = rows.operand.pitch;
    args.hi = rows.operand.data + row_begin * args.pitch;
    args.lo = rows.operand.planes > halves
            ? args.hi + rows.operand.rows * args.pitch * halves
            : nullptr;
    args.unpower = 1 / power;
    args.means = model.means;
    args.half_inverse = model.half_inverse;
    args.log_constant = model.log_constant;
    return args;
}

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

/// Four halves.
__device__ __forceinline__ float4 widened(uint2 bits) {
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
    const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    return make_float4(a.x, a.y, b.x, b.y);
}

/// Pairs that a warp evaluates at a time, to have their loads in flight.
constexpr int kExactBatch = 4;

/** The scores of the pairs that lanes mark in `left`, each to its lane.
 *
 * @param k, row  the lane's pair
 * @param score   replaced where the lane is marked
 */
template <bool kAligned, bool kEachDimension>
__device__ __forceinline__ void evaluate_pairs(
        const ExactArgs& args,
        uint32_t left,
        uint32_t k,
        uint32_t row,
        float& score) {
    const int lane = threadIdx.x % 32;
    while (left) {
        int from[kExactBatch];
        uint32_t c[kExactBatch], at[kExactBatch];
        float sum[kExactBatch] = {};
        int batch = 0;
#pragma unroll
        for (int b = 0; b < kExactBatch; b++) {
            from[b] = left ? __ffs(left) - 1 : from[0];
            batch += left != 0;
            left &= left - 1;
            c[b] = __shfl_sync(0xffffffffu, k, from[b]);
            at[b] = __shfl_sync(0xffffffffu, row, from[b]);
        }
        for (int j = lane * 4; j < args.d; j += 128) {
            uint2 hi[kExactBatch], lo[kExactBatch];
            float4 m[kExactBatch];
#pragma unroll
            for (int b = 0; b < kExactBatch; b++) {
                const size_t to = size_t(at[b]) * args.pitch + j;
                hi[b] = *reinterpret_cast<const uint2*>(args.hi + to);
                lo[b] = args.lo ? *reinterpret_cast<const uint2*>(args.lo + to)
                                : make_uint2(0, 0);
                m[b] = load4<kAligned>(
                        args.means + size_t(c[b]) * args.d, j, args.d);
            }
#pragma unroll
            for (int b = 0; b < kExactBatch; b++) {
                float4 v;
                if (kEachDimension) {
                    v = load4<kAligned>(
                            args.half_inverse + size_t(c[b]) * args.d,
                            j,
                            args.d);
                }
                auto add = [&](float yj, float mj, float vj) {
                    const float t = fmaf(yj, args.unpower, -mj);
                    sum[b] = fmaf(kEachDimension ? t * vj : t, t, sum[b]);
                };
                const float4 y = widened(hi[b]), rest = widened(lo[b]);
                add(y.x + rest.x, m[b].x, v.x);
                add(y.y + rest.y, m[b].y, v.y);
                add(y.z + rest.z, m[b].z, v.z);
                add(y.w + rest.w, m[b].w, v.w);
            }
        }
#pragma unroll
        for (int b = 0; b < kExactBatch; b++) {
#pragma unroll
            for (int step = 16; step; step /= 2) {
                sum[b] += __shfl_xor_sync(0xffffffffu, sum[b], step);
            }
            if (b < batch && lane == from[b]) {
                score = args.log_constant[k] -
                        (kEachDimension ? sum[b]
                                        : sum[b] * args.half_inverse[k]);
            }
        }
    }
}

} // namespace gmm::cuda
