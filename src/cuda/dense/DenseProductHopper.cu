#include "cuda/dense/DenseProduct.h"
#include "cuda/engine/Check.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"

namespace gmm::cuda {

namespace {

constexpr int kTile = kDenseProductTile;
constexpr int kGroups = kTile / 8;
constexpr int kStages = 3;
constexpr int kConsumers = 2; ///< warpgroups: 64 components each
constexpr int kThreads = 128 * kConsumers + 32;

/** Stages of shared memory that one warp fills by bulk copies, in turn, and
 * other threads read. Each has two mbarriers: full, which the bytes on their
 * way complete, and empty, at which each reader arrives when it needs the stage
 * no more. Writer and readers walk over the same steps, each with a ring of its
 * own that says where it is. */
struct Ring {
    static constexpr int kBytes = 2 * kStages * 8;

    uint32_t barriers; ///< kBytes of shared memory
    int stage = 0;
    uint32_t phase = 0;

    __device__ explicit Ring(uint32_t at) : barriers(at) {}

    __device__ __forceinline__ uint32_t full() const {
        return barriers + stage * 8;
    }
    __device__ __forceinline__ uint32_t empty(int of) const {
        return barriers + (kStages + of) * 8;
    }

    /// By all threads of the block, before all else.
    __device__ __forceinline__ void set_up(int readers) const {
        if (threadIdx.x == 0) {
            for (int s = 0; s < kStages; s++) {
                ptx::barrier_init(barriers + s * 8, 1);
                ptx::barrier_init(empty(s), readers);
            }
            ptx::barrier_init_fence();
        }
        __syncthreads();
    }

    __device__ __forceinline__ void wait_empty() const {
        ptx::barrier_wait(empty(stage), phase ^ 1);
    }
    __device__ __forceinline__ void wait_full() const {
        ptx::barrier_wait(full(), phase);
    }
    __device__ __forceinline__ void release(int of) const {
        ptx::barrier_arrive(empty(of));
    }
    __device__ __forceinline__ void next() {
        if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

/** What a stage holds: as many rows of R's 128 columns and of Y's, in boxes of
 * 64 columns; with second halves, which three products share, half as many rows
 * of four operands. */
template <bool kLo>
struct Stage {
    static constexpr int kDepth = kLo ? 32 : 64; ///< rows
    static constexpr int kBoxBytes = kDepth * 64 * 2;
    static constexpr int kPlanes = kLo ? 2 : 1;
    static constexpr int kBytes = kPlanes * 4 * kBoxBytes;
    __host__ __device__ static constexpr int r(int plane) {
        return plane * 4 * kBoxBytes;
    }
    __host__ __device__ static constexpr int y(int plane) {
        return r(plane) + 2 * kBoxBytes;
    }
};

struct Maps {
    CUtensorMap r[2], y;
};

/** A tile of 128 components and 128 dimensions of a split of the rows; both
 * operands as they lie, the rows being what is summed over. */
template <bool kLo>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(
        const __grid_constant__ Maps maps,
        const __grid_constant__ DenseProductArgs args) {
    using S = Stage<kLo>;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    Ring ring(base + kStages * S::kBytes);
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const int component = blockIdx.x * kTile;
    const int part = blockIdx.y % args.parts;
    const int column = blockIdx.y / args.parts * kTile;
    const int per_split = rows_of_split(args, S::kDepth);
    const int begin = blockIdx.z * per_split;
    const int end = min(args.rows, begin + per_split);
    if (begin >= end) {
        return;
    }
    ring.set_up(kConsumers * 128);

    if (warp == 4 * kConsumers) {
        const bool elected = ptx::elect_one();
        for (int row = begin; row < end; row += S::kDepth, ring.next()) {
            ring.wait_empty();
            if (elected) {
                const uint32_t to = base + ring.stage * S::kBytes;
                ptx::barrier_expect(ring.full(), S::kBytes);
#pragma unroll
                for (int plane = 0; plane < S::kPlanes; plane++) {
                    for (int half = 0; half < 2; half++) {
                        ptx::tma_load(
                                to + S::r(plane) + half * S::kBoxBytes,
                                &maps.r[plane],
                                ring.full(),
                                component + half * 64,
                                row,
                                0);
                        ptx::tma_load(
                                to + S::y(plane) + half * S::kBoxBytes,
                                &maps.y,
                                ring.full(),
                                column + half * 64,
                                row,
                                plane * args.parts + part);
                    }
                }
            }
        }
        return;
    }

    const int w = warp / 4;
    float c[kGroups][4] = {};
    int before = -1; // stage whose products may be under way
    for (int row = begin; row < end; row += S::kDepth) {
        const uint32_t at = base + ring.stage * S::kBytes;
        const auto multiply = [&](int r_plane, int y_plane) {
            const uint64_t r = ptx::wgmma_descriptor_across(
                    at + S::r(r_plane) + w * S::kBoxBytes, S::kBoxBytes);
            const uint64_t y = ptx::wgmma_descriptor_across(
                    at + S::y(y_plane), S::kBoxBytes);
#pragma unroll
            for (int k = 0; k < S::kDepth / 16; k++) {
                // 16 rows of 128 bytes further
                ptx::wgmma_across(c, r + k * 128, y + k * 128);
            }
        };
        ring.wait_full();
        ptx::wgmma_fence();
        multiply(0, 0);
        if constexpr (kLo) {
            multiply(0, 1);
            multiply(1, 0);
        }
        ptx::wgmma_commit();
        if (before >= 0) {
            ptx::wgmma_wait<1>();
            ring.release(before);
        }
        before = ring.stage;
        ring.next();
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

template <bool kLo>
void launch(const DenseProductArgs& args, cudaStream_t stream) {
    using S = Stage<kLo>;
    constexpr int kShared = kStages * S::kBytes + Ring::kBytes;
    allow_shared(product_kernel<kLo>, kShared);
    const auto map = [](const Operand& operand) {
        return tensor_map(operand, 64, S::kDepth, CU_TENSOR_MAP_SWIZZLE_128B);
    };
    Maps maps;
    for (int i = 0; i < 2; i++) {
        // Nothing of rows beyond the last: zeros.
        maps.r[i] = map({args.r[kLo ? i : 0], args.rows, args.components, 1});
    }
    maps.y = map(args.y);
    const dim3 grid(
            args.components / kTile,
            (args.d + kTile - 1) / kTile * args.parts,
            args.splits);
    product_kernel<kLo><<<grid, kThreads, kShared, stream>>>(maps, args);
    check_launch("dense product");
}

} // namespace

void dense_product_hopper(const DenseProductArgs& args, cudaStream_t stream) {
    if (args.r[1]) {
        launch<true>(args, stream);
    } else {
        launch<false>(args, stream);
    }
}

} // namespace gmm::cuda
