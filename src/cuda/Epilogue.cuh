#pragma once

#include <cmath>

#include "Ptx.cuh"
#include "Score.h"

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

__device__ __forceinline__ uint32_t quad_min(uint32_t x) {
    x = min(x, __shfl_xor_sync(kAllLanes, x, 1));
    return min(x, __shfl_xor_sync(kAllLanes, x, 2));
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

/** Candidate lists (SelectArgs).
 *
 * Each lane keeps its own list in shared memory, so that appending needs no
 * agreement with the other lanes. What it appends are whole fragments of a
 * group, four neighbouring scores (two columns of two rows), as they lie in
 * registers: one predicated 16-byte store, no branch, wherever any of the four
 * is within the bound. Which group a record came from is a bit in the tile's
 * mask; masks that are not empty go to a list of headers. A list that reaches
 * its last record, the sink, may have lost something, and so have its rows.
 *
 *    record [capacity][lane] float4, header [capacity][lane] tile << 16 | mask
 */
struct SelectEpilogue : Strip {
    using Args = SelectArgs;
    static constexpr uint32_t kRecordStep = 32 * 16;
    static constexpr uint32_t kHeaderStep = 32 * 4;
    static constexpr int kSharedPerRecord = kRecordStep + kHeaderStep;

    const Args& out;
    uint32_t records; ///< this lane's first
    uint32_t headers;
    uint32_t sink;
    uint32_t end;        ///< one past the last record
    uint32_t header_end; ///< and header
    float best[2];
    uint32_t key[2]; ///< hard: of the best
    bool lost;

    __device__ SelectEpilogue(
            const ScoreArgs& a, const Args& o, uint32_t shared, int capacity)
            : Strip(a), out(o) {
        records = shared + threadIdx.x % 32 * 16;
        sink = records + (capacity - 1) * kRecordStep;
        headers = shared + capacity * kRecordStep + threadIdx.x % 32 * 4;
    }

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
        end = records;
        header_end = headers;
        lost = false;
        best[0] = best[1] = -3e38f;
        key[0] = key[1] = 0;
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        static_assert(kGroups == 16, "a tile's mask has 16 bits");
        to_scores(c, column, constants);
        float m[2];
        maxima(c, m);
        if (out.bound > 0) {
            append_soft(c, column, m);
        } else {
            replace_hard(c, column + threadIdx.x % 4 * 2, m);
        }
    }

    template <int kGroups>
    __device__ __forceinline__ void append_soft(
            const float (&c)[kGroups][4], int column, const float (&m)[2]) {
        best[0] = fmaxf(best[0], quad_max(m[0]));
        best[1] = fmaxf(best[1], quad_max(m[1]));
        const float t0 = best[0] - out.bound, t1 = best[1] - out.bound;
        uint32_t mask = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            ptx::append(c[g], t0, t1, end, mask, kRecordStep, sink, 1u << g);
        }
        if (mask) {
            ptx::store_shared(header_end, uint32_t(column / 128) << 16 | mask);
            header_end += kHeaderStep;
        }
        if (end - records > (sink - records) / 2) {
            // Make room while there is some. Lost for good: no need of any.
            lost |= end == sink;
            const uint2 ends = lost
                    ? make_uint2(records, headers)
                    : compact(records, headers, header_end, t0, t1);
            end = ends.x;
            header_end = ends.y;
        }
    }

    /// Removes records that have fallen below the thresholds; the new ends.
    /// Out of line (it is rare), and static so that the epilogue stays in
    /// registers.
    static __device__ __noinline__ uint2
    compact(uint32_t records,
            uint32_t headers,
            uint32_t header_end,
            float t0,
            float t1) {
        uint32_t to = records, header_to = headers;
        for (uint32_t at = headers; at != header_end; at += kHeaderStep) {
            const uint32_t header = ptx::load_shared_uint(at);
            uint32_t kept = 0;
            for (uint32_t left = header & 0xffff; left; left &= left - 1) {
                const float4 v = ptx::load_shared_float4(records);
                records += kRecordStep;
                if (fmaxf(v.x, v.y) >= t0 || fmaxf(v.z, v.w) >= t1) {
                    ptx::store_shared(to, v);
                    to += kRecordStep;
                    kept |= left & (0u - left);
                }
            }
            if (kept) {
                ptx::store_shared(header_to, (header & 0xffff0000u) | kept);
                header_to += kHeaderStep;
            }
        }
        return make_uint2(to, header_to);
    }

    /// Calls f(column, slot, score) for all that was kept, in column order.
    template <class F>
    __device__ __forceinline__ void for_each(const F& f) const {
        uint32_t record = records;
        for (uint32_t at = headers; at != header_end; at += kHeaderStep) {
            const uint32_t header = ptx::load_shared_uint(at);
            const uint32_t column = (header >> 16) * 128 + threadIdx.x % 4 * 2;
            for (uint32_t left = header & 0xffff; left; left &= left - 1) {
                const float4 v = ptx::load_shared_float4(record);
                record += kRecordStep;
                const uint32_t k = column + (__ffs(left) - 1) * 8;
                f(k, 0, v.x);
                f(k + 1, 0, v.y);
                f(k, 1, v.z);
                f(k + 1, 1, v.w);
            }
        }
    }

    /// Ties go to the lowest component, whatever the tiling.
    template <int kGroups>
    __device__ __forceinline__ void replace_hard(
            const float (&c)[kGroups][4], int column, const float (&m)[2]) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            if (m[s] > best[s]) {
#pragma unroll
                for (int g = kGroups - 1; g >= 0; g--) {
                    if (c[g][2 * s + 1] == m[s]) {
                        key[s] = column + g * 8 + 1;
                    }
                    if (c[g][2 * s] == m[s]) {
                        key[s] = column + g * 8;
                    }
                }
                best[s] = m[s];
            }
        }
    }

    __device__ __forceinline__ void finish() {
        if (out.bound > 0) {
            finish_soft();
        } else {
            finish_hard();
        }
    }

    __device__ __forceinline__ void finish_hard() {
        const int lane = threadIdx.x % 32;
        uint32_t counts = 0;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const float top = quad_max(best[s]);
            const uint32_t k = quad_min(best[s] == top ? key[s] : 0xffffffffu);
            const bool mine = lane % 4 == 0 && row[s] < args.rows;
            const uint32_t voters = __ballot_sync(kAllLanes, mine);
            if (mine) {
                const uint32_t at =
                        counts + __popc(voters & ((1u << lane) - 1));
                write(s, at, k, out.row_weight ? out.row_weight[row[s]] : 1.f);
                out.row_ranges[row[s]] = uint16_t(at << 8 | 1);
                out.row_lse[row[s]] = top;
            }
            counts += __popc(voters);
        }
        if (lane == 0 && row[0] < args.rows) {
            out.unit_counts[row[0] / kUnitRows] = counts;
            out.unit_dropped[row[0] / kUnitRows] = 0;
        }
    }

    __device__ __forceinline__ void finish_soft() {
        const int lane = threadIdx.x % 32;
        // Judged against the best: the sum is not known yet.
        float sum[2] = {}, small[2] = {};
        uint32_t count[2] = {};
        const uint32_t losers = __ballot_sync(kAllLanes, lost);
        const bool quad_lost = losers >> (lane & ~3) & 15;
        if (!quad_lost) {
            for_each([&](uint32_t, int s, float score) {
                const float e = ptx::exp2_approx(score - best[s]);
                const bool listed = score >= best[s] - out.bound;
                const bool kept = score >= best[s] - out.keep_bound;
                sum[s] += listed ? e : 0.f;
                small[s] += listed && !kept ? e : 0.f;
                count[s] += kept;
            });
        }
        uint32_t total = 0, overflowed = 0, to[2];
        float lse[2], weight[2], dropped = 0;
        bool fits[2];
#pragma unroll
        for (int s = 0; s < 2; s++) {
            lse[s] = best[s] + log2f(quad_sum(sum[s]));
            const bool inside = row[s] < args.rows;
            const uint32_t n = inside ? count[s] : 0;
            uint32_t before = n; // inclusive prefix sum over the warp
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const uint32_t other = __shfl_up_sync(kAllLanes, before, step);
                before += lane >= step ? other : 0;
            }
            const uint32_t row_end =
                    total + __shfl_sync(kAllLanes, before, lane | 3);
            const uint32_t row_first =
                    total + __shfl_sync(kAllLanes, before - n, lane & ~3);
            fits[s] = inside && !quad_lost && row_end <= kUnitCapacity;
            to[s] = total + before - n;
            weight[s] = inside && out.row_weight ? out.row_weight[row[s]] : 1.f;
            if (inside && lane % 4 == 0) {
                out.row_lse[row[s]] = fits[s] ? lse[s] : NAN;
                out.row_ranges[row[s]] = fits[s]
                        ? uint16_t(row_first << 8 | (row_end - row_first))
                        : 0;
            }
            if (fits[s]) {
                dropped += weight[s] * small[s] *
                        ptx::exp2_approx(best[s] - lse[s]);
            }
            overflowed += __popc(__ballot_sync(
                    kAllLanes, inside && !fits[s] && lane % 4 == 0));
            // Prefix sums grow: once a row of the slot does not fit, none
            // after it does. The other slot's rows start where this one's
            // end.
            const uint32_t last =
                    __ballot_sync(kAllLanes, row_end <= kUnitCapacity);
            total = last ? __shfl_sync(kAllLanes, row_end, 31 - __clz(last))
                         : total;
        }
        if (!quad_lost) {
            for_each([&](uint32_t k, int s, float score) {
                if (score >= best[s] - out.keep_bound && fits[s]) {
                    write(s,
                          to[s]++,
                          k,
                          out.normalise
                                  ? weight[s] * ptx::exp2_approx(score - lse[s])
                                  : score);
                }
            });
        }
#pragma unroll
        for (int step = 16; step; step /= 2) {
            dropped += __shfl_xor_sync(kAllLanes, dropped, step);
        }
        if (lane == 0 && row[0] < args.rows) {
            out.unit_counts[row[0] / kUnitRows] =
                    total | uint64_t(overflowed) << 32;
            out.unit_dropped[row[0] / kUnitRows] = dropped;
        }
    }

    __device__ __forceinline__ void write(
            int s, uint32_t at, uint32_t k, float value) {
        const size_t to = size_t(row[s] / kUnitRows) * kUnitCapacity + at;
        out.keys[to] = k;
        out.values[to] = make_uint2(row[s], __float_as_uint(value));
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

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
        best[0] = best[1] = -3e38f;
        sum[0] = sum[1] = 0;
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        to_scores(c, column, constants);
        float m[2];
        maxima(c, m);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const float now = fmaxf(best[s], m[s]);
            sum[s] *= ptx::exp2_approx(best[s] - now);
            best[s] = now;
        }
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[i / 2] += ptx::exp2_approx(c[g][i] - best[i / 2]);
            }
        }
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
