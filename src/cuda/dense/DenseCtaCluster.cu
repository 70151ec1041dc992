#include <type_traits>

#include "cuda/dense/CtaClusterScores.cuh"
#include "cuda/engine/Check.h"
#include "cuda/operands/AugmentedOperands.h"

namespace gmm::cuda {

namespace cta_cluster {

template <int kSteps>
__device__ __forceinline__ void Block<kSteps>::sum_rows() const {
    const int w = warp / 4 - 2;
    float o[8 * L::kChunks][4]; // sums of r Y
    float t[2][4];              // sums of r slots

    /// The only writer of its part: no atomics, a fixed order.
    const auto flush = [&] {
        int first = w * 64 + warp % 4 * 16 + lane / 4;
        asm volatile("" : "+r"(first)); // no registers in between for this
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const int own = first + 8 * s;
            // Slots are [q, q, q', q', q'', c, c, c].
            const float q = quad_sum(quad < 3 ? t[0][2 * s] : 0.f);
            const float n = quad_sum(quad == 3 ? t[0][2 * s] : 0.f);
            if (is_narrow(own)) {
                continue;
            }
            const size_t k =
                    size_t(blockIdx.y) * args.padded_k + component + own;
            if (quad == 0) {
                args.totals[k * 2] +=
                        double(n) / (kAugmentedUnit * kResponsibilityScale);
                args.totals[k * 2 + 1] +=
                        double(q) * args.fold / kResponsibilityScale;
            }
            float* const y = args.partial + k * args.d + quad * 2;
            const int inside = args.d - quad * 2;
            constexpr int kBatch = 16; // loads under way
#pragma unroll
            for (int j = 0; j < 16 * L::kChunks; j += kBatch) {
                float sum[kBatch];
#pragma unroll
                for (int i = 0; i < kBatch; i++) {
                    const int at = (j + i) / 2 * 8 + i % 2;
                    sum[i] = at < inside ? y[at] : 0.f;
                }
#pragma unroll
                for (int i = 0; i < kBatch; i++) {
                    const int at = (j + i) / 2 * 8 + i % 2;
                    if (at < inside) {
                        y[at] = sum[i] + o[(j + i) / 2][2 * s + i % 2];
                    }
                }
            }
        }
    };

    int stage = 0, before = 0;
    uint32_t phase = 0;
    for (int i = 0; i < tiles; i++) {
        const int slot = i % kSlots;
        ptx::barrier_wait(slot_full(slot), i / kSlots & 1);
        __half2 factor[kRows / 16][2];
#pragma unroll
        for (int k = 0; k < kRows / 16; k++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                factor[k][half] = ptx::half2_of(ptx::load_shared_uint(
                        base + L::kFactorsAt + slot * L::kFactorBytes +
                        (k * 16 + half * 8 + quad * 2) * 2));
            }
        }
        ptx::wgmma_wait<0>(); // the tile before
        if (i > 0) {
            ptx::barrier_arrive(empty(before));
            const int next = i - 1 + kStages;
            if (warp == kScoring / 32 && next < tiles + 2) {
                ptx::barrier_wait(empty(before), (i - 1) / kStages & 1);
                if (ptx::elect_one()) {
                    load_rows(next);
                }
                __syncwarp();
            }
        }
        const uint32_t from = base + L::kSlotsAt + slot * L::kSlotBytes +
                w * kRowChunkBytes + (lane / 16 * 8 + lane % 8) * 128 +
                (((warp % 4 * 2 + lane / 8 % 2) ^ lane % 8) << 4);
        uint32_t r[kRows / 16][4];
#pragma unroll
        for (int k = 0; k < kRows / 16; k++) {
            ptx::load_matrix_transposed(r[k], from + k * 2048);
        }
#pragma unroll
        for (int k = 0; k < kRows / 16; k++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                r[k][j] = ptx::bits(
                        __hmul2(ptx::half2_of(r[k][j]), factor[k][j / 2]));
            }
        }
        const uint32_t at = base + L::kStagesAt + stage * L::kStageBytes;
        const uint64_t y = ptx::wgmma_descriptor_across(at, kRowChunkBytes);
        const uint64_t slots =
                ptx::wgmma_descriptor_narrow(at + L::kRowSlotsAt);
        ptx::barrier_wait(full(stage), phase);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kRows / 16; k++) { // 16 rows further, over 16
            const bool add = i % kChainTiles > 0 || k > 0;
            ptx::wgmma_sums(o, r[k], y + k * 128, add);
            ptx::wgmma_sums(t, r[k], slots + k * 32, add);
        }
        ptx::wgmma_commit();
        ptx::barrier_arrive(slot_empty(slot));
        if (i % kChainTiles == kChainTiles - 1 || i == tiles - 1) {
            ptx::wgmma_wait<0>();
            flush();
        }
        before = stage;
        stage = stage + 1 == kStages ? 0 : stage + 1;
        phase ^= stage == 0;
    }
    ptx::wgmma_wait<0>();
}

} // namespace cta_cluster

