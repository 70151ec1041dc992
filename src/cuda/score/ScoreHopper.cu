#include <algorithm>
#include <type_traits>

#include "cuda/engine/Check.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"
#include "cuda/score/Select.cuh"

namespace gmm::cuda {

namespace {

/** The Hopper kernel: 192 rows by 128 components, four warpgroups.
 *
 * One producer thread keeps a ring of component tiles (128 x 64 halves) full
 * by TMA. Three consumer warpgroups own 64 rows each and take turns: while one
 * has its wgmmas for a tile on the tensor cores, the others run their
 * epilogues on the registers of the tile before. (Two warpgroups with 256
 * columns leave each scheduler one warp for the epilogue, which cannot hide
 * its own latencies.) Rows stay in shared memory over all components where
 * they fit; where they do not (large d, many terms), they ride in the ring
 * beside the components. Persistent: a block walks over row blocks.
 */
constexpr int kGroupRows = 64;
constexpr int kConsumers = 3;
constexpr int kRows = kConsumers * kGroupRows;
constexpr int kColumns = 128;
constexpr int kGroups = kColumns / 8;
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kDepth = 64;
constexpr int kComponentBytes = kColumns * kDepth * 2;
constexpr int kRowBytes = kGroupRows * kDepth * 2; ///< of one warpgroup
constexpr int kConstantBytes = kColumns * 8;
constexpr int kMaxStages = 6;
// A tile's constants are read until its epilogue ends. The producer can be
// kMaxStages tiles ahead of the products, which are one tile ahead of the
// epilogues: two slots more than stages are enough.
constexpr int kConstantSlots = kMaxStages + 2;
constexpr int kStrips = kRows / 16;

static_assert(kColumns == kComponentTile, "components are padded to a tile");

/// Barriers, eight bytes each, by their place.
constexpr int kFull = 0;
constexpr int kEmpty = kFull + kMaxStages;
constexpr int kRowsFull = kEmpty + kMaxStages;
constexpr int kRowsEmpty = kRowsFull + kConsumers;
constexpr int kBarrierBytes = (kRowsEmpty + kConsumers) * 8;

struct Plan {
    int stages = 0;
    int stage_bytes = 0;
    bool rows_stay = false;
    /// Warpgroups take turns: needs a ring that holds a whole tile, for who
    /// waits for its turn releases nothing.
    bool turns = false;
    int steps = 0;      ///< of 16 dimensions in a stage
    int depths = 0;     ///< stages' worth of dimensions of one term
    int chunks = 0;     ///< depths * terms
    int row_planes = 0; ///< operand planes that the terms use
    int row_bytes = 0;  ///< of one warpgroup, if rows stay
    int capacity = 0;   ///< records of a strip's lists
    int list_offset = 0;
    int constant_offset = 0;
    int barrier_offset = 0;
    int shared = 0;
};

/** kSteps: of 16 dimensions that a stage's products take. A constant, for the
 * compiler serialises wgmmas whose number it does not know; chosen so that
 * few dimensions are multiplied in vain (96 = 2 stages of 3 steps). */
template <class Epilogue, int kSteps>
__global__ void __launch_bounds__(kThreads, 1) score_kernel(
        const __grid_constant__ CUtensorMap row_map,
        const __grid_constant__ CUtensorMap component_map,
        const __grid_constant__ ScoreArgs args,
        const __grid_constant__ typename Epilogue::Args out,
        const __grid_constant__ Plan plan) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    const uint32_t resident = base + plan.stages * plan.stage_bytes;
    const auto barrier = [&](int kind, int i) {
        return base + plan.barrier_offset + (kind + i) * 8;
    };
    // Told to be the same for the whole warp, so that what follows from it
    // lives in uniform registers: copies and products take their operands
    // from there.
    const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    const int row_blocks = (args.rows + kRows - 1) / kRows;
    const int all_tiles = args.components / kColumns;
    const int first_tile = int(int64_t(all_tiles) * blockIdx.y / gridDim.y);
    const int tiles =
            int(int64_t(all_tiles) * (blockIdx.y + 1) / gridDim.y) - first_tile;
    const int first_component = args.component_begin + first_tile * kColumns;

