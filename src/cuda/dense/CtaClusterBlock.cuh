#pragma once

#include "cuda/dense/Dense.h"
#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"
#include "cuda/score/Epilogue.cuh"

/** What the two halves of the cluster kernel (DenseCtaCluster.cu) share: a
 * block's place in its cluster, its shared memory and its barriers. */
namespace gmm::cuda {

namespace cta_cluster {

constexpr int kRows = kCtaClusterRows;
constexpr int kGroups = kComponentTile / 8;
constexpr int kThreads = 128 * 4;
constexpr int kScoring = 256; ///< threads that score; the others sum
constexpr int kDepth = 64;
constexpr int kComponentChunkBytes = kComponentTile * kDepth * 2;
constexpr int kRowChunkBytes = kRows * kDepth * 2;
constexpr int kStages = 7; ///< of rows
constexpr int kSlots = 3;  ///< for exponentials
/// For parts of log-sum-exps. A block sends tile i's after it has had all of
/// i - 2, which others had sent after they had had all of i - 4: these may be
/// overwritten. Even, so that who waits for a slot is who arms it again.
constexpr int kPartSlots = 4;
/// Tiles that are summed in registers at most, see Dense.cu. Twice its rows,
/// for n, q and y lose the same share.
constexpr int kChainTiles = 256;

static_assert(kComponentTile == 128);

/// steps: of 16 dimensions, without the slots'.
template <int kSteps>
struct Layout {
    static constexpr int kChunks = (kSteps + 3) / 4;
    static constexpr int kComponentSlotsAt = kChunks * kComponentChunkBytes;
    static constexpr int kComponentBytes =
            kComponentSlotsAt + kComponentTile * kWideSlots * 2;
    static constexpr int kRowSlotsAt = kChunks * kRowChunkBytes;
    static constexpr int kStageBytes = kRowSlotsAt + kRows * kWideSlots * 2;
    static constexpr int kStagesAt = kComponentBytes;
    /// [2 chunks of components][rows]
    static constexpr int kSlotBytes = 2 * kRowChunkBytes;
    static constexpr int kSlotsAt = kStagesAt + kStages * kStageBytes;
    /// Maxima of own rows, by slot.
    static constexpr int kRowBytes = kRows * 4;
    static constexpr int kBestAt = kSlotsAt + kSlots * kSlotBytes;
    /// Parts of log-sum-exps: [blocks][rows].
    static constexpr int kPartBytes = kMaxCtaCluster * kRowBytes;
    static constexpr int kPartsAt = kBestAt + kSlots * kRowBytes;
    static constexpr int kFactorBytes = kRows * 2; ///< by slot
    static constexpr int kFactorsAt = kPartsAt + kPartSlots * kPartBytes;
    static constexpr int kNarrowAt = kFactorsAt + kSlots * kFactorBytes;
    static constexpr int kBarriersAt = kNarrowAt + kComponentTile * 2;
    static constexpr int kShared =
            kBarriersAt + (1 + 2 * kStages + 2 * kSlots + kPartSlots) * 8;
};

/// A part's last bit says that a narrow component is near its block's best.
__device__ __forceinline__ float marked(float part, bool mark) {
    return __uint_as_float((__float_as_uint(part) & ~1u) | uint32_t(mark));
}
__device__ __forceinline__ bool is_marked(float part) {
    return __float_as_uint(part) & 1;
}

__device__ __forceinline__ unsigned char* shared_bytes() {
    extern __shared__ __align__(1024) unsigned char shared[];
    return shared;
}

template <int kSteps>
struct Block {
    using L = Layout<kSteps>;

    const AugmentedMaps& maps;
    const CtaClusterArgs& args;
    const uint32_t base = ptx::smem_address(shared_bytes());
    const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    const int lane = threadIdx.x % 32;
    const int quad = lane % 4;
    const int rank = blockIdx.x, blocks = gridDim.x; ///< of the cluster
    const int component = rank * kComponentTile;
    /// Of rows: the cluster's.
    const int begin = int(int64_t(args.row_tiles) * blockIdx.y / gridDim.y);
    const int tiles =
            int(int64_t(args.row_tiles) * (blockIdx.y + 1) / gridDim.y) - begin;

    __device__ Block(const AugmentedMaps& m, const CtaClusterArgs& a)
            : maps(m), args(a) {}

    // Barriers. A stage's rows have come, have been summed; a slot's
    // exponentials and factors are there, have been read; all parts have come.
    __device__ uint32_t components_full() const {
        return base + L::kBarriersAt;
    }
    __device__ uint32_t full(int stage) const {
        return components_full() + 8 + stage * 16;
    }
    __device__ uint32_t empty(int stage) const {
        return full(stage) + 8;
    }
    __device__ uint32_t slot_full(int slot) const {
        return full(kStages + slot);
    }
    __device__ uint32_t slot_empty(int slot) const {
        return empty(kStages + slot);
    }
    __device__ uint32_t parts_full(int slot) const {
        return full(kStages + kSlots) + slot * 8;
    }

