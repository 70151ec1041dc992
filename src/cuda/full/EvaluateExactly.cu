#include <type_traits>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

/// Of pairs that are computed together; as many as shared memory holds.
constexpr int kMostPairs = 8;
constexpr int kWideDimension = 1536; ///< beyond which these are half as many

/// One block a tile; most find nothing to do.
template <int kPairs>
__global__ void __launch_bounds__(kTilePairs) exact_kernel(
        const FullModelView model,
        const FullRows rows,
        const PairLists lists,
        const RowTotals totals,
        float tolerance) {
    extern __shared__ double v[]; // d of each pair
    __shared__ int wrong[kTilePairs];
    __shared__ int warp_counts[kTilePairs / 32];
    __shared__ double parts[kTilePairs / 32][kPairs];
    const int c = component_of_tile(lists, blockIdx.x);
    const uint32_t first = lists.begin[int64_t(c) * lists.segments] +
            (blockIdx.x - lists.tile_begin[c]) * kTilePairs;
    const uint32_t end = lists.begin[int64_t(c + 1) * lists.segments];
    const uint32_t p = first + threadIdx.x;
    bool mine = false;
    if (p < end) {
        const float error = lists.error[p];
        mine = !(error <= tolerance) &&
                !(lists.value[p] + error < totals.least[lists.row[p]]);
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t found = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) {
        warp_counts[warp] = __popc(found);
    }
    __syncthreads();
    int n = 0, before = 0;
    for (int w = 0; w < kTilePairs / 32; w++) {
        before += w < warp ? warp_counts[w] : 0;
        n += warp_counts[w];
    }
    if (mine) {
        wrong[before + __popc(found & ((1u << lane) - 1))] = threadIdx.x;
    }
    __syncthreads();
    const int d = model.d;
    const float* const factor = model.factors + c * model.factor_stride;
    const float* const mean = model.means + int64_t(c) * model.pitch;
    for (int begin = 0; begin < n; begin += kPairs) {
        const int count = min(kPairs, n - begin);
        for (int e = 0; e < kPairs; e++) {
            const int64_t row =
                    lists.row[first + wrong[begin + min(e, count - 1)]];
            for (int j = threadIdx.x; j < d; j += kTilePairs) {
                v[e * d + j] = double(rows.y[row * rows.pitch + j]) - mean[j];
            }
        }
        __syncthreads();
        double square[kPairs] = {};
        for (int j = threadIdx.x; j < d; j += kTilePairs) {
            double sum[kPairs] = {};
            for (int i = 0; i <= j; i++) {
                const double u = factor[int64_t(i) * model.pitch + j];
#pragma unroll
                for (int e = 0; e < kPairs; e++) {
                    sum[e] += u * v[e * d + i];
                }
            }
#pragma unroll
            for (int e = 0; e < kPairs; e++) {
                square[e] += sum[e] * sum[e];
            }
        }
#pragma unroll
        for (int e = 0; e < kPairs; e++) {
#pragma unroll
            for (int step = 16; step; step /= 2) {
                square[e] += __shfl_xor_sync(0xffffffffu, square[e], step);
            }
            if (lane == 0) {
                parts[warp][e] = square[e];
            }
        }
        __syncthreads();
        if (int(threadIdx.x) < count) {
            double sum = 0;
            for (int w = 0; w < kTilePairs / 32; w++) {
                sum += parts[w][threadIdx.x];
            }
            lists.value[first + wrong[begin + threadIdx.x]] =
                    model.terms[c].log_norm - 0.5 * sum;
        }
        __syncthreads();
    }
}

} // namespace

void evaluate_exactly(
        const FullModelView& model,
        const FullRows& rows,
        const PairLists& lists,
        uint32_t tiles,
        const RowTotals& totals,
        float tolerance,
        cudaStream_t stream) {
    if (tiles == 0) {
        return;
    }
    const auto run = [&]<int kPairs>(std::integral_constant<int, kPairs>) {
        const int bytes = kPairs * model.d * int(sizeof(double));
        allow_shared(exact_kernel<kPairs>, bytes);
        exact_kernel<kPairs><<<tiles, kTilePairs, bytes, stream>>>(
                model, rows, lists, totals, tolerance);
        check_launch("exact_kernel");
    };
    // 99 KB on the least of devices
    if (model.d <= kWideDimension) {
        run(std::integral_constant<int, kMostPairs>());
    } else {
        run(std::integral_constant<int, kMostPairs / 2>());
    }
}

} // namespace gmm::cuda::full
