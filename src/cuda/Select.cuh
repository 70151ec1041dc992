#pragma once

#include "Epilogue.cuh"

namespace gmm::cuda {

__device__ __forceinline__ uint32_t quad_min(uint32_t x) {
    x = min(x, __shfl_xor_sync(kAllLanes, x, 1));
    return min(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/** Candidate lists (SelectArgs).
 *
 * Each lane keeps its own list in shared memory, so that appending needs no
 * agreement with the other lanes. What it appends are whole fragments of a
 * group, four neighbouring scores (two columns of two rows), as they lie in
 * registers: two predicated stores, no branch, wherever any of the four is
 * within the bound. A list that goes beyond its last record, the sink, has
 * lost something, and so have its rows. Lists are read four records at a time:
 * one at a time, waiting for shared memory took half of the kernel.
 *
 *    record [capacity] {[lane] float4, [lane] first column}
 */
struct SelectEpilogue : Strip {
    using Args = SelectArgs;
    static constexpr int kSharedPerRecord = 32 * (16 + 4);
    static constexpr int kBatch = 4; ///< records that are read at a time

    const Args& out;
    uint32_t records;   ///< this lane's first
    uint32_t to_column; ///< from a record to its column
    uint32_t sink;
    uint32_t end; ///< one past the last record
    float best[2];
    uint32_t key[2]; ///< hard: of the best
    bool lost;
    bool fresh;

    __device__ SelectEpilogue(
            const ScoreArgs& a, const Args& o, uint32_t shared, int capacity)
            : Strip(a), out(o) {
        records = shared + threadIdx.x % 32 * 16;
        to_column = 32 * 16 - threadIdx.x % 32 * 12;
        sink = records + (capacity - 1) * kSharedPerRecord;
    }

    /// Whether lists would be of no use; all rows are marked, then.
    static __device__ __forceinline__ bool skip(
            const ScoreArgs& args, const Args& out) {
        if (out.probe || *out.lost <= kProbeLimit) {
            return false;
        }
        const int units = (args.rows + kUnitRows - 1) / kUnitRows;
        for (int u = args.first_row / kUnitRows + blockIdx.x * blockDim.x +
                     threadIdx.x;
             u < units;
             u += gridDim.x * blockDim.x) {
            const int end = min(args.rows, (u + 1) * kUnitRows);
            for (int i = u * kUnitRows; i < end; i++) {
                out.row_lse[i] = NAN;
                out.row_ranges[i] = 0;
            }
            out.unit_counts[u] = uint64_t(end - u * kUnitRows) << 32;
            out.unit_dropped[u] = 0;
        }
        return true;
    }

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
        end = records;
        lost = false;
        fresh = true;
        best[0] = best[1] = -3e38f;
        key[0] = key[1] = 0;
    }

    template <int kGroups>
    __device__ __forceinline__ void tile(
            float (&c)[kGroups][4], int column, const float4* constants) {
        to_scores(c, column, constants);
        if (out.bound > 0) {
            scores(c, column);
        } else {
            float m[2];
            maxima(c, m);
            replace_hard(c, column + threadIdx.x % 4 * 2, m);
        }
    }

    template <int kGroups>
    __device__ __forceinline__ void scores(
            const float (&c)[kGroups][4], int column) {
        float m[2];
        if (fresh) { // nothing to compare with yet
            maxima(c, m);
            // Finite even where scores are no numbers.
            best[0] = fmaxf(best[0], quad_max(m[0]));
            best[1] = fmaxf(best[1], quad_max(m[1]));
            fresh = false;
        }
        // Against the best of the tiles before: waiting for this one's would
        // go over the scores twice, and lists a tenth less.
        const float t0 = best[0] - out.bound, t1 = best[1] - out.bound;
        const uint32_t first = column + threadIdx.x % 4 * 2;
        m[0] = best[0];
        m[1] = best[1];
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const float m0 = fmaxf(c[g][0], c[g][1]);
            const float m1 = fmaxf(c[g][2], c[g][3]);
            ptx::append(
                    c[g],
                    first + g * 8,
                    m0,
                    m1,
                    t0,
                    t1,
                    end,
                    sink,
                    to_column,
                    kSharedPerRecord);
            m[0] = fmaxf(m[0], m0);
            m[1] = fmaxf(m[1], m1);
        }
        best[0] = quad_max(m[0]);
        best[1] = quad_max(m[1]);
        if (end - records > (sink - records) / 2) {
            // Make room while there is some. Lost for good: no need of any.
            lost |= end > sink + kSharedPerRecord;
            end = lost ? records : compacted();
        }
    }

    /// Up to kBatch records from `at`; scores beyond the end are -inf.
    __device__ __forceinline__ void
    read(uint32_t at, float (&v)[kBatch][4], uint32_t (&column)[kBatch]) const {
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
            const uint32_t from = at + b * kSharedPerRecord;
            const bool valid = from < end;
            float4 r = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            column[b] = 0;
            if (valid) {
                r = ptx::load_shared_float4(from);
                column[b] = ptx::load_shared_uint(from + to_column);
            }
            v[b][0] = r.x;
            v[b][1] = r.y;
            v[b][2] = r.z;
            v[b][3] = r.w;
        }
    }

    /// Removes records that have fallen below the thresholds; the new end.
    __device__ __forceinline__ uint32_t compacted() const {
        const float t0 = best[0] - out.bound, t1 = best[1] - out.bound;
        uint32_t to = records;
#pragma unroll 1
        for (uint32_t at = records; at < end; at += kBatch * kSharedPerRecord) {
            float v[kBatch][4];
            uint32_t column[kBatch];
            read(at, v, column);
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                if (fmaxf(v[b][0], v[b][1]) >= t0 ||
                    fmaxf(v[b][2], v[b][3]) >= t1) {
                    ptx::store_shared(
                            to,
                            make_float4(v[b][0], v[b][1], v[b][2], v[b][3]));
                    ptx::store_shared(to + to_column, column[b]);
                    to += kSharedPerRecord;
                }
            }
        }
        return to;
    }

    /// Calls f(column, slot, score) for all that was kept, and for -inf.
    template <class F>
    __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll 1
        for (uint32_t at = records; at < end; at += kBatch * kSharedPerRecord) {
            float v[kBatch][4];
            uint32_t column[kBatch];
            read(at, v, column);
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    f(column[b] + i % 2, i / 2, v[b][i]);
                }
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
            finish_scores();
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

    __device__ __forceinline__ void finish_scores() {
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
            // A row of no entries has scores that are no numbers: the folded
            // kernel's range was left.
            fits[s] = inside && !quad_lost && row_end <= kUnitCapacity &&
                    row_end > row_first;
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
            if (out.probe) {
                atomicAdd(out.lost, overflowed);
            }
        }
    }

    __device__ __forceinline__ void write(
            int s, uint32_t at, uint32_t k, float value) {
        const size_t to = size_t(row[s] / kUnitRows) * kUnitCapacity + at;
        out.keys[to] = k;
        out.values[to] = make_uint2(row[s], __float_as_uint(value));
    }
};

/// What serves an output.
template <class Out>
struct EpilogueFor;
template <>
struct EpilogueFor<SelectArgs> {
    using Type = SelectEpilogue;
};
template <>
struct EpilogueFor<LseArgs> {
    using Type = LseEpilogue;
};
template <>
struct EpilogueFor<ResponsibilityArgs> {
    using Type = ResponsibilityEpilogue;
};
template <>
struct EpilogueFor<LogitArgs> {
    using Type = LogitEpilogue;
};
template <class Out>
using EpilogueOf = typename EpilogueFor<Out>::Type;

} // namespace gmm::cuda
