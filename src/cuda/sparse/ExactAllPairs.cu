#include <cub/block/block_reduce.cuh>

#include <cuda/functional>

#include "cuda/sparse/Evaluate.cuh"
#include "cuda/sparse/LongLists.h"
#include "cuda/sparse/ResponsibilityTriple.cuh"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Pairs of row and component that are evaluated without asking which are
/// needed: 11,000 take an H100 9 us; finding candidates first takes 45.
constexpr int kAllPairs = 1 << 17;

struct AllArgs {
    ExactArgs exact;
    const uint32_t* numbers;
    int rows;
    TripleRoom room;
    const float* row_weight;
    float* row_lse;
};

/// Pairs that a warp evaluates at once (evaluate_pairs): it goes on to no
/// second batch, for latency is all that this takes.
constexpr int kWarpPairs = 4;

template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads, 3)
        all_scores_kernel(const __grid_constant__ AllArgs args) {
    const int lane = threadIdx.x % 32;
    const int warp = blockIdx.x * kWarps + threadIdx.x / 32;
    const int pair = warp * kWarpPairs + lane;
    const int components = args.room.k;
    const bool inside = lane < kWarpPairs && pair < args.rows * components;
    const uint32_t k = inside ? pair % components : 0;
    const uint32_t row = args.numbers[inside ? pair / components : 0];
    float score = 0;
    evaluate_pairs<kAligned, kEachDimension>(
            args.exact, __ballot_sync(0xffffffffu, inside), k, row, score);
    if (inside) {
        args.room.scores[args.room.used + pair] = score;
    }
}

/// A block a row: scores to responsibilities.
__global__ void __launch_bounds__(kThreads)
        all_lists_kernel(const __grid_constant__ AllArgs args) {
    using Reduce = cub::BlockReduce<float, kThreads>;
    __shared__ Reduce::TempStorage storage[2];
    __shared__ float shared[2];
    const int components = args.room.k;
    const size_t first = args.room.used + size_t(blockIdx.x) * components;
    const float* const scores = args.room.scores + first;
    float best = -3e38f;
    for (int k = threadIdx.x; k < components; k += kThreads) {
        best = fmaxf(best, scores[k]);
    }
    best = Reduce(storage[0]).Reduce(best, ::cuda::maximum<>{});
    if (threadIdx.x == 0) {
        shared[0] = best;
    }
    __syncthreads();
    best = shared[0];
    float sum = 0;
    for (int k = threadIdx.x; k < components; k += kThreads) {
        sum += exp2f(scores[k] - best);
    }
    sum = Reduce(storage[1]).Sum(sum);
    if (threadIdx.x == 0) {
        shared[1] = best + log2f(sum);
    }
    __syncthreads();
    const float lse = shared[1];
    const uint32_t row = args.numbers[blockIdx.x];
    const uint32_t group = row / args.room.layout.group_rows;
    const float weight = args.row_weight ? args.row_weight[row] : 1.f;
    for (int k = threadIdx.x; k < components; k += kThreads) {
        const float r = weight * exp2f(scores[k] - lse);
        args.room.entries[first + k] =
                pack_triple(args.room.layout, group, row, k, r);
    }
    if (threadIdx.x == 0) {
        args.row_lse[row] = lse;
    }
}

} // namespace

bool can_take_all_pairs(int rows, const TripleRoom& room) {
    const int64_t pairs = int64_t(rows) * room.k;
    return pairs <= kAllPairs && pairs <= int64_t(room.size) - room.used;
}

int64_t exact_all_pairs(
        const Model& model,
        const NumberedRows& some,
        const TripleRoom& room,
        cudaStream_t stream) {
    const AllArgs args{
            exact_args(some.rows, some.row_begin, some.fp16_scale, model),
            some.numbers,
            some.count,
            room,
            some.weight,
            some.row_lse};
    const auto scores = choose_evaluation(model, [](auto aligned, auto each) {
        return all_scores_kernel<aligned, each>;
    });
    const int pairs = some.count * room.k;
    constexpr int kBlockPairs = kWarps * kWarpPairs;
    const int blocks = (pairs + kBlockPairs - 1) / kBlockPairs;
    scores<<<blocks, kThreads, 0, stream>>>(args);
    check_launch("scores of all components");
    all_lists_kernel<<<some.count, kThreads, 0, stream>>>(args);
    check_launch("lists of all components");
    return pairs;
}

} // namespace gmm::cuda
