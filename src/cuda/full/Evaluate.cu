#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"
#include "cuda/full/Ordered.cuh"
#include "cuda/ptx/Ptx.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kDepth = 32;    ///< coordinates of a step
constexpr int kColumns = 128; ///< of the factor, a panel
// Pitches that keep the eight rows (four of the factor) of a fragment in
// different banks.
constexpr int kRowPitch = kDepth + 4;
constexpr int kColumnPitch = kColumns + 8;

struct Stage {
    float rows[kTilePairs * kRowPitch];
    float factor[kDepth * kColumnPitch];
    float mean[kDepth];
};

/// One component's tile of pairs, and which step of it comes next.
struct Tile {
    const FullModelView& model;
    const FullRows& rows;
    const float* factor;
    const float* mean;
    const int32_t* listed; ///< rows, in shared memory; -1: none

    __device__ int depth(int panel) const {
        return min(model.d, (panel + 1) * kColumns);
    }

    __device__ void load(Stage& s, int panel, int at) const {
        for (int i = threadIdx.x; i < kTilePairs * kDepth / 4; i += 256) {
            const int pair = i / (kDepth / 4), j = i % (kDepth / 4) * 4;
            const int32_t row = listed[pair];
            const bool valid = row >= 0 && at + j < model.d;
            ptx::copy_async(
                    ptx::smem_address(s.rows + pair * kRowPitch + j),
                    valid ? rows.y + int64_t(row) * rows.pitch + at + j
                          : rows.y,
                    valid);
        }
        for (int i = threadIdx.x; i < kDepth * kColumns / 4; i += 256) {
            const int k = i / (kColumns / 4), j = i % (kColumns / 4) * 4;
            const int column = panel * kColumns + j;
            const bool valid = at + k < model.d && column < model.d;
            ptx::copy_async(
                    ptx::smem_address(s.factor + k * kColumnPitch + j),
                    valid ? factor + int64_t(at + k) * model.pitch + column
                          : factor,
                    valid);
        }
        if (threadIdx.x < kDepth / 4) {
            const int j = threadIdx.x * 4;
            const bool valid = at + j < model.d;
            ptx::copy_async(
                    ptx::smem_address(s.mean + j),
                    valid ? mean + at + j : mean,
                    valid);
        }
        ptx::copy_async_commit();
    }
};

/** |(y - mu)^T U|^2 of 128 pairs of one component: the product 128 columns of U
 * at a time, each as deep as U's triangle is, operands split into two tf32
 * numbers (three products; what is left out is 2^-22 of them). Warps are in
 * two columns that take every other eight of U's, so that both skip as much of
 * the triangle, and four rows. */
