#pragma once

#include <cmath>

#include "cuda/ptx/Ptx.cuh"
#include "cuda/score/Score.h"

/** What happens to a tile of products while it is in registers.
 *
 * mma.sync and wgmma leave the same fragment: of a strip of 16 rows, a lane
 * holds rows lane / 4 (slot 0) and lane / 4 + 8 (slot 1), and of each group of
 * eight columns 2 (lane % 4) and the next. So one set of epilogues serves both
 * kernels. Each is a struct with
 *
 *    Args, kSharedPerRecord  what it needs; bytes of a strip's list's record
 *    begin(row)              a strip's first row, in the launch
 *    tile(c, column)         c[group][slot * 2 + parity]
 *    finish()                after the last column
 *
 * and, where products are scores (AugmentedOperands.h), scores(c, column) for
 * tile, finish_scores() for finish, and pilot_failed() and overflow_strip(),
 * see SelectArgs::pilot.
 */
namespace gmm::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/// What all epilogues know of their strip.
struct Strip {
    const ScoreArgs& args;
    int row[2]; ///< of the two slots, in the launch
    float q[2]; ///< row constants

    __device__ explicit Strip(const ScoreArgs& a) : args(a) {}

    __device__ __forceinline__ void begin_rows(int first) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            row[s] = first + lane / 4 + 8 * s;
            q[s] = args.row_constant && row[s] < args.rows
                    ? args.row_constant[row[s]] * args.row_constant_scale
                    : 0.f;
        }
    }

    /// Products to scores, in place.
    template <int kGroups>
    __device__ __forceinline__ void to_scores(
            float (&c)[kGroups][4], int column, const float4* constants) {
        const int lane = threadIdx.x % 32;
        const float4* at = constants + column / 2 + lane % 4;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const float4 k = at[g * 4];
            c[g][0] = fmaf(k.x, c[g][0] + q[0], k.z);
            c[g][1] = fmaf(k.y, c[g][1] + q[0], k.w);
            c[g][2] = fmaf(k.x, c[g][2] + q[1], k.z);
            c[g][3] = fmaf(k.y, c[g][3] + q[1], k.w);
        }
    }

    template <int kGroups>
    static __device__ __forceinline__ void maxima(
            const float (&c)[kGroups][4], float (&m)[2]) {
        m[0] = m[1] = -INFINITY;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            m[0] = fmaxf(m[0], fmaxf(c[g][0], c[g][1]));
            m[1] = fmaxf(m[1], fmaxf(c[g][2], c[g][3]));
        }
    }
};

/// LseArgs: the online log-sum-exp, each lane for itself until the end.
struct LseEpilogue : Strip {
    using Args = LseArgs;
    static constexpr int kSharedPerRecord = 0;

    const Args& out;
    float best[2];
    float sum[2];

    __device__ LseEpilogue(const ScoreArgs& a, const Args& o, uint32_t, int)
            : Strip(a), out(o) {}

    static __device__ __forceinline__ bool pilot_failed(const Args&) {
        return false;
    }
    static __device__ __forceinline__ void overflow_strip(
            const ScoreArgs&, const Args&, int) {}

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
        best[0] = best[1] = -3e38f;
        sum[0] = sum[1] = 0;
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        to_scores(c, column, constants);
        scores(c, column);
    }

    template <int kGroups>
    __device__ __forceinline__ void scores(const float (&c)[kGroups][4], int) {
        // An older tile's best does as well until sums become too large, and
        // looking for a new one takes as long as all the rest.
        const auto total = [&](float(&to)[2]) {
            to[0] = to[1] = 0;
#pragma unroll
            for (int g = 0; g < kGroups; g++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    to[i / 2] += ptx::exp2_approx(c[g][i] - best[i / 2]);
                }
            }
        };
        constexpr float kLarge = 1e18f;
        float add[2];
        total(add);
        if (!(add[0] < kLarge && add[1] < kLarge)) {
            float m[2];
            maxima(c, m);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float now = fmaxf(best[s], m[s]);
                sum[s] *= ptx::exp2_approx(best[s] - now);
                best[s] = now;
            }
            total(add);
        }
        sum[0] += add[0];
        sum[1] += add[1];
    }

    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const float top = quad_max(best[s]);
            const float all =
                    quad_sum(sum[s] * ptx::exp2_approx(best[s] - top));
            if (threadIdx.x % 4 == 0 && row[s] < args.rows) {
                out.row_lse[size_t(blockIdx.y) * args.rows + row[s]] =
                        top + log2f(all);
            }
        }
    }

    __device__ __forceinline__ void finish_scores() {
        finish();
    }
};

/// ResponsibilityArgs.
struct ResponsibilityEpilogue : Strip {
    using Args = ResponsibilityArgs;
    static constexpr int kSharedPerRecord = 0;

    const Args& out;
    float lse[2];
    float weight[2];

    __device__ ResponsibilityEpilogue(
            const ScoreArgs& a, const Args& o, uint32_t, int)
            : Strip(a), out(o) {}

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const bool inside = row[s] < args.rows;
            lse[s] = inside ? out.row_lse[row[s]] : 0.f;
            weight[s] = kResponsibilityScale *
                    (inside && out.row_weight ? out.row_weight[row[s]] : 1.f);
        }
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        to_scores(c, column, constants);
        const int at = column - args.component_begin + threadIdx.x % 4 * 2;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float r0 =
                        weight[s] * ptx::exp2_approx(c[g][2 * s] - lse[s]);
                const float r1 =
                        weight[s] * ptx::exp2_approx(c[g][2 * s + 1] - lse[s]);
                const __half2 hi = __floats2half2_rn(r0, r1);
                if (row[s] < args.rows) {
                    const size_t to =
                            size_t(row[s]) * args.components + at + g * 8;
                    *reinterpret_cast<__half2*>(out.hi + to) = hi;
                    if (out.lo) {
                        const float2 back = __half22float2(hi);
                        *reinterpret_cast<__half2*>(out.lo + to) =
                                __floats2half2_rn(r0 - back.x, r1 - back.y);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void finish() {}
};

/// LogitArgs.
struct LogitEpilogue : Strip {
    using Args = LogitArgs;
    static constexpr int kSharedPerRecord = 0;

    const Args& out;

    __device__ LogitEpilogue(const ScoreArgs& a, const Args& o, uint32_t, int)
            : Strip(a), out(o) {}

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        to_scores(c, column, constants);
        const int at = column - args.component_begin + threadIdx.x % 4 * 2;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
#pragma unroll
            for (int s = 0; s < 2; s++) {
                if (row[s] < args.rows) {
                    *reinterpret_cast<float2*>(
                            out.out + size_t(row[s]) * args.components + at +
                            g * 8) = make_float2(c[g][2 * s], c[g][2 * s + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void finish() {}
};

} // namespace gmm::cuda
