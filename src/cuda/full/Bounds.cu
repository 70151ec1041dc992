#include <cuda_bf16.h>

#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"
#include "cuda/ptx/Ptx.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kWarpRows = 64;
constexpr int kRowTiles = kWarpRows / 16;
/// 2 times 1.001: of half squares, and of what errors take (FullModel.cu).
constexpr float kTwice = 2.002f;
/// Nats that the rounding of log_norm, least and the sum of squares may cost.
constexpr float kNats = 1e-2f;

__device__ __forceinline__ uint32_t pack(float a, float b) {
    const __nv_bfloat162 x = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&x);
}

/// Two values as a pair of bf16 numbers and what these leave.
__device__ __forceinline__ void split(float2 v, uint32_t& hi, uint32_t& lo) {
    hi = pack(v.x, v.y);
    const __nv_bfloat162 h = *reinterpret_cast<const __nv_bfloat162*>(&hi);
    lo = pack(v.x - __low2float(h), v.y - __high2float(h));
}

/** One warp takes 64 rows through all components, four at a time. The product
 * of rows (16 x 16 a tile) and factors gives each thread two coordinates of
 * one component and two rows: tile t of eight has coordinates 2t and 2t + 1 of
 * component q in columns 2q and 2q + 1, so that a thread's squares are all of
 * one component and need no exchange. Operands are split into two bf16 numbers
 * each: as exact as needed, and of fp32's range. */
template <bool kGuess>
__global__ void __launch_bounds__(256, 2) bound_kernel(
        const FullModelView model,
        const FullRows rows,
        int64_t count,
        const float* __restrict__ least,
        const PairBits pairs,
        int groups_per_block) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t first =
            int64_t(blockIdx.x) * kBoundRows + threadIdx.x / 32 * kWarpRows;
    if (first >= count) {
        return;
    }
    const int64_t word = first / 64;
    uint32_t hi[kRowTiles][4], lo[kRowTiles][4];
    float slack[kRowTiles][2], limit[kRowTiles][2];
    float best[kRowTiles][2];
    int chosen[kRowTiles][2];
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t row = first + t * 16 + half * 8 + g;
            const float* const x = rows.lead + row * kLead + 2 * q;
            split(*reinterpret_cast<const float2*>(x),
                  hi[t][half],
                  lo[t][half]);
            split(*reinterpret_cast<const float2*>(x + 8),
                  hi[t][2 + half],
                  lo[t][2 + half]);
            slack[t][half] = rows.slack[row];
            limit[t][half] = kGuess ? 0.f : least[row] - kNats;
            best[t][half] = -INFINITY;
            chosen[t][half] = -1;
        }
    }
    const int groups = (model.k + 3) / 4;
    const int begin = blockIdx.y * groups_per_block;
    const int end = min(groups, begin + groups_per_block);
    for (int group = begin; group < end; group++) {
        const uint4* const factors =
                model.bound_factors + size_t(group) * 256 + lane;
        const float2* const shifts =
                model.bound_shifts + size_t(group) * 32 + q;
        const BoundTerms terms = model.bound_terms[4 * group + q];
        float sum[kRowTiles][2] = {};
#pragma unroll
        for (int tile = 0; tile < 8; tile++) {
            const uint4 f = factors[tile * 32];
            const float2 shift = shifts[tile * 4];
#pragma unroll
            for (int t = 0; t < kRowTiles; t++) {
                float c[4] = {shift.x, shift.y, shift.x, shift.y};
                ptx::mma_m16n8k16_bf16(c, lo[t], f.x, f.y);
                ptx::mma_m16n8k16_bf16(c, hi[t], f.z, f.w);
                ptx::mma_m16n8k16_bf16(c, hi[t], f.x, f.y);
                sum[t][0] += c[0] * c[0] + c[1] * c[1];
                sum[t][1] += c[2] * c[2] + c[3] * c[3];
            }
        }
        const int component = 4 * group + q;
        uint32_t bits[2] = {};
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float square = sum[t][half];
                if (kGuess) {
                    const float value = terms.log_norm - 0.5f * square;
                    if (component < model.k && !(value <= best[t][half])) {
                        best[t][half] = value;
                        chosen[t][half] = component;
                    }
                } else {
                    const float error =
                            terms.error * slack[t][half] + terms.error_shift;
                    const float most =
                            kTwice * (terms.log_norm - limit[t][half]) +
                            error * error;
                    const uint32_t found =
                            __ballot_sync(0xffffffffu, !(square > most));
                    if (found) {
                        const int byte = 2 * t + half;
                        bits[byte / 4] |= gather_bits(found >> q)
                                << byte % 4 * 8;
                    }
                }
            }
        }
        if (!kGuess && lane < 4 && component < model.k) {
            pairs.bits[component * pairs.words + word] =
                    uint64_t(bits[1]) << 32 | bits[0];
        }
    }
    if (kGuess) {
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = t * 16 + half * 8 + g;
                if (chosen[t][half] >= 0 && first + at < count) {
                    atomicOr(
                            reinterpret_cast<unsigned long long*>(
                                    pairs.bits + chosen[t][half] * pairs.words +
                                    word),
                            1ull << at);
                }
            }
        }
    }
}

/// Components are shared among blocks until these fill the device, about.
struct BoundGrid {
    dim3 grid;
    int groups_per_block;

    BoundGrid(int k, int64_t count) {
        constexpr int kEnough = 264;
        const int groups = (k + 3) / 4;
        const int64_t blocks = (count + kBoundRows - 1) / kBoundRows;
        const int64_t shares = std::clamp<int64_t>(
                (kEnough + blocks - 1) / blocks, 1, (groups + 15) / 16);
        groups_per_block = int((groups + shares - 1) / shares);
        grid = dim3(
                unsigned(blocks),
                unsigned((groups + groups_per_block - 1) / groups_per_block));
    }
};

} // namespace

void guess_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const PairBits& bits,
        cudaStream_t stream) {
    check(cudaMemsetAsync(
                  bits.bits,
                  0,
                  size_t(model.k) * bits.words * sizeof(uint64_t),
                  stream),
          "clearing");
    const BoundGrid launch(model.k, count);
    bound_kernel<true><<<launch.grid, 256, 0, stream>>>(
            model, rows, count, nullptr, bits, launch.groups_per_block);
    check_launch("bound_kernel");
}

void bound_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* least,
        const PairBits& bits,
        cudaStream_t stream) {
    const BoundGrid launch(model.k, count);
    bound_kernel<false><<<launch.grid, 256, 0, stream>>>(
            model, rows, count, least, bits, launch.groups_per_block);
    check_launch("bound_kernel");
}

} // namespace gmm::cuda::full
