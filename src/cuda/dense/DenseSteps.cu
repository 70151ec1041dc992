#include <algorithm>

#include "cuda/dense/Dense.h"
#include "cuda/ptx/Ptx.cuh"
#include "cuda/sparse/ExactCollapsed.cuh"

/** The dense sums where the fused kernel cannot have them: more dimensions or
 * variances than it holds, ranges left, or another device. */
namespace gmm::cuda {

namespace {

// ---- sum of r and of r q, straight from the responsibilities ----

__global__ void __launch_bounds__(256) totals_kernel(
        const __half* hi,
        const __half* lo,
        int rows,
        int components,
        int component_begin,
        const float* row_constant,
        double* totals,
        int padded_k) {
    const int pair = threadIdx.x % 32;
    const int column = blockIdx.x * 64 + pair * 2;
    const int per_split = (rows + kDenseTotalSplits - 1) / kDenseTotalSplits;
    const int begin = blockIdx.y * per_split;
    const int end = min(rows, begin + per_split);
    double n[2] = {}, q[2] = {};
    for (int i = begin + threadIdx.x / 32; i < end; i += 8) {
        const size_t at = size_t(i) * components + column;
        float2 r = __half22float2(*reinterpret_cast<const __half2*>(hi + at));
        if (lo) {
            const float2 rest =
                    __half22float2(*reinterpret_cast<const __half2*>(lo + at));
            r.x += rest.x;
            r.y += rest.y;
        }
        const float c = row_constant[i];
        n[0] += r.x;
        n[1] += r.y;
        q[0] += double(r.x) * c;
        q[1] += double(r.y) * c;
    }
    __shared__ double parts[8][32][4];
    double* const mine = parts[threadIdx.x / 32][pair];
    mine[0] = n[0];
    mine[1] = q[0];
    mine[2] = n[1];
    mine[3] = q[1];
    __syncthreads();
    if (threadIdx.x < 128) {
        double sum = 0;
        for (int w = 0; w < 8; w++) {
            sum += parts[w][threadIdx.x / 4][threadIdx.x % 4];
        }
        totals[(size_t(blockIdx.y) * padded_k + component_begin +
                blockIdx.x * 64) *
                       2 +
               threadIdx.x] += sum / kResponsibilityScale;
    }
}

// ---- responsibilities ----

/// Of a row's scores, all of them: a warp a row.
__global__ void __launch_bounds__(256) normalise_kernel(
        const float* scores,
        int rows,
        int components,
        const uint32_t* numbers,
        const float* weight,
        float* row_lse,
        __half* hi,
        __half* lo) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const float4* const from =
            reinterpret_cast<const float4*>(scores + size_t(row) * components);
    float best = -3e38f;
    for (int i = lane; i < components / 4; i += 32) {
        const float4 s = from[i];
        best = fmaxf(best, fmaxf(fmaxf(s.x, s.y), fmaxf(s.z, s.w)));
    }
    for (int step = 16; step; step /= 2) {
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
    }
    float sum = 0;
    for (int i = lane; i < components / 4; i += 32) {
        const float4 s = from[i];
        sum += (ptx::exp2_approx(s.x - best) + ptx::exp2_approx(s.y - best)) +
                (ptx::exp2_approx(s.z - best) + ptx::exp2_approx(s.w - best));
    }
    for (int step = 16; step; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    const float lse = best + log2f(sum);
    if (lane == 0) {
        row_lse[numbers ? numbers[row] : row] = lse;
    }
    const float scale = kResponsibilityScale * (weight ? weight[row] : 1.f);
    for (int i = lane; i < components / 4; i += 32) {
        const float4 s = from[i];
        const float r[4] = {
                scale * ptx::exp2_approx(s.x - lse),
                scale * ptx::exp2_approx(s.y - lse),
                scale * ptx::exp2_approx(s.z - lse),
                scale * ptx::exp2_approx(s.w - lse)};
        const __half2 a = __floats2half2_rn(r[0], r[1]);
        const __half2 b = __floats2half2_rn(r[2], r[3]);
        const size_t at = size_t(row) * components / 4 + i;
        reinterpret_cast<uint2*>(hi)[at] = {ptx::bits(a), ptx::bits(b)};
        if (lo) {
            const float2 x = __half22float2(a), y = __half22float2(b);
            reinterpret_cast<uint2*>(lo)[at] = {
                    ptx::bits(__floats2half2_rn(r[0] - x.x, r[1] - x.y)),
                    ptx::bits(__floats2half2_rn(r[2] - y.x, r[3] - y.y))};
        }
    }
}

// ---- R^T Y ----

constexpr int kTile = kDenseProductTile; ///< components, dimensions
constexpr int kDepth = 64;               ///< rows of a stage
constexpr int kThreads = 256; ///< warps: 2 (components) x 4 (dimensions)
constexpr int kTileBytes = kDepth * kTile * 2;

/// 64 rows of 128 halves: 16 pieces of 16 bytes, swizzled.
__device__ __forceinline__ uint32_t at_piece(int row, int piece) {
    return row * 256 + ((piece ^ (row & 7)) << 4);
}

__device__ __forceinline__ void load_tile(
        uint32_t to,
        const __half* from,
        int pitch,
        int row,
        int row_end,
        int column,
        int column_end) {
    const int piece = threadIdx.x % 16;
    const int at = column + piece * 8;
#pragma unroll
    for (int i = 0; i < kDepth / (kThreads / 16); i++) {
        const int r = i * (kThreads / 16) + threadIdx.x / 16;
        const bool valid = row + r < row_end && at < column_end;
        ptx::copy_async(
                to + at_piece(r, piece),
                valid ? from + size_t(row + r) * pitch + at : from,
                valid);
    }
}

__global__ void __launch_bounds__(kThreads, 2)
        product_kernel(const __grid_constant__ DenseProductArgs args) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t stages = ptx::smem_address(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int component = blockIdx.x * kTile;
    const int part = blockIdx.y % args.parts;
    const int column = blockIdx.y / args.parts * kTile;
    const int per_split = rows_of_split(args, kDepth);
    const int begin = blockIdx.z * per_split;
    const int end = min(args.rows, begin + per_split);
    const int depths = (end - begin + kDepth - 1) / kDepth;
    if (depths <= 0) {
        return;
    }

    auto load = [&](int step) {
        const int term = step / depths;
        const int row = begin + step % depths * kDepth;
        const uint32_t to = stages + step % 2 * 2 * kTileBytes;
        load_tile(
                to,
                args.r[term == 2],
                args.components,
                row,
                end,
                component,
                args.components);
        load_tile(
                to + kTileBytes,
                args.y.data +
                        ((term == 1 ? args.parts : 0) + part) * args.y.rows *
                                args.y.pitch,
                args.y.pitch,
                row,
                end,
                column,
                args.y.pitch);
        ptx::copy_async_commit();
    };

    float c[4][4][4] = {};
    const int m0 = warp % 2 * 64, n0 = warp / 2 * 32;
    const int total = depths * (args.r[1] ? 3 : 1);
    load(0);
    for (int step = 0; step < total; step++) {
        if (step + 1 < total) {
            load(step + 1);
            ptx::copy_async_wait<1>();
        } else {
            ptx::copy_async_wait<0>();
        }
        __syncthreads();
        const uint32_t r = stages + step % 2 * 2 * kTileBytes;
        const uint32_t y = r + kTileBytes;
#pragma unroll
        for (int k = 0; k < kDepth; k += 16) {
            uint32_t a[4][4], b[2][4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                ptx::load_matrix_transposed(
                        a[m],
                        r +
                                at_piece(
                                        k + lane % 8 + lane / 16 * 8,
                                        (m0 + m * 16) / 8 + lane / 8 % 2));
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                ptx::load_matrix_transposed(
                        b[n],
                        y +
                                at_piece(
                                        k + lane % 8 + lane / 8 % 2 * 8,
                                        (n0 + n * 16) / 8 + lane / 16));
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    ptx::mma_m16n8k16(
                            c[m][n],
                            a[m],
                            b[n / 2][n % 2 * 2],
                            b[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
        __syncthreads();
    }
    // The only writer of its tile: no atomics, a fixed order.
    float* const out = args.partial +
            (size_t(blockIdx.z) * args.parts + part) * args.padded_k * args.d;
#pragma unroll
    for (int m = 0; m < 4; m++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int k = component + m0 + m * 16 + lane / 4 + i / 2 * 8;
                const int j = column + n0 + n * 8 + lane % 4 * 2 + i % 2;
                if (k < args.components && j < args.d) {
                    out[size_t(args.component_begin + k) * args.d + j] +=
                            c[m][n][i];
                }
            }
        }
    }
}

void product_portable(const DenseProductArgs& args, cudaStream_t stream) {
    constexpr int kShared = 4 * kTileBytes;
    allow_shared(product_kernel, kShared);
    const dim3 grid(
            args.components / kTile,
            (args.d + kTile - 1) / kTile * args.parts,
            args.splits);
    product_kernel<<<grid, kThreads, kShared, stream>>>(args);
    check_launch("dense product");
}

} // namespace

void DenseStep::sum_in_steps(
        const ScoreKernels& score,
        const Model& model,
        const DenseRows& block,
        float fp16_scale,
        cudaStream_t stream) {
    const int rows = block.count;
    const bool lo = block.lo;
    ScoreArgs args = model.score_args(lo);
    args.folded = {}; // rows may be outside its range
    args.rows_operand = rows_.operand;
    args.rows = rows;
    if (model.geometry == Geometry::product) {
        args.row_constant = lo ? rows_.row_constant : rows_.row_constant_hi;
    }
    double* const totals =
            totals_ + (block.apart ? size_t(total_splits_) * padded_k_ * 2 : 0);
    int components = padded_k_;
    if (scores_) { // of all components at once
        args.splits = splits_of(rows, padded_k_);
        score(args, LogitArgs{scores_}, stream);
        if (model.collapsed) {
            exact_collapsed(
                    exact_args(rows_, 0, fp16_scale, model),
                    model,
                    nullptr,
                    rows,
                    scores_,
                    stream);
        }
        normalise_kernel<<<(rows + 7) / 8, 256, 0, stream>>>(
                scores_,
                rows,
                padded_k_,
                block.numbers,
                block.weight,
                block.row_lse,
                hi_,
                lo ? lo_ : nullptr);
        check_launch("responsibilities");
    } else {
        args.splits = std::min(splits_of(rows, padded_k_), capacity_ / rows);
        find_lse(score, args, block, 1, stream);
        components = int(std::min<int64_t>(
                padded_k_,
                int64_t(kDenseRows) * kDenseComponents / rows / kTile * kTile));
    }
    for (int k = 0; k < padded_k_; k += components) {
        args.component_begin = k;
        args.components = std::min(components, padded_k_ - k);
        if (!scores_) {
            args.splits = splits_of(rows, args.components);
            score(args,
                  ResponsibilityArgs{
                          lse_, block.weight, hi_, lo ? lo_ : nullptr},
                  stream);
        }
        totals_kernel<<<
                dim3(args.components / 64, kDenseTotalSplits),
                256,
                0,
                stream>>>(
                hi_,
                lo ? lo_ : nullptr,
                rows,
                args.components,
                k,
                rows_.summed_constant(lo),
                totals,
                padded_k_);
        check_launch("dense totals");

        DenseProductArgs product;
        product.r[0] = hi_;
        product.r[1] = lo ? lo_ : nullptr;
        product.components = args.components;
        product.component_begin = k;
        product.y = rows_.operand;
        product.rows = rows;
        product.d = d_;
        product.padded_k = padded_k_;
        product.splits = splits_;
        product.parts = parts_;
        product.partial = partial_;
        if (score.hopper) {
            dense_product_hopper(product, stream);
        } else {
            product_portable(product, stream);
        }
    }
}

} // namespace gmm::cuda