namespace {

using namespace cta_cluster;

/** The dense sums with two products instead of three: the blocks of a cluster
 * share a row's components, and so its log-sum-exp.
 *
 * Each block owns a tile of components, the cluster all of them; it walks over
 * its share of the rows, 64 at a time. Two warpgroups take such tiles in turn:
 * a tile's scores (the first product), their maximum and sum over the block's
 * own components, and exponentials in fp16, to shared memory; the row's part of
 * the log-sum-exp goes to all blocks. When the warpgroup has done its next
 * tile, the others' parts have come, and it finds the factors that make
 * exponentials responsibilities. Two further warpgroups, 64 components each,
 * apply them and multiply: R^T [Y, slots], the second product, whose sums stay
 * in registers. Slots (AugmentedOperands.h) hold q and a constant, so that sums
 * of r q and of r come with it.
 */
template <int kSteps>
__global__ void __launch_bounds__(kThreads, 1) cta_cluster_kernel(
        const __grid_constant__ AugmentedMaps maps,
        const __grid_constant__ CtaClusterArgs args) {
    const Block<kSteps> block(maps, args);
    if (block.tiles == 0) {
        return;
    }
    const bool any_narrow = block.set_up();
    if (block.warp < kScoring / 32) {
        ptx::more_registers<136>();
        block.score_rows(any_narrow);
    } else {
        ptx::fewer_registers<120>();
        block.sum_rows();
    }
    ptx::cluster_sync(); // none ends while others may still copy to it
}

/// How the kernel is launched; stays where it is.
template <int kSteps>
struct Cluster {
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    Cluster(int padded_k, int splits, cudaStream_t stream) {
        constexpr int kShared = Layout<kSteps>::kShared;
        allow_shared(cta_cluster_kernel<kSteps>, kShared);
        const int blocks = padded_k / kComponentTile;
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {unsigned(blocks), 1, 1};
        config.gridDim = dim3(blocks, splits);
        config.blockDim = kThreads;
        config.dynamicSmemBytes = kShared;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    Cluster(const Cluster&) = delete;
};

/// Calls f with the number of steps as a type.
template <class F>
auto for_dimensions(int d, const F& f) {
    const int steps = (d + 15) / 16;
    return steps <= 2    ? f(std::integral_constant<int, 2>())
            : steps <= 4 ? f(std::integral_constant<int, 4>())
            : steps <= 6 ? f(std::integral_constant<int, 6>())
                         : f(std::integral_constant<int, 8>());
}

template <int kSteps>
void launch(const CtaClusterArgs& args, cudaStream_t stream) {
    const Cluster<kSteps> cluster(args.padded_k, args.splits, stream);
    const AugmentedMaps maps(
            args.rows,
            kRows,
            CU_TENSOR_MAP_SWIZZLE_32B,
            args.row_slots,
            args.components,
            args.component_slots);
    check(cudaLaunchKernelEx(
                  &cluster.config, cta_cluster_kernel<kSteps>, maps, args),
          "cluster kernel");
}

} // namespace

int cta_clusters(int d, int padded_k) {
    return for_dimensions(d, [&](auto steps) {
        Cluster<decltype(steps)::value> cluster(padded_k, 1, nullptr);
        int active = 0;
        if (cudaOccupancyMaxActiveClusters(
                    &active,
                    cta_cluster_kernel<decltype(steps)::value>,
                    &cluster.config) != cudaSuccess) {
            (void)cudaGetLastError();
            return 0;
        }
        return active;
    });
}

void cta_cluster_sums(const CtaClusterArgs& args, cudaStream_t stream) {
    for_dimensions(args.d, [&](auto steps) {
        launch<decltype(steps)::value>(args, stream);
        return 0;
    });
}

void DenseStep::add_by_cta_cluster(
        const Model& model,
        const DenseRows& block,
        float fp16_scale,
        const unsigned char* narrow,
        float slack,
        float bound,
        cudaStream_t stream) {
    use(stream);
    const PreparedRows& from = block.rows;
    const AugmentedOperands& folded = model.folded_operands();
    CtaClusterArgs args;
    args.rows = from.operand;
    args.row_begin = block.begin;
    args.row_slots = {from.row_slots, from.operand.rows, kAugmentedSlots, 1};
    args.components = folded.components;
    args.component_slots = folded.component_slots;
    args.row_tiles = block.count / kCtaClusterRows;
    args.d = d_;
    args.k = model.k;
    args.padded_k = padded_k_;
    args.narrow = narrow;
    args.slack = slack;
    args.bound = bound;
    args.row_weight = block.weight;
    args.row_lse = block.row_lse;
    args.fold = augmented_scale(d_, fp16_scale);
    args.splits = clusters_;
    args.partial = partial_;
    args.totals = totals_;
    cta_cluster_sums(args, stream);
}

} // namespace gmm::cuda
