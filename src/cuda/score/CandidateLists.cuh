#pragma once

#include "cuda/score/Epilogue.cuh"

namespace gmm::cuda {

/** Candidate lists.
 *
 * Each lane keeps its own list in shared memory, so that appending needs no
 * agreement with the other lanes. What it appends are whole fragments of a
 * group, four neighbouring scores (two columns of two rows), as they lie in
 * registers: two predicated stores, no branch, wherever any of the four is
 * within the bound. Where that needs more room than there is (what goes beyond
 * it lands in the last record, the sink), a list gives up the row that needs
 * more, or both: those overflow, unless a best is found later that leaves all
 * that was lost beyond the bound. So a row of few candidates keeps them,
 * whatever row it shares a list with. Lists are read four records at a time:
 * one at a time, waiting for shared memory took half of the kernel.
 *
 *    record [capacity] {[lane] float4, [lane] first column}
 */
struct CandidateLists : Strip {
    static constexpr int kSharedPerRecord = 32 * (16 + 4);
    static constexpr int kBatch = 4;        ///< records that are read at a time
    static constexpr int kMaxCapacity = 16; ///< records of a list

    const SelectArgs& out;
    uint32_t records;   ///< this lane's first
    uint32_t to_column; ///< from a record to its column
    uint32_t sink;
    uint32_t end; ///< one past the last record
    float best[2];
    float lost[2]; ///< no score that was lost is above

    __device__ CandidateLists(
            const ScoreArgs& a,
            const SelectArgs& o,
            uint32_t shared,
            int capacity)
            : Strip(a), out(o) {
        records = shared + threadIdx.x % 32 * 16;
        to_column = 32 * 16 - threadIdx.x % 32 * 12;
        sink = records + (capacity - 1) * kSharedPerRecord;
    }

    /// For other rows.
    __device__ __forceinline__ void clear() {
        end = records;
        best[0] = best[1] = -3e38f;
        lost[0] = lost[1] = -INFINITY;
    }

    /// If what two rows need of the list and of this tile is more than fits:
    /// loses the one that needs more, or both.
    template <int kGroups>
    __device__ __forceinline__ void give_up(const float (&c)[kGroups][4]) {
        const float t0 = threshold(0), t1 = threshold(1);
        uint32_t need[2] = {}, together = 0;
        const auto count = [&](const float(&x)[4]) {
            const bool first = fmaxf(x[0], x[1]) >= t0;
            const bool second = fmaxf(x[2], x[3]) >= t1;
            need[0] += first;
            need[1] += second;
            together += first || second;
        };
#pragma unroll 1
        for (uint32_t at = records; at < end; at += kBatch * kSharedPerRecord) {
            float v[kBatch][4];
            read(at, v);
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                count(v[b]);
            }
        }
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            count(c[g]);
        }
        const uint32_t room = (sink - records) / kSharedPerRecord;
        if (together <= room) {
            return; // this tile's best is far above all before
        }
        const bool first = need[0] >= need[1];
        if (first || need[0] > room) {
            lose(0);
        }
        if (!first || need[1] > room) {
            lose(1);
        }
    }

    /// Whether this lane has lost what the row of a slot needs.
    __device__ __forceinline__ bool is_lost(int s) const {
        return lost[s] >= best[s] - out.bound;
    }

    /// Nothing as high as the best so far stays: not even its equals, which
    /// may be many.
    __device__ __forceinline__ void lose(int s) {
        lost[s] = best[s] + (1e-6f * fabsf(best[s]) + 1e-30f);
    }

    /// What is below is of no use, whatever comes.
    __device__ __forceinline__ float threshold(int s) const {
        return fmaxf(best[s] - out.bound, lost[s]);
    }

    /// Appends what reaches t0 and t1; m: the maxima so far.
    template <int kGroups>
    __device__ __forceinline__ void append(
            const float (&c)[kGroups][4],
            int column,
            float t0,
            float t1,
            float (&m)[2]) {
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
    }

    /// The scores of up to kBatch records from `at`; -inf beyond the end.
    __device__ __forceinline__ void read(
            uint32_t at, float (&v)[kBatch][4]) const {
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
            const uint32_t from = at + b * kSharedPerRecord;
            float4 r = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            if (from < end) {
                r = ptx::load_shared_float4(from);
            }
            v[b][0] = r.x;
            v[b][1] = r.y;
            v[b][2] = r.z;
            v[b][3] = r.w;
        }
    }

    /// Removes records that have fallen below the thresholds, and those of rows
    /// that are lost; the new end.
    __device__ __forceinline__ uint32_t compacted() {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            if (is_lost(s)) {
                lose(s);
            }
        }
        const float t0 = threshold(0), t1 = threshold(1);
        uint32_t to = records;
#pragma unroll 1
        for (uint32_t at = records; at < end; at += kBatch * kSharedPerRecord) {
            float v[kBatch][4];
            uint32_t column[kBatch];
            read(at, v);
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                const uint32_t from = at + b * kSharedPerRecord;
                column[b] = from < end ? ptx::load_shared_uint(from + to_column)
                                       : 0;
            }
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
};

} // namespace gmm::cuda
