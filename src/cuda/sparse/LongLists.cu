#include <algorithm>

#include "cuda/sparse/Evaluate.cuh"
#include "cuda/sparse/ExactCollapsed.cuh"
#include "cuda/sparse/LongLists.h"
#include "cuda/sparse/ResponsibilityTriple.cuh"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Blocks that share the candidates at most: an H100 has as many at a time.
constexpr int kScoreBlocks = 132 * 3;
constexpr uint32_t kNoPlace = 0xffffffffu;

struct ListArgs {
    ExactArgs exact; ///< of the block
    const float* scores;
    int rows, padded_k;
    float window;
    float bound;
    const uint32_t* numbers; ///< of the rows, in the block
    uint32_t* own_numbers;   ///< the same, where nothing moves them
    const float* row_weight;
    float* best;
    uint32_t* counts; ///< of candidates; then where they begin
    uint32_t* ends;
    TripleRoom room;
    float* row_lse;
};

/// One warp a row: its best score and how many are near it.
__global__ void __launch_bounds__(kThreads)
        count_kernel(const __grid_constant__ ListArgs args) {
    const int i = blockIdx.x * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (i >= args.rows) {
        return;
    }
    const float4* const scores = reinterpret_cast<const float4*>(
            args.scores + size_t(i) * args.padded_k);
    float best = -3e38f;
#pragma unroll 4
    for (int j = lane; j < args.padded_k / 4; j += 32) {
        const float4 s = scores[j];
        best = fmaxf(fmaxf(best, fmaxf(s.x, s.y)), fmaxf(s.z, s.w));
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
    }
    const float least = best - args.window;
    uint32_t count = 0;
#pragma unroll 4
    for (int j = lane; j < args.padded_k / 4; j += 32) {
        const float4 s = scores[j];
        count += (s.x >= least) + (s.y >= least) + (s.z >= least) +
                (s.w >= least);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        count += __shfl_xor_sync(0xffffffffu, count, step);
    }
    if (lane == 0) {
        args.best[i] = best;
        args.counts[i] = count;
        args.own_numbers[i] = args.numbers[i];
    }
}

/** One block: counts to places behind the entries so far, and the numbers of
 * the rows that get none to `left`. state: entries, rows left, entries before
 * these rows'. */
