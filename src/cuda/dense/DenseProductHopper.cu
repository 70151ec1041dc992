#include "cuda/dense/DenseProduct.h"
#include "cuda/engine/Check.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"

namespace gmm::cuda {

namespace {

constexpr int kTile = kDenseProductTile;
constexpr int kGroups = kTile / 8;
constexpr int kDepth = 64;                 ///< rows of a stage
constexpr int kBoxBytes = kDepth * 64 * 2; ///< 64 rows, 64 columns
constexpr int kStageBytes = 4 * kBoxBytes; ///< two of R, two of Y
constexpr int kStages = 3;
constexpr int kConsumers = 2; ///< warpgroups: 64 components each
constexpr int kThreads = 128 * kConsumers + 32;
constexpr int kShared = kStages * kStageBytes + 2 * kStages * 8;

struct Maps {
    CUtensorMap r[2], y;
};

/** A tile of 128 components and 128 dimensions of a split of the rows; both
 * operands as they lie, the rows being what is summed over. */
__global__ void __launch_bounds__(kThreads, 2) product_kernel(
        const __grid_constant__ Maps maps,
        const __grid_constant__ DenseProductArgs args) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    const uint32_t barriers = base + kStages * kStageBytes;
    const auto full = [&](int stage) { return barriers + stage * 8; };
    const auto empty = [&](int stage) {
        return barriers + (kStages + stage) * 8;
    };
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const int component = blockIdx.x * kTile;
    const int part = blockIdx.y % args.parts;
    const int column = blockIdx.y / args.parts * kTile;
    const int per_split = rows_of_split(args, kDepth);
    const int begin = blockIdx.z * per_split;
    const int depths =
            (min(args.rows, begin + per_split) - begin + kDepth - 1) / kDepth;
    if (depths <= 0) {
        return;
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            ptx::barrier_init(full(s), 1);
            ptx::barrier_init(empty(s), kConsumers * 128);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    const int steps = depths * args.terms;
    int stage = 0;
    uint32_t phase = 0;
    const auto next = [&]() {
        if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
        }
    };

    if (warp == 4 * kConsumers) {
        const bool elected = ptx::elect_one();
        for (int step = 0; step < steps; step++, next()) {
            const int term = step / depths;
            const int row = begin + step % depths * kDepth;
            ptx::barrier_wait(empty(stage), phase ^ 1);
            if (elected) {
                const uint32_t to = base + stage * kStageBytes;
                ptx::barrier_expect(full(stage), kStageBytes);
                for (int half = 0; half < 2; half++) {
                    ptx::tma_load(
                            to + half * kBoxBytes,
                            &maps.r[args.term_r[term]],
                            full(stage),
                            component + half * 64,
                            row,
                            0);
                    ptx::tma_load(
                            to + (2 + half) * kBoxBytes,
                            &maps.y,
                            full(stage),
                            column + half * 64,
                            row,
                            args.term_y[part][term]);
                }
            }
        }
        return;
    }

    const int w = warp / 4;
    float c[kGroups][4] = {};
    int before = 0;
    for (int step = 0; step < steps; step++) {
        const uint32_t at = base + stage * kStageBytes;
        const uint64_t r =
                ptx::wgmma_descriptor_across(at + w * kBoxBytes, kBoxBytes);
        const uint64_t y =
                ptx::wgmma_descriptor_across(at + 2 * kBoxBytes, kBoxBytes);
        ptx::barrier_wait(full(stage), phase);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 16; k++) {
            // 16 rows of 128 bytes further
            ptx::wgmma_across(c, r + k * 128, y + k * 128);
        }
        ptx::wgmma_commit();
        if (step) {
            ptx::wgmma_wait<1>();
            ptx::barrier_arrive(empty(before));
        }
        before = stage;
        next();
    }
    ptx::wgmma_wait<0>();
    // The only writer of its tile: no atomics, a fixed order.
    float* const out = args.partial +
            (size_t(blockIdx.z) * args.parts + part) * args.padded_k * args.d;
    const int lane = threadIdx.x % 32;
    const int k = component + w * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int of = k + i / 2 * 8;
            const int j = column + g * 8 + lane % 4 * 2 + i % 2;
            if (of < args.components && j < args.d) {
                out[size_t(args.component_begin + of) * args.d + j] += c[g][i];
            }
        }
    }
}

} // namespace

void dense_product_hopper(const DenseProductArgs& args, cudaStream_t stream) {
    allow_shared(product_kernel, kShared);
    const auto map = [](const Operand& operand) {
        return tensor_map(operand, 64, kDepth, CU_TENSOR_MAP_SWIZZLE_128B);
    };
    Maps maps;
    for (int i = 0; i < 2; i++) {
        // Nothing of rows beyond the last: zeros.
        maps.r[i] =
                map({args.r[args.r[i] ? i : 0], args.rows, args.components, 1});
    }
    maps.y = map(args.y);
    const dim3 grid(
            args.components / kTile,
            (args.d + kTile - 1) / kTile * args.parts,
            args.splits);
    product_kernel<<<grid, kThreads, kShared, stream>>>(maps, args);
    check_launch("dense product");
}

} // namespace gmm::cuda
