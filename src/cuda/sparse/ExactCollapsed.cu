#include "cuda/sparse/ExactCollapsed.cuh"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct CollapsedArgs {
    ExactArgs exact;
    const unsigned char* narrow;
    int k, padded_k;
    const uint32_t* numbers;
    int rows;
    float* scores;
};

/// One warp a row.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
        collapsed_kernel(const __grid_constant__ CollapsedArgs args) {
    const int i = blockIdx.x * kWarps + threadIdx.x / 32;
    if (i >= args.rows) {
        return;
    }
    const uint32_t row = args.numbers ? args.numbers[i] : i;
    float* const scores = args.scores + size_t(i) * args.padded_k;
    for (int first = 0; first < args.k; first += 32) {
        const int k = first + threadIdx.x % 32;
        const bool mine = k < args.k && args.narrow[k] == Model::kCollapsed;
        const uint32_t all = __ballot_sync(0xffffffffu, mine);
        if (!all) {
            continue;
        }
        float score = 0;
        evaluate_pairs<kAligned, false>(args.exact, all, k, row, score);
        if (mine) {
            scores[k] = score;
        }
    }
}

} // namespace

void exact_collapsed(
        const ExactArgs& exact,
        const Model& model,
        const uint32_t* numbers,
        int rows,
        float* scores,
        cudaStream_t stream) {
    const CollapsedArgs args{
            exact,
            model.narrow,
            model.k,
            model.padded_k,
            numbers,
            rows,
            scores};
    const auto kernel =
            model.d % 4 ? collapsed_kernel<false> : collapsed_kernel<true>;
    kernel<<<(rows + kWarps - 1) / kWarps, kThreads, 0, stream>>>(args);
    check_launch("scores of collapsed components");
}

} // namespace gmm::cuda
