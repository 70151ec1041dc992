#include <algorithm>

#include "cuda/dense/Dense.h"
#include "cuda/engine/Check.h"
#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"
#include "cuda/score/Epilogue.cuh"

namespace gmm::cuda {

namespace {

/** The dense sums in one kernel, from folded operands: responsibilities never
 * leave registers.
 *
 * A block owns a tile of components and walks over its share of the rows. Each
 * of two consumer warpgroups has 64 components: one product gives their
 * responsibilities for a tile of rows, for a row's log-sum-exp is folded in as
 * well (P^T = 2^(M Y^T)); the fragments, in fp16, are the first operand of a
 * second product with the same rows (P^T Y), whose sums stay in registers to
 * the end. While one warpgroup exponentiates, the other multiplies.
 *
 * kLo: operands and responsibilities are split into two fp16 numbers, and all
 * products but that of the second halves are summed.
 */
constexpr int kRows = kDenseTileRows;
constexpr int kGroupComponents = 64;
constexpr int kConsumers = 2;
constexpr int kGroups = kRows / 8;
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kDepth = 64;
constexpr int kChunkBytes = 128 * kDepth * 2; ///< of rows or of components
constexpr int kSlotBytes = 128 * kWideSlots * 2;

static_assert(kRows == 128 && kComponentTile == 128);

/// steps: of 16 dimensions, without the slots'.
template <int kSteps, bool kLo>
struct DenseLayout {
    static constexpr int kChunks = (kSteps + 3) / 4;
    static constexpr int kPlanes = kLo ? 2 : 1;
    static constexpr int kStages = kLo ? 2 : 4;
    static constexpr int kPlaneBytes = kChunks * kChunkBytes;
    static constexpr int kSlotsAt = kPlanes * kPlaneBytes;
    static constexpr int kComponentBytes = kSlotsAt + kSlotBytes;
    static constexpr int kConstantsAt = kSlotsAt + kSlotBytes;
    static constexpr int kLoadBytes = kConstantsAt + kRows * 4;
    /// Tiles begin at multiples of 1024, for the sake of the swizzle.
    static constexpr int kStageBytes = (kLoadBytes + 1023) / 1024 * 1024;
    static constexpr int kBarriersAt = kComponentBytes + kStages * kStageBytes;
    static constexpr int kShared = kBarriersAt + (1 + 2 * kStages) * 8;
};

template <int kSteps, bool kLo>
__global__ void __launch_bounds__(kThreads, 1) dense_kernel(
        const __grid_constant__ AugmentedMaps maps,
        const __grid_constant__ DenseSumsArgs args) {
    using L = DenseLayout<kSteps, kLo>;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    const uint32_t stages = base + L::kComponentBytes;
    const uint32_t components_full = base + L::kBarriersAt;
    const auto full = [&](int s) { return components_full + 8 + s * 16; };
    const auto empty = [&](int s) { return components_full + 16 + s * 16; };
    const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    const int component = blockIdx.x * kComponentTile;
    const int begin = int(int64_t(args.row_tiles) * blockIdx.y / gridDim.y);
    const int end = int(int64_t(args.row_tiles) * (blockIdx.y + 1) / gridDim.y);
    if (begin == end) {
        return;
    }

    if (threadIdx.x == 0) {
        ptx::barrier_init(components_full, 1);
        for (int s = 0; s < L::kStages; s++) {
            ptx::barrier_init(full(s), 1);
            ptx::barrier_init(empty(s), kConsumers * 128);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();

    if (warp < 4) {
        ptx::fewer_registers<24>();
        if (warp != 0) {
            return;
        }
        const bool elected = ptx::elect_one();
        const auto load = [&](uint32_t to,
                              const CUtensorMap& map,
                              const CUtensorMap& slots,
                              uint32_t barrier,
                              int first,
                              int first_slots) {
#pragma unroll
            for (int plane = 0; plane < L::kPlanes; plane++) {
#pragma unroll
                for (int p = 0; p < L::kChunks; p++) {
                    ptx::tma_load(
                            to + plane * L::kPlaneBytes + p * kChunkBytes,
                            &map,
                            barrier,
                            p * kDepth,
                            first,
                            plane);
                }
            }
            ptx::tma_load(to + L::kSlotsAt, &slots, barrier, 0, first_slots, 0);
        };
        if (elected) {
            ptx::barrier_expect(components_full, L::kComponentBytes);
            load(base,
                 maps.components,
                 maps.component_slots,
                 components_full,
                 component,
                 component);
        }
        int stage = 0;
        uint32_t phase = 1;
        for (int tile = begin; tile < end; tile++) {
            ptx::barrier_wait(empty(stage), phase);
            if (elected) {
                const uint32_t to = stages + stage * L::kStageBytes;
                ptx::barrier_expect(full(stage), L::kLoadBytes);
                load(to,
                     maps.rows,
                     maps.row_slots,
                     full(stage),
                     int(args.row_begin) + tile * kRows,
                     tile * kRows);
                ptx::bulk_load(
                        to + L::kConstantsAt,
                        args.row_constant + tile * kRows,
                        kRows * 4,
                        full(stage));
            }
            stage = stage + 1 == L::kStages ? 0 : stage + 1;
            phase ^= stage == 0;
        }
        return;
    }

    ptx::more_registers<240>();
    const int w = warp / 4 - 1;
    const int lane = threadIdx.x % 32;
    const uint32_t mine = base + w * kGroupComponents * 128;
    const uint32_t my_slots =
            base + L::kSlotsAt + w * kGroupComponents * kWideSlots * 2;
    float c[kGroups][4];             // scores, then responsibilities
    float o[8 * L::kChunks][4] = {}; // sums of r Y
    uint32_t p[L::kPlanes][kRows / 16][4];
    float n[2] = {}, q[2] = {};

    /// Begins the product that leaves logarithms of responsibilities in c.
    const auto begin_scores = [&](uint32_t at) {
        ptx::wgmma_fence();
        // The small terms first: the matrix units cut sums off at their size.
        const auto multiply = [&](int component_plane, int row_plane) {
            const bool first = component_plane == 0 && row_plane == kLo;
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                const uint32_t chunk = k / 4 * kChunkBytes;
                ptx::wgmma_m64n128k16(
                        c,
                        ptx::wgmma_descriptor(
                                mine + component_plane * L::kPlaneBytes +
                                chunk) +
                                2 * (k % 4),
                        ptx::wgmma_descriptor(
                                at + row_plane * L::kPlaneBytes + chunk) +
                                2 * (k % 4),
                        !first || k > 0);
            }
        };
        if constexpr (kLo) {
            multiply(0, 1);
            multiply(1, 0);
        }
        multiply(0, 0);
        ptx::wgmma_m64n128k16(
                c,
                ptx::wgmma_descriptor_narrow(my_slots),
                ptx::wgmma_descriptor_narrow(at + L::kSlotsAt),
                true);
        ptx::wgmma_commit();
    };
    /// Begins the product that adds p's share to o.
    const auto begin_sums = [&](uint32_t at) {
        ptx::wgmma_fence();
        const auto sum = [&](int half, int row_plane) {
#pragma unroll
            for (int k = 0; k < kRows / 16; k++) {
                ptx::wgmma_sums(
                        o,
                        p[half][k],
                        ptx::wgmma_descriptor_across(
                                at + row_plane * L::kPlaneBytes + k * 2048,
                                kChunkBytes),
                        true);
            }
        };
        if constexpr (kLo) {
            sum(0, 1);
            sum(1, 0);
        }
        sum(0, 0);
        ptx::wgmma_commit();
    };
    const auto exponentiate = [&](uint32_t at) {
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const float2 constant = ptx::load_shared_float2(
                    at + L::kConstantsAt + g * 32 + lane % 4 * 8);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                float& r0 = c[g][2 * s];
                float& r1 = c[g][2 * s + 1];
                r0 = ptx::exp2_approx(r0);
                r1 = ptx::exp2_approx(r1);
                n[s] += r0 + r1;
                q[s] = fmaf(r0, constant.x, fmaf(r1, constant.y, q[s]));
            }
        }
    };
    const auto round = [&] {
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float r0 = c[g][2 * s], r1 = c[g][2 * s + 1];
                const __half2 hi = __floats2half2_rn(r0, r1);
                p[0][g / 2][g % 2 * 2 + s] = ptx::bits(hi);
                if constexpr (kLo) {
                    const float2 back = __half22float2(hi);
                    p[1][g / 2][g % 2 * 2 + s] = ptx::bits(
                            __floats2half2_rn(r0 - back.x, r1 - back.y));
                }
            }
        }
    };

    int stage = 0;
    uint32_t phase = 0;
    uint32_t at = stages;
    ptx::barrier_wait(components_full, 0);
    ptx::barrier_wait(full(0), 0);
    begin_scores(at);
    ptx::wgmma_wait<0>();
    exponentiate(at);
    round();
    for (int tile = begin + 1; tile < end; tile++) {
        // A tile's sums are under way while the next one's responsibilities
        // are computed.
        const int before = stage;
        const uint32_t at_before = at;
        stage = stage + 1 == L::kStages ? 0 : stage + 1;
        phase ^= stage == 0;
        at = stages + stage * L::kStageBytes;
        ptx::barrier_wait(full(stage), phase);
        begin_scores(at);
        begin_sums(at_before);
        ptx::wgmma_wait<1>();
        exponentiate(at);
        ptx::wgmma_wait<0>();
        ptx::barrier_arrive(empty(before)); // each lane for its own reads
        round();
    }
    begin_sums(at);
    ptx::wgmma_wait<0>();

    // The only writer of its part: no atomics, a fixed order.
    const int first = component + w * kGroupComponents + warp % 4 * 16;
    const size_t part = size_t(blockIdx.y) * args.padded_k;
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const size_t k = part + first + lane / 4 + 8 * s;
        const float all_n = quad_sum(n[s]), all_q = quad_sum(q[s]);
        if (lane % 4 == 0) {
            args.totals[k * 2] += double(all_n) / kResponsibilityScale;
            args.totals[k * 2 + 1] += double(all_q) / kResponsibilityScale;
        }