    __device__ __forceinline__ bool is_narrow(int i) const {
        return args.narrow && component + i < args.k &&
                args.narrow[component + i];
    }

    /// A tile to its stage. There are two more than there are tiles: each of
    /// two warpgroups computes the scores of a next one.
    __device__ __forceinline__ void load_rows(int i) const {
        const int stage = i % kStages;
        const uint32_t to = base + L::kStagesAt + stage * L::kStageBytes;
        const int row =
                int(args.row_begin) + (begin + min(i, tiles - 1)) * kRows;
        ptx::barrier_expect(full(stage), L::kStageBytes);
#pragma unroll
        for (int p = 0; p < L::kChunks; p++) {
            ptx::tma_load(
                    to + p * kRowChunkBytes,
                    &maps.rows,
                    full(stage),
                    p * kDepth,
                    row,
                    0);
        }
        ptx::tma_load(
                to + L::kRowSlotsAt, &maps.row_slots, full(stage), 0, row, 0);
    }

    /// Before all else, by all threads; whether there are narrow components.
    __device__ __forceinline__ bool set_up() const {
        if (threadIdx.x == 0) {
            ptx::barrier_init(components_full(), 1);
            for (int s = 0; s < kStages; s++) {
                ptx::barrier_init(full(s), 1);
                ptx::barrier_init(empty(s), kThreads - kScoring);
            }
            for (int s = 0; s < kSlots; s++) {
                ptx::barrier_init(slot_full(s), kScoring / 2);
                ptx::barrier_init(slot_empty(s), kThreads - kScoring);
            }
            for (int i = 0; i < kPartSlots; i++) {
                ptx::barrier_init(parts_full(i), 1);
            }
            ptx::barrier_init_fence();
            for (int i = 0; i < kPartSlots; i++) {
                ptx::barrier_expect(parts_full(i), (blocks - 1) * L::kRowBytes);
            }
            ptx::barrier_expect(components_full(), L::kComponentBytes);
            for (int p = 0; p < L::kChunks; p++) {
                ptx::tma_load(
                        base + p * kComponentChunkBytes,
                        &maps.components,
                        components_full(),
                        p * kDepth,
                        component,
                        0);
            }
            ptx::tma_load(
                    base + L::kComponentSlotsAt,
                    &maps.component_slots,
                    components_full(),
                    0,
                    component,
                    0);
            for (int i = 0; i < min(kStages, tiles + 2); i++) {
                load_rows(i);
            }
        }
        __syncthreads();
        // 1 for narrow components, 0 for others: [4][groups], by who has them.
        bool any_narrow = false;
        if (threadIdx.x < kComponentTile / 2) {
            const int i = threadIdx.x % kGroups * 8 + threadIdx.x / kGroups * 2;
            any_narrow = is_narrow(i) || is_narrow(i + 1);
            ptx::store_shared(
                    base + L::kNarrowAt + threadIdx.x * 4,
                    ptx::bits(
                            __floats2half2_rn(is_narrow(i), is_narrow(i + 1))));
        }
        // The parts of blocks that the cluster lacks stay as they are.
        for (int i = threadIdx.x; i < kPartSlots * kMaxCtaCluster * kRows;
             i += kThreads) {
            if (i / kRows % kMaxCtaCluster >= blocks) {
                ptx::store_shared(base + L::kPartsAt + i * 4, -INFINITY);
            }
        }
        ptx::barrier_wait(components_full(), 0);
        if (threadIdx.x < kComponentTile && is_narrow(threadIdx.x)) {
            // Narrow components' scores are raised by what they may be wrong,
            // so that a sum of them that is too small is; they get no sums
            // here. Slot 7; halves of a row are exchanged in every other four
            // rows.
            __half* const slot = reinterpret_cast<__half*>(
                    shared_bytes() + L::kComponentSlotsAt + threadIdx.x * 32 +
                    threadIdx.x / 4 % 2 * 16 + 14);
            *slot = __float2half_rn(
                    __half2float(*slot) + args.slack / kAugmentedUnit);
        }
        ptx::async_fence();
        any_narrow = __syncthreads_or(any_narrow);
        ptx::cluster_sync();
        return any_narrow;
    }

    /// Two warpgroups: scores, exponentials, log-sum-exps, factors.
    __device__ __forceinline__ void score_rows(bool any_narrow) const;
    /// Two more: responsibilities and their sums.
    __device__ __forceinline__ void sum_rows() const;
};

} // namespace cta_cluster

} // namespace gmm::cuda
