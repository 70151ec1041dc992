#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"
#include "cuda/ptx/Ptx.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kTile = 64; ///< vectors and columns of a block
constexpr int kDepth = 16;
constexpr int kPitch = kTile + 4; ///< of shared memory: no two lanes a bank

/// Four warps, of 32 x 32 values each, in products of 16 x 4 and 4 x 8.
__global__ void __launch_bounds__(128) whiten_kernel(
        const float* y,
        int64_t count,
        const float* factor,
        int d,
        int pitch,
        double scale,
        float* z,
        unsigned int* largest) {
    __shared__ double rows[kDepth][kPitch], columns[kDepth][kPitch];
    __shared__ unsigned int block_largest;
    const int64_t first_row = int64_t(blockIdx.x) * kTile;
    const int first_column = blockIdx.y * kTile;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int my_rows = warp / 2 * 32 + lane / 4;
    const int my_columns = warp % 2 * 32 + lane / 4;
    double sum[2][4][4] = {};
    if (threadIdx.x == 0) {
        block_largest = 0;
    }
    const int depth = min(d, first_column + kTile); // U_ij = 0 for i > j
    for (int begin = 0; begin < depth; begin += kDepth) {
        for (int i = threadIdx.x; i < kTile * kDepth; i += 128) {
            const int l = begin + i % kDepth;
            const int64_t row = first_row + i / kDepth;
            rows[i % kDepth][i / kDepth] =
                    l < d && row < count ? y[row * pitch + l] : 0;
        }
        for (int i = threadIdx.x; i < kTile * kDepth; i += 128) {
            const int l = begin + i / kTile, column = first_column + i % kTile;
            columns[i / kTile][i % kTile] = l <= column && column < d
                    ? factor[int64_t(l) * pitch + column]
                    : 0;
        }
        __syncthreads();
#pragma unroll
        for (int l = lane % 4; l < kDepth; l += 4) {
            double a[2][2], b[4];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                a[r][0] = rows[l][my_rows + r * 16];
                a[r][1] = rows[l][my_rows + r * 16 + 8];
            }
#pragma unroll
            for (int c = 0; c < 4; c++) {
                b[c] = columns[l][my_columns + c * 8];
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    ptx::mma_f64_m16n8k4(sum[r][c], a[r][0], a[r][1], b[c]);
                }
            }
        }
        __syncthreads();
    }
    float most = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int64_t row = first_row + my_rows + r * 16 + i / 2 * 8;
                const int column = first_column + warp % 2 * 32 + c * 8 +
                        lane % 4 * 2 + i % 2;
                if (row < count && column < pitch) {
                    const float value = float(fmax(
                            fmin(scale * sum[r][c][i], double(kMostWhitened)),
                            -double(kMostWhitened)));
                    z[row * pitch + column] = value;
                    most = fmaxf(most, fabsf(value));
                }
            }
        }
    }
    atomicMax(&block_largest, __float_as_uint(most));
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicMax(largest, block_largest);
    }
}

/// A warp a row.
__global__ void __launch_bounds__(256)
        norms_kernel(const FullRows rows, int64_t count, float* out) {
    const int64_t i = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (i >= count) {
        return;
    }
    double sum = 0;
    for (int j = threadIdx.x % 32; j < rows.d; j += 32) {
        const double y = rows.y[i * rows.pitch + j];
        sum += y * y;
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (threadIdx.x % 32 == 0) {
        out[i] = float(sum);
    }
}

} // namespace

void whiten_rows(
        const float* y,
        int64_t count,
        const float* factor,
        int d,
        int pitch,
        double scale,
        float* z,
        unsigned int* largest,
        cudaStream_t stream) {
    const dim3 grid(
            unsigned((count + kTile - 1) / kTile), (pitch + kTile - 1) / kTile);
    whiten_kernel<<<grid, 128, 0, stream>>>(
            y, count, factor, d, pitch, scale, z, largest);
    check_launch("whiten_kernel");
}

void square_norms(
        const FullRows& rows, int64_t count, float* out, cudaStream_t stream) {
    norms_kernel<<<unsigned((count + 7) / 8), 256, 0, stream>>>(
            rows, count, out);
    check_launch("norms_kernel");
}

} // namespace gmm::cuda::full