#pragma unroll
        for (int g = 0; g < 8 * L::kChunks; g++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int j = g * 8 + lane % 4 * 2 + i;
                if (j < args.d) {
                    args.partial[k * args.d + j] += o[g][2 * s + i];
                }
            }
        }
    }
}

template <int kSteps, bool kLo>
void launch(const DenseSumsArgs& args, cudaStream_t stream) {
    using L = DenseLayout<kSteps, kLo>;
    allow_shared(dense_kernel<kSteps, kLo>, L::kShared);
    const AugmentedMaps maps(
            args.rows,
            kRows,
            CU_TENSOR_MAP_SWIZZLE_32B,
            args.row_slots,
            args.components,
            args.component_slots);
    const dim3 grid(args.padded_k / kComponentTile, args.splits);
    dense_kernel<kSteps, kLo>
            <<<grid, kThreads, L::kShared, stream>>>(maps, args);
    check_launch("dense kernel");
}

} // namespace

void dense_sums_hopper(
        const DenseSumsArgs& args, bool lo, cudaStream_t stream) {
    const int steps = (args.d + 15) / 16;
    const auto run = steps <= 2 ? (lo ? launch<2, true> : launch<2, false>)
            : steps <= 4        ? (lo ? launch<4, true> : launch<4, false>)
            : steps <= 6        ? (lo ? launch<6, true> : launch<6, false>)
                                : (lo ? launch<8, true> : launch<8, false>);
    run(args, stream);
}

} // namespace gmm::cuda