__global__ void __launch_bounds__(1024) place_kernel(
        uint32_t* counts,
        int rows,
        const uint32_t* numbers,
        uint32_t* left,
        uint32_t room,
        uint32_t longest,
        uint32_t* state) {
    __shared__ uint32_t sums[2][32];
    __shared__ uint32_t end;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t rows_left = state[1];
    if (threadIdx.x == 0) {
        end = state[0];
    }
    __syncthreads();
    for (int begin = 0; begin < rows; begin += 1024) {
        const int i = begin + threadIdx.x;
        const bool inside = i < rows;
        const uint32_t number = inside ? numbers[i] : 0;
        const uint32_t count = inside ? counts[i] : 0;
        const bool fits = count <= longest;
        const uint32_t used = end;
        uint32_t sum[2] = {fits ? count : 0, 0};
        bool placed = false;
#pragma unroll
        for (int pass = 0; pass < 2; pass++) {
            uint32_t x = sum[pass];
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const uint32_t other = __shfl_up_sync(0xffffffffu, x, step);
                x += lane >= step ? other : 0;
            }
            if (lane == 31) {
                sums[pass][warp] = x;
            }
            __syncthreads();
            uint32_t before = 0, all = 0;
            for (int w = 0; w < 32; w++) {
                before += w < warp ? sums[pass][w] : 0;
                all += sums[pass][w];
            }
            if (pass == 0) {
                const uint32_t place = used + before + x - sum[0];
                // Those placed come before all that there is no room for.
                placed = inside && fits && place + count <= room;
                if (inside) {
                    counts[i] = placed ? place : kNoPlace;
                }
                if (placed) {
                    atomicMax(&end, place + count);
                }
                sum[1] = inside && !placed;
            } else {
                if (inside && !placed) {
                    left[rows_left + before + x - 1] = number;
                }
                rows_left += all;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        state[2] = state[0];
        state[0] = end;
        state[1] = rows_left;
    }
}

/// One warp a row: its candidates to their places.
__global__ void __launch_bounds__(kThreads)
        candidates_kernel(const __grid_constant__ ListArgs args) {
    const int i = blockIdx.x * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (i >= args.rows || args.counts[i] == kNoPlace) {
        return;
    }
    const uint32_t row = args.own_numbers[i];
    const uint32_t group = row / args.room.layout.group_rows;
    const float least = args.best[i] - args.window;
    const float* const scores = args.scores + size_t(i) * args.padded_k;
    uint32_t end = args.counts[i];
#pragma unroll 4
    for (int first = 0; first < args.padded_k; first += 128) {
        const int k = first + lane * 4;
        const float4 s = __ldg(reinterpret_cast<const float4*>(scores + k));
        const float score[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const bool mine = score[e] >= least;
            const uint32_t all = __ballot_sync(0xffffffffu, mine);
            if (mine) {
                const uint32_t at = end + __popc(all & ((1u << lane) - 1));
                args.room.entries[at] =
                        pack_triple(args.room.layout, group, row, k + e, 0);
            }
            end += __popc(all);
        }
    }
    if (lane == 0) {
        args.ends[i] = end;
    }
}

/// All candidates of all rows, exactly: 32 a warp.
template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads, 3) candidate_scores_kernel(
        const __grid_constant__ ListArgs args, const uint32_t* state) {
    const uint32_t begin = state[2], end = state[0];
    for (uint32_t first = begin + (blockIdx.x * kWarps + threadIdx.x / 32) * 32;
         first < end;
         first += gridDim.x * kThreads) {
        const uint32_t at = first + threadIdx.x % 32;
        const bool inside = at < end;
        const uint64_t entry = args.room.entries[inside ? at : begin];
        const uint32_t k = key_component(
                args.room.layout, triple_key(args.room.layout, entry));
        const uint32_t row = triple_row(args.room.layout, entry);
        float score = 0;
        evaluate_pairs<kAligned, kEachDimension>(
                args.exact, __ballot_sync(0xffffffffu, inside), k, row, score);
        if (inside) {
            args.room.scores[at] = score;
        }
    }
}

/// One warp a row: scores to responsibilities, candidates to entries.
__global__ void __launch_bounds__(kThreads)
        list_kernel(const __grid_constant__ ListArgs args) {
    const int i = blockIdx.x * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (i >= args.rows || args.counts[i] == kNoPlace) {
        return;
    }
    const uint32_t place = args.counts[i], end = args.ends[i];
    const uint32_t row = args.own_numbers[i];
    const TripleLayout& layout = args.room.layout;
    const uint32_t group = row / layout.group_rows;
    const float* const scores = args.room.scores;
    float best = -3e38f;
    for (uint32_t at = place + lane; at < end; at += 32) {
        best = fmaxf(best, scores[at]);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
    }
    const float least = best - args.bound;
    float sum = 0;
    for (uint32_t at = place + lane; at < end; at += 32) {
        const float score = scores[at];
        sum += score < least ? 0.f : exp2f(score - best);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    const float lse = best + log2f(sum);
    const float weight = args.row_weight ? args.row_weight[row] : 1.f;
    for (uint32_t at = place + lane; at < end; at += 32) {
        const float score = scores[at];
        uint64_t& entry = args.room.entries[at];
        entry = pack_triple(
                layout,
                group,
                row,
                key_component(layout, triple_key(layout, entry)),
                score < least ? 0.f : weight * exp2f(score - lse));
    }
    if (lane == 0) {
        args.row_lse[row] = lse;
    }
}

} // namespace

void LongLists::reserve() {
    memory_.reserve(4 * kDenseRows * sizeof(float) + 3 * sizeof(uint32_t));
    totals_.reserve(2 * sizeof(uint32_t));
}

