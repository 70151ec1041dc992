#include <cmath>

#include "cuda/sparse/Refine.cuh"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 128; ///< few: the last blocks are waited for
constexpr int kWarps = kThreads / 32;

template <bool kAligned, bool kEachDimension>
__global__ void __launch_bounds__(kThreads, kAligned ? 8 : 6)
        refine_kernel(const __grid_constant__ RefineArgs args) {
    extern __shared__ RefineShared all_shared[];
    refine_units<kAligned, kEachDimension>(
            args,
            blockIdx.x * kWarps + threadIdx.x / 32,
            all_shared[threadIdx.x / 32]);
}

} // namespace

void refine(
        const SparseScratch& scratch,
        int rows,
        const PreparedRows& prepared,
        int64_t row_begin,
        float fp16_scale,
        const float* row_weight,
        const Model& model,
        bool all,
        float tolerance,
        float most_fall,
        cudaStream_t stream) {
    RefineArgs args;
    args.exact = exact_args(prepared, row_begin, fp16_scale, model);
    args.compact = scratch.compaction(rows);
    args.values = scratch.values;
    args.row_ranges = scratch.row_ranges;
    args.row_lse = scratch.row_lse;
    args.row_weight = row_weight;
    args.doubt = model.doubt;
    args.row_error = prepared.row_error + row_begin;
    args.row_constant = prepared.row_constant + row_begin;
    args.all = all;
    args.tolerance = tolerance;
    args.most_fall = most_fall;
    args.rejected = scratch.rejected;
    if (std::isfinite(most_fall)) {
        check(cudaMemsetAsync(args.rejected, 0, sizeof(uint32_t), stream),
              "clearing");
    }
    const auto kernel = choose_evaluation(model, [](auto aligned, auto each) {
        return refine_kernel<aligned, each>;
    });
    constexpr int kRows = kWarps * kWarpRows;
    constexpr int kShared = kWarps * sizeof(RefineShared);
    static_assert(kShared <= 48 << 10);
    kernel<<<(rows + kRows - 1) / kRows, kThreads, kShared, stream>>>(args);
    check_launch("refinement");
}

int rows_rejected(const SparseScratch& scratch, cudaStream_t stream) {
    uint32_t rows;
    copy(&rows, scratch.rejected, 1, stream);
    check(cudaStreamSynchronize(stream), "refinement");
    return int(rows);
}

} // namespace gmm::cuda
