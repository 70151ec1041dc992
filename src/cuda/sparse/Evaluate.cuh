#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/operands/Data.h"
#include "cuda/operands/Model.h"

/** Scores of single pairs in fp32, straight from differences: no cancellation,
 * however narrow the component. */
namespace gmm::cuda {

struct ExactArgs {
    const __half* hi;
    const __half* lo; ///< or nullptr
    int d, pitch;
    float inverse_fp16_scale;  ///< Y to the frame's units
    const float* means;        ///< [k][d]
    const float* half_inverse; ///< [k], or [k][d]
    const float* log_constant;
};

inline ExactArgs exact_args(
        const PreparedRows& rows,
        int64_t row_begin,
        float fp16_scale,
        const Model& model) {
    ExactArgs args;
    const int halves = model.covariance == Covariance::diagonal ? 2 : 1;
    args.d = model.d;
    args.pitch = rows.operand.pitch;
    args.hi = rows.operand.data + row_begin * args.pitch;
    args.lo = rows.operand.planes > halves
            ? args.hi + rows.operand.rows * args.pitch * halves
            : nullptr;
    args.inverse_fp16_scale = 1 / fp16_scale;
    args.means = model.means;
    args.half_inverse = model.half_inverse;
    args.log_constant = model.log_constant;
    return args;
}

/// f of whether dimensions fill vector loads (kAligned) and of whether each has
/// a variance (kEachDimension), as types.
template <class F>
auto choose_evaluation(const Model& model, const F& f) {
    const std::true_type yes;
    const std::false_type no;
    const bool aligned = model.d % 4 == 0;
    return model.covariance == Covariance::diagonal
            ? (aligned ? f(yes, yes) : f(no, yes))
            : (aligned ? f(yes, no) : f(no, no));
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

/// Eight dimensions; zeros beyond the last.
template <bool kAligned>
__device__ __forceinline__ void load8(
        const float* from, int j, int d, float (&x)[8]) {
    const float4 a = load4<kAligned>(from, j, d);
    const float4 b = j + 4 < d ? load4<kAligned>(from, j + 4, d)
                               : make_float4(0, 0, 0, 0);
    x[0] = a.x;
    x[1] = a.y;
    x[2] = a.z;
    x[3] = a.w;
    x[4] = b.x;
    x[5] = b.y;
    x[6] = b.z;
    x[7] = b.w;
}

/// Eight halves.
__device__ __forceinline__ void widen(const uint4& bits, float (&x)[8]) {
    const __half2* const h = reinterpret_cast<const __half2*>(&bits);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = __half22float2(h[i]);
        x[2 * i] = two.x;
        x[2 * i + 1] = two.y;
    }
}

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
    // Pairs that a half-warp evaluates at a time, to have their loads in
    // flight.
    constexpr int kBatch = 2;
    const int lane = threadIdx.x % 32, half = lane / 16;
    while (left) {
        int from[kBatch][2]; // -1: no pair is left
        uint32_t c[kBatch], at[kBatch];
        float sum[kBatch] = {};
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                from[b][h] = __ffs(left) - 1;
                left &= left - 1;
            }
            const int mine = max(0, half ? from[b][1] : from[b][0]);
            c[b] = __shfl_sync(0xffffffffu, k, mine);
            at[b] = __shfl_sync(0xffffffffu, row, mine);
        }
        for (int j = lane % 16 * 8; j < args.d; j += 128) {
            uint4 hi[kBatch], lo[kBatch];
            float m[kBatch][8];
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                const size_t to = size_t(at[b]) * args.pitch + j;
                hi[b] = *reinterpret_cast<const uint4*>(args.hi + to);
                lo[b] = args.lo ? *reinterpret_cast<const uint4*>(args.lo + to)
                                : make_uint4(0, 0, 0, 0);
                load8<kAligned>(
                        args.means + size_t(c[b]) * args.d, j, args.d, m[b]);
            }
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                float y[8], rest[8], v[8];
                widen(hi[b], y);
                widen(lo[b], rest);
                if (kEachDimension) {
                    load8<kAligned>(
                            args.half_inverse + size_t(c[b]) * args.d,
                            j,
                            args.d,
                            v);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float t = fmaf(
                            y[i] + rest[i], args.inverse_fp16_scale, -m[b][i]);
                    sum[b] = fmaf(kEachDimension ? t * v[i] : t, t, sum[b]);
                }
            }
        }
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
#pragma unroll
            for (int step = 8; step; step /= 2) {
                sum[b] += __shfl_xor_sync(0xffffffffu, sum[b], step);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float all = __shfl_sync(0xffffffffu, sum[b], h * 16);
                if (lane == from[b][h]) {
                    score = args.log_constant[k] -
                            (kEachDimension ? all : all * args.half_inverse[k]);
                }
            }
        }
    }
}

} // namespace gmm::cuda