int64_t LongLists::run(
        const ScoreKernels& score,
        const Model& model,
        NumberedRows& rest,
        float bound,
        float slack,
        const TripleRoom& room,
        const DenseStep& borrowed,
        cudaStream_t stream) {
    uint32_t* const numbers = rest.numbers;
    const int count = rest.count;
    const PreparedRows& gathered = borrowed.gathered();
    float* const best = memory_.as<float>();
    uint32_t* const counts = reinterpret_cast<uint32_t*>(best + kDenseRows);
    uint32_t* const ends = counts + kDenseRows;
    uint32_t* const own_numbers = ends + kDenseRows;
    uint32_t* const state = own_numbers + kDenseRows;
    const int capacity = int(std::min<size_t>(
            kDenseRows,
            borrowed.scratch_bytes() / (model.padded_k * sizeof(float))));
    // Where most rows overflow, long lists must not crowd out shorter ones,
    // which gain more by exact scores.
    const uint32_t longest = std::clamp(
            8 * ((room.size - room.used) / uint32_t(count)), 32u, kLongest);
    const uint32_t start[2] = {room.used, 0};
    uint32_t* const totals = totals_.as<uint32_t>();
    std::copy(start, start + 2, totals);
    check(cudaMemcpyAsync(
                  state, totals, sizeof(start), cudaMemcpyHostToDevice, stream),
          "clearing");
    const auto evaluate = choose_evaluation(model, [](auto aligned, auto each) {
        return candidate_scores_kernel<aligned, each>;
    });
    int64_t entries = 0;
    for (int begin = 0; begin < count; begin += capacity) {
        const int rows = std::min(capacity, count - begin);
        gather_rows(
                rest.rows,
                rest.row_begin,
                nullptr,
                numbers + begin,
                rows,
                gathered,
                nullptr,
                stream);
        ScoreArgs args = model.score_args(false);
        args.rows_operand = gathered.operand;
        args.rows = rows;
        if (model.geometry == Geometry::product) {
            args.row_constant = gathered.row_constant_hi;
        }
        args.splits = splits_of(rows, args.components);
        score(args, LogitArgs{borrowed.scratch()}, stream);

        ListArgs lists;
        lists.exact =
                exact_args(rest.rows, rest.row_begin, rest.fp16_scale, model);
        if (model.collapsed) {
            exact_collapsed(
                    lists.exact,
                    model,
                    numbers + begin,
                    rows,
                    borrowed.scratch(),
                    stream);
        }
        lists.scores = borrowed.scratch();
        lists.rows = rows;
        lists.padded_k = model.padded_k;
        lists.window = bound + slack;
        lists.bound = bound;
        lists.numbers = numbers + begin;
        lists.own_numbers = own_numbers;
        lists.row_weight = rest.weight;
        lists.best = best;
        lists.counts = counts;
        lists.ends = ends;
        lists.room = room;
        lists.row_lse = rest.row_lse;
        const int blocks = (rows + kWarps - 1) / kWarps;
        count_kernel<<<blocks, kThreads, 0, stream>>>(lists);
        check_launch("counting of long lists");
        place_kernel<<<1, 1024, 0, stream>>>(
                counts, rows, own_numbers, numbers, room.size, longest, state);
        check_launch("placing of long lists");
        candidates_kernel<<<blocks, kThreads, 0, stream>>>(lists);
        check_launch("candidates of long lists");
        evaluate<<<std::min(16 * blocks, kScoreBlocks), kThreads, 0, stream>>>(
                lists, state);
        check_launch("scores of long lists");
        list_kernel<<<blocks, kThreads, 0, stream>>>(lists);
        check_launch("long lists");
        const int done = begin + rows;
        if (begin && done < count) {
            continue;
        }
        check(cudaMemcpyAsync(
                      totals,
                      state,
                      sizeof(start),
                      cudaMemcpyDeviceToHost,
                      stream),
              "reading the number of entries");
        check(cudaStreamSynchronize(stream), "long lists");
        entries = int64_t(totals[0]) - room.used;
        rest.count = int(totals[1]);
        if (done < count && rest.count > rows / 2) {
            // The lists of most are too long: the rest are not tried. Those
            // left come to lie before them.
            rest.numbers += done - rest.count;
            const size_t bytes = rest.count * sizeof(uint32_t);
            check(cudaMemcpyAsync(
                          own_numbers,
                          numbers,
                          bytes,
                          cudaMemcpyDeviceToDevice,
                          stream),
                  "moving rows");
            check(cudaMemcpyAsync(
                          rest.numbers,
                          own_numbers,
                          bytes,
                          cudaMemcpyDeviceToDevice,
                          stream),
                  "moving rows");
            rest.count += count - done;
            break;
        }
    }
    return entries;
}

} // namespace gmm::cuda