__global__ void __launch_bounds__(256, 2) evaluate_kernel(
        const FullModelView model,
        const FullRows rows,
        const PairLists lists,
        const RowTotals totals) {
    extern __shared__ __align__(16) unsigned char shared[];
    Stage* const stages = reinterpret_cast<Stage*>(shared);
    __shared__ int32_t listed[kTilePairs];
    __shared__ float squares[2][kTilePairs], lengths[kTilePairs];
    const int c = component_of_tile(lists, blockIdx.x);
    const uint32_t first = lists.begin[int64_t(c) * lists.segments] +
            (blockIdx.x - lists.tile_begin[c]) * kTilePairs;
    const int count =
            int(min(lists.begin[int64_t(c + 1) * lists.segments] - first,
                    uint32_t(kTilePairs)));
    if (threadIdx.x < kTilePairs) {
        listed[threadIdx.x] =
                int(threadIdx.x) < count ? lists.row[first + threadIdx.x] : -1;
    }
    __syncthreads();
    const Tile tile{
            model,
            rows,
            model.factors + c * model.factor_stride,
            model.means + int64_t(c) * model.pitch,
            listed};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int g = lane / 4, q = lane % 4;
    const int side = warp % 2, row0 = warp / 2 * 32;
    const int panels = (model.d + kColumns - 1) / kColumns;

    float square[2][2] = {}, length[2][2] = {};
    int turn = 0;
    tile.load(stages[0], 0, 0);
    for (int panel = 0; panel < panels; panel++) {
        float sum[2][8][4] = {};
        const int depth = tile.depth(panel);
        const bool last = panel == panels - 1;
        for (int at = 0; at < depth; at += kDepth, turn ^= 1) {
            if (at + kDepth < depth) {
                tile.load(stages[turn ^ 1], panel, at + kDepth);
                ptx::copy_async_wait<1>();
            } else if (!last) {
                tile.load(stages[turn ^ 1], panel + 1, 0);
                ptx::copy_async_wait<1>();
            } else {
                ptx::copy_async_wait<0>();
            }
            __syncthreads();
            const Stage& s = stages[turn];
#pragma unroll
            for (int step = 0; step < kDepth; step += 8) {
                if (at + step >= model.d) {
                    break;
                }
                uint32_t hi[2][4], lo[2][4];
                const float mean[2] = {s.mean[step + q], s.mean[step + q + 4]};
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const float* const from =
                            s.rows + (row0 + m * 16 + g) * kRowPitch + step + q;
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const float v =
                                from[e % 2 * 8 * kRowPitch + e / 2 * 4] -
                                mean[e / 2];
                        ptx::split_tf32(v, hi[m][e], lo[m][e]);
                        length[m][e % 2] += last ? v * v : 0.f;
                    }
                }
#pragma unroll
                for (int t = 0; t < 8; t++) {
                    const int column = (2 * t + side) * 8;
                    if (panel * kColumns + column + 7 < at + step ||
                        panel * kColumns + column >= model.d) {
                        continue;
                    }
                    const float* const from =
                            s.factor + (step + q) * kColumnPitch + column + g;
                    uint32_t b[2], rest[2];
                    ptx::split_tf32(from[0], b[0], rest[0]);
                    ptx::split_tf32(from[4 * kColumnPitch], b[1], rest[1]);
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        ptx::mma_m16n8k8_tf32(sum[m][t], lo[m], b[0], b[1]);
                        ptx::mma_m16n8k8_tf32(
                                sum[m][t], hi[m], rest[0], rest[1]);
                        ptx::mma_m16n8k8_tf32(sum[m][t], hi[m], b[0], b[1]);
                    }
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int t = 0; t < 8; t++) {
                const float* const v = sum[m][t];
                square[m][0] += v[0] * v[0] + v[1] * v[1];
                square[m][1] += v[2] * v[2] + v[3] * v[3];
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int step = 2; step; step /= 2) {
                square[m][half] +=
                        __shfl_xor_sync(0xffffffffu, square[m][half], step);
                length[m][half] +=
                        __shfl_xor_sync(0xffffffffu, length[m][half], step);
            }
            if (q == 0) {
                const int pair = row0 + m * 16 + half * 8 + g;
                squares[side][pair] = square[m][half];
                if (side == 0) {
                    lengths[pair] = length[m][half];
                }
            }
        }
    }
    __syncthreads();
    if (int(threadIdx.x) < count) {
        const int pair = threadIdx.x;
        const float q2 = squares[0][pair] + squares[1][pair];
        const ComponentTerms terms = model.terms[c];
        // Of the vector (y - mu)^T U; along it there is no more of it than in
        // any other direction, unless U is long in one.
        const float error = 0x1p-21f * sqrtf(lengths[pair]) * terms.spectrum;
        const float nats =
                error * (2 + sqrtf(q2 / float(model.d))) + 0.5f * error * error;
        const double value = terms.log_norm - 0.5 * double(q2);
        lists.value[first + pair] = value;
        lists.error[first + pair] = nats;
        const float low =
                __double2float_rd(value - error * sqrtf(q2) - error * error);
        if (!isnan(low)) {
            atomicMax(totals.best + listed[pair], ordered(low));
        }
    }
}

} // namespace

void evaluate_pairs(
        const FullModelView& model,
        const FullRows& rows,
        const PairLists& lists,
        uint32_t tiles,
        const RowTotals& totals,
        cudaStream_t stream) {
    if (tiles == 0) {
        return;
    }
    constexpr int kBytes = 2 * sizeof(Stage);
    allow_shared(evaluate_kernel, kBytes);
    evaluate_kernel<<<tiles, 256, kBytes, stream>>>(model, rows, lists, totals);
    check_launch("evaluate_kernel");
}

} // namespace gmm::cuda::full
