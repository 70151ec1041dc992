#pragma once

#include "cuda/score/CandidateLists.cuh"

namespace gmm::cuda {

__device__ __forceinline__ uint32_t quad_min(uint32_t x) {
    x = min(x, __shfl_xor_sync(kAllLanes, x, 1));
    return min(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// From scores to lists, and from these to entries (SelectArgs).
struct SelectEpilogue : CandidateLists {
    using Args = SelectArgs;
    uint32_t key[2]; ///< hard: of the best
    bool fresh;

    using CandidateLists::CandidateLists;

    /// Waits for the first round of blocks: whether lists are of no use.
    static __device__ __forceinline__ bool pilot_failed(const Args& out) {
        if (!out.pilot_rows) {
            return false;
        }
        uint64_t seen;
        do {
            seen = *static_cast<volatile uint64_t*>(out.pilot);
        } while (int(seen >> 32) < out.pilot_rows / kUnitRows);
        return float(uint32_t(seen)) > out.pilot_share * out.pilot_rows;
    }

    /// Instead of all that follows: a strip's rows overflow.
    static __device__ __forceinline__ void overflow_strip(
            const ScoreArgs& args, const Args& out, int first) {
        const int lane = threadIdx.x % 32, count = args.rows - first;
        if (lane < min(count, kUnitRows)) {
            out.row_lse[first + lane] = NAN;
            out.row_ranges[first + lane] = 0;
        }
        if (lane == 0 && count > 0) {
            out.unit_counts[first / kUnitRows] = uint64_t(min(count, kUnitRows))
                    << 32;
            out.unit_dropped[first / kUnitRows] = 0;
        }
    }

    __device__ __forceinline__ void begin(int first) {
        begin_rows(first);
        clear();
        fresh = true;
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
        float t0 = threshold(0), t1 = threshold(1);
        bool repeat;
        do {
            const uint32_t from = end;
            append(c, column, t0, t1, m);
            best[0] = quad_max(m[0]);
            best[1] = quad_max(m[1]);
            // The sink has been written: what lies before this tile's has not.
            const bool over = end > sink;
            repeat = __any_sync(kAllLanes, over);
            if (repeat) {
                if (over) {
                    end = from;
                    give_up(c);
                }
                t0 = over ? threshold(0) : INFINITY;
                t1 = over ? threshold(1) : INFINITY;
            }
            if (over || end - records > (sink - records) / 2) {
                end = compacted(); // makes room while there is some
            }
        } while (repeat);
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
                write(row[s],
                      at,
                      k,
                      out.row_weight ? out.row_weight[row[s]] : 1.f);
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
        const float least[2] = {
                best[0] - out.keep_bound, best[1] - out.keep_bound};
        float sum[2] = {}, small[2] = {};
        uint64_t kept = 0; // a bit for each score, four for a record
        static_assert(kMaxCapacity * 4 <= 64);
#pragma unroll 1
        for (uint32_t at = records, shift = 0; at < end;
             at += kBatch * kSharedPerRecord, shift += kBatch * 4) {
            float v[kBatch][4];
            read(at, v);
            uint32_t bits = 0;
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int s = i / 2;
                    const float e = ptx::exp2_approx(v[b][i] - best[s]);
                    const bool mine = v[b][i] >= least[s];
                    sum[s] += e;
                    small[s] += mine ? 0.f : e;
                    bits |= mine ? 1u << (b * 4 + i) : 0;
                }
            }
            kept |= uint64_t(bits) << shift;
        }
        constexpr uint64_t kSlot0 = 0x3333333333333333u;
        float lse[2], weight[2];
        bool usable[2];
#pragma unroll
        for (int s = 0; s < 2; s++) {
            lse[s] = best[s] + log2f(quad_sum(sum[s]));
            const bool inside = row[s] < args.rows;
            weight[s] = inside && out.row_weight ? out.row_weight[row[s]] : 1.f;
            const uint32_t losers = __ballot_sync(kAllLanes, is_lost(s));
            usable[s] = inside && !(losers >> (lane & ~3) & 15);
        }
        // Of both slots, in half a word each: this lane's entries, its rows'.
        const auto count = [&] {
            return __popcll(kept & kSlot0) |
                    uint32_t(__popcll(kept & ~kSlot0)) << 16;
        };
        uint32_t n = count();
        uint32_t of_row = n + __shfl_xor_sync(kAllLanes, n, 1);
        of_row += __shfl_xor_sync(kAllLanes, of_row, 2);
        // A row of no entries has scores that are no numbers: the folded
        // kernel's range was left.
        usable[0] = usable[0] && of_row & 0xffff;
        usable[1] = usable[1] && of_row >> 16;
        // Entries of slot 0, then of slot 1, each by row. Where there are too
        // many, the rows of most are left out.
        uint32_t before, used, behind;
        for (uint32_t limit = kUnitCapacity;; limit /= 2) {
#pragma unroll
            for (int s = 0; s < 2; s++) {
                usable[s] = usable[s] && (of_row >> 16 * s & 0xffff) <= limit;
                if (!usable[s]) {
                    kept &= s ? kSlot0 : ~kSlot0;
                }
            }
            n = before = count();
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const uint32_t other = __shfl_up_sync(kAllLanes, before, step);
                before += lane >= step ? other : 0;
            }
            const uint32_t all = __shfl_sync(kAllLanes, before, 31);
            behind = all << 16;
            used = (all & 0xffff) + (all >> 16);
            if (used <= kUnitCapacity) {
                break;
            }
        }
        uint32_t to = before - n + behind;
        const uint32_t firsts = __shfl_sync(kAllLanes, to, lane & ~3);
        uint32_t overflowed = 0;
        float dropped = 0;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const bool inside = row[s] < args.rows;
            if (inside && lane % 4 == 0) {
                out.row_lse[row[s]] = usable[s] ? lse[s] : NAN;
                out.row_ranges[row[s]] = usable[s]
                        ? uint16_t(
                                  (firsts >> 16 * s & 0xffff) << 8 |
                                  (of_row >> 16 * s & 0xffff))
                        : 0;
            }
            if (usable[s]) {
                dropped += weight[s] * small[s] *
                        ptx::exp2_approx(best[s] - lse[s]);
            }
            overflowed += __popc(__ballot_sync(
                    kAllLanes, inside && !usable[s] && lane % 4 == 0));
        }
        while (kept) {
            const int bit = __ffsll(kept) - 1;
            kept &= kept - 1;
            const bool s = bit & 2;
            const uint32_t from = records + bit / 4 * kSharedPerRecord;
            const float score = ptx::load_shared_float(from + bit % 4 * 4);
            const uint32_t k =
                    ptx::load_shared_uint(from + to_column) + bit % 2;
            const float r = (s ? weight[1] : weight[0]) *
                    ptx::exp2_approx(score - (s ? lse[1] : lse[0]));
            write(s ? row[1] : row[0], s ? to >> 16 : to & 0xffff, k, r);
            to += s ? 0x10000 : 1;
        }
#pragma unroll
        for (int step = 16; step; step /= 2) {
            dropped += __shfl_xor_sync(kAllLanes, dropped, step);
        }
        if (lane == 0 && row[0] < args.rows) {
            out.unit_counts[row[0] / kUnitRows] =
                    used | uint64_t(overflowed) << 32;
            out.unit_dropped[row[0] / kUnitRows] = dropped;
            if (row[0] < out.pilot_rows) {
                atomicAdd(
                        reinterpret_cast<unsigned long long*>(out.pilot),
                        overflowed | 1ull << 32);
            }
        }
    }

    __device__ __forceinline__ void write(
            int number, uint32_t at, uint32_t k, float value) {
        const size_t to = size_t(number / kUnitRows) * kUnitCapacity + at;
        out.keys[to] = k;
        out.values[to] = make_uint2(number, __float_as_uint(value));
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