    if (threadIdx.x == 0) {
        ptx::prefetch_map(&row_map);
        ptx::prefetch_map(&component_map);
        for (int s = 0; s < plan.stages; s++) {
            ptx::barrier_init(barrier(kFull, s), 1);
            ptx::barrier_init(barrier(kEmpty, s), kConsumers * 128);
        }
        for (int w = 0; w < kConsumers; w++) {
            ptx::barrier_init(barrier(kRowsFull, w), 1);
            ptx::barrier_init(barrier(kRowsEmpty, w), 128);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();

    if (warp < 4) {
        ptx::fewer_registers<40>();
        if (warp != 0) {
            return;
        }
        // The whole warp walks, one lane acts.
        const bool elected = ptx::elect_one();
        int stage = 0, slot = 0;
        uint32_t phase = 0, row_phase = 0;
        for (int block = blockIdx.x; block < row_blocks; block += gridDim.x) {
            const int row = int(args.row_begin) + block * kRows;
            if (plan.rows_stay) {
                for (int w = 0; w < kConsumers; w++) {
                    const uint32_t full = barrier(kRowsFull, w);
                    ptx::barrier_wait(barrier(kRowsEmpty, w), row_phase ^ 1);
                    if (elected) {
                        ptx::barrier_expect(full, plan.row_bytes);
                    }
                    uint32_t to = resident + w * plan.row_bytes;
                    for (int plane = 0; plane < plan.row_planes; plane++) {
                        for (int p = 0; p < plan.depths; p++) {
                            if (elected) {
                                ptx::tma_load(
                                        to,
                                        &row_map,
                                        full,
                                        p * (kSteps * 16),
                                        row + w * kGroupRows,
                                        plane);
                            }
                            to += kRowBytes;
                        }
                    }
                }
                row_phase ^= 1;
            }
            for (int tile = 0; tile < tiles; tile++) {
                const int component = first_component + tile * kColumns;
                bool first = true;
                for (int term = 0; term < args.num_terms; term++) {
                    for (int p = 0; p < plan.depths; p++) {
                        const int column = p * (kSteps * 16);
                        const uint32_t to = base + stage * plan.stage_bytes;
                        const uint32_t full = barrier(kFull, stage);
                        ptx::barrier_wait(barrier(kEmpty, stage), phase ^ 1);
                        if (elected) {
                            ptx::barrier_expect(
                                    full,
                                    plan.stage_bytes +
                                            (first ? kConstantBytes : 0));
                            ptx::tma_load(
                                    to,
                                    &component_map,
                                    full,
                                    column,
                                    component,
                                    args.term_components[term]);
                            if (!plan.rows_stay) {
                                for (int w = 0; w < kConsumers; w++) {
                                    ptx::tma_load(
                                            to + kComponentBytes +
                                                    w * kRowBytes,
                                            &row_map,
                                            full,
                                            column,
                                            row + w * kGroupRows,
                                            args.term_rows[term]);
                                }
                            }
                            if (first) {
                                ptx::bulk_load(
                                        base + plan.constant_offset +
                                                slot * kConstantBytes,
                                        args.component_constants +
                                                component / 2,
                                        kConstantBytes,
                                        full);
                            }
                        }
                        first = false;
                        if (++stage == plan.stages) {
                            stage = 0;
                            phase ^= 1;
                        }
                    }
                }
                slot = slot + 1 == kConstantSlots ? 0 : slot + 1;
            }
        }
    } else {
        ptx::more_registers<152>();
        const int w = warp / 4 - 1;
        const int my_turn = 2 + w;
        const int next_turn = w + 1 == kConsumers ? 2 : 3 + w;

        Epilogue epilogue(
                args,
                out,
                base + plan.list_offset +
                        (warp - 4) * plan.capacity * Epilogue::kSharedPerRecord,
                plan.capacity);
        float c[kGroups][4];
        int stage = 0, slot = 0;
        uint32_t phase = 0, row_phase = 0;
        if (plan.turns && w == kConsumers - 1) {
            ptx::named_arrive(next_turn, 256); // the first turn is theirs
        }
        for (int block = blockIdx.x; block < row_blocks; block += gridDim.x) {
            epilogue.begin(block * kRows + (warp - 4) * 16);
            if (plan.rows_stay) {
                ptx::barrier_wait(barrier(kRowsFull, w), row_phase);
                row_phase ^= 1;
            }
            for (int tile = 0; tile < tiles; tile++) {
                const bool last = tile + 1 == tiles;
                if (plan.turns) {
                    ptx::named_sync(my_turn, 256);
                }
                const int first_stage = stage;
                int before = -1; // stage whose products may be under way
                for (int term = 0; term < args.num_terms; term++) {
                    const uint32_t term_rows = resident + w * plan.row_bytes +
                            args.term_rows[term] * plan.depths * kRowBytes;
                    for (int p = 0; p < plan.depths; p++) {
                        const uint32_t at = base + stage * plan.stage_bytes;
                        const uint64_t a = ptx::wgmma_descriptor(
                                plan.rows_stay
                                        ? term_rows + p * kRowBytes
                                        : at + kComponentBytes + w * kRowBytes);
                        const uint64_t b = ptx::wgmma_descriptor(at);
                        ptx::barrier_wait(barrier(kFull, stage), phase);
                        ptx::wgmma_fence();
#pragma unroll
                        for (int k = 0; k < kSteps; k++) {
                            // 16 halves further: 32 bytes
                            ptx::wgmma_m64n128k16(
                                    c, a + 2 * k, b + 2 * k, before >= 0 || k);
                        }
                        ptx::wgmma_commit();
                        if (!plan.turns && before >= 0) {
                            // A tile may be larger than the ring.
                            ptx::wgmma_wait<1>();
                            ptx::barrier_arrive(barrier(kEmpty, before));
                        }
                        before = stage;
                        if (++stage == plan.stages) {
                            stage = 0;
                            phase ^= 1;
                        }
                    }
                }
                if (plan.turns &&
                    (w + 1 < kConsumers || !last ||
                     block + gridDim.x < row_blocks)) {
                    ptx::named_arrive(next_turn, 256);
                }
                ptx::wgmma_wait<0>();
                // Each lane for what it has read of earlier tiles' constants.
                if (plan.turns) {
                    for (int s = first_stage, i = 0; i < plan.chunks; i++) {
                        ptx::barrier_arrive(barrier(kEmpty, s));
                        s = s + 1 == plan.stages ? 0 : s + 1;
                    }
                } else {
                    ptx::barrier_arrive(barrier(kEmpty, before));
                }
                if (last && plan.rows_stay) {
                    ptx::barrier_arrive(barrier(kRowsEmpty, w));
                }
                const int column = first_component + tile * kColumns;
                // The epilogue counts constants from component 0.
                epilogue.tile(
                        c,
                        column,
                        reinterpret_cast<const float4*>(
                                shared + plan.constant_offset +
                                slot * kConstantBytes) -
                                column / 2);
                slot = slot + 1 == kConstantSlots ? 0 : slot + 1;
            }
            epilogue.finish();
        }
    }
}

template <class Epilogue>
Plan make_plan(const ScoreArgs& args, int shared_limit) {
    Plan plan;
    const int steps = (args.d + 15) / 16;
    int fewest = 1 << 30;
    for (int s : {4, 3, 2}) {
        const int total = (steps + s - 1) / s * s;
        if (total < fewest) {
            fewest = total;
            plan.steps = s;
        }
    }
    plan.depths = (steps + plan.steps - 1) / plan.steps;
    plan.chunks = plan.depths * args.num_terms;
    for (int t = 0; t < args.num_terms; t++) {
        plan.row_planes = std::max(plan.row_planes, args.term_rows[t] + 1);
    }
    plan.row_bytes = plan.row_planes * plan.depths * kRowBytes;
    constexpr int kRecord = kStrips * Epilogue::kSharedPerRecord;
    constexpr int kMaxCapacity = SelectEpilogue::kMaxCapacity;
    const int room =
            shared_limit - kConstantSlots * kConstantBytes - kBarrierBytes;
    // Lists get what four stages leave, three where that is too little: that
    // many hide the latency of L2. Rows that leave no room for them move.
    const auto fit = [&](bool stay, int stages) {
        plan.rows_stay = stay;
        plan.stage_bytes =
                kComponentBytes + (stay ? 0 : kConsumers * kRowBytes);
        plan.stages = stages;
        const int left = room - stages * plan.stage_bytes -
                (stay ? kConsumers * plan.row_bytes : 0);
        plan.capacity =
                kRecord ? std::min(left / kRecord, kMaxCapacity) : kMaxCapacity;
        return left >= 0 && plan.capacity >= 10;
    };
    fit(true, 4) || fit(true, 3) || fit(false, 3);
    while (!kRecord && plan.stages < kMaxStages &&
           fit(plan.rows_stay, plan.stages + 1)) {
    }
    if (!kRecord && !fit(plan.rows_stay, plan.stages)) {
        fit(plan.rows_stay, plan.stages - 1);
    }
    plan.turns = plan.chunks <= plan.stages;
    plan.list_offset = plan.stages * plan.stage_bytes +
            (plan.rows_stay ? kConsumers * plan.row_bytes : 0);
    plan.constant_offset =
            plan.list_offset + (kRecord ? plan.capacity * kRecord : 0);
    plan.barrier_offset =
            plan.constant_offset + kConstantSlots * kConstantBytes;
    plan.shared = plan.barrier_offset + kBarrierBytes;
    return plan;
}

template <class Epilogue>
void launch(
        const ScoreArgs& args,
        const typename Epilogue::Args& out,
        cudaStream_t stream) {
    const int device = current_device();
    const int processors =
            device_attribute(cudaDevAttrMultiProcessorCount, device);
    const int shared_limit =
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const Plan plan = make_plan<Epilogue>(args, shared_limit);
    const auto kernel = plan.steps == 4 ? score_kernel<Epilogue, 4>
            : plan.steps == 3           ? score_kernel<Epilogue, 3>
                                        : score_kernel<Epilogue, 2>;
    allow_shared(kernel, plan.shared);
    const int blocks = std::min(processors, (args.rows + kRows - 1) / kRows);
    const auto map = [](const Operand& operand, int rows) {
        return tensor_map(operand, kDepth, rows, CU_TENSOR_MAP_SWIZZLE_128B);
    };
    kernel<<<dim3(blocks, args.splits), kThreads, plan.shared, stream>>>(
            map(args.rows_operand, kGroupRows),
            map(args.components_operand, kColumns),
            args,
            out,
            plan);
    check_launch("Hopper score kernel");
}

} // namespace

template <class Out>
void score_hopper(const ScoreArgs& args, const Out& out, cudaStream_t stream) {
    if constexpr (
            std::is_same_v<Out, SelectArgs> || std::is_same_v<Out, LseArgs>) {
        if (args.folded.components.data) {
            score_folded(args, out, stream);
            return;
        }
    }
    launch<EpilogueOf<Out>>(args, out, stream);
}

template void score_hopper(const ScoreArgs&, const SelectArgs&, cudaStream_t);
template void score_hopper(const ScoreArgs&, const LseArgs&, cudaStream_t);
template void score_hopper(
        const ScoreArgs&, const ResponsibilityArgs&, cudaStream_t);
template void score_hopper(const ScoreArgs&, const LogitArgs&, cudaStream_t);

} // namespace gmm::cuda
