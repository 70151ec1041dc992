#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/operands/TensorMap.h"
#include "cuda/ptx/PtxHopper.cuh"
#include "cuda/score/Select.cuh"

namespace gmm::cuda {

namespace {

/** Candidate lists, and log-sum-exps, from folded operands
 * (AugmentedOperands.h), up to 128 dimensions: the kernel that an E-step spends
 * most of its time in.
 *
 * As in ScoreHopper.cu, three consumer warpgroups own 64 rows each. What is
 * special: products are scores, so that no constants are read; a tile's
 * dimensions are one stage of the ring and their number is known to the
 * compiler; a warpgroup's rows live in registers over all components, and the
 * next ones wait in shared memory. Tiles come in a cycle, in which each
 * warpgroup begins at a place of its own: so one finishes its lists while the
 * others multiply, and from three tiles on one buffer for the next rows serves
 * all three.
 */
constexpr int kGroupRows = 64;
constexpr int kConsumers = 3;
constexpr int kRows = kConsumers * kGroupRows;
constexpr int kColumns = kComponentTile;
constexpr int kGroups = kColumns / 8;
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kDepth = 64;
constexpr int kStages = 2;
/// Rounds of blocks until the pilot, which is the first, is asked for: so
/// nobody waits for it. Worth it where there are kPilotShare rounds.
constexpr int kPilotRounds = 2;
static_assert(kPilotRounds > 1); // warpgroups end the first in the second
constexpr int kPilotShare = 8;
constexpr int kStrips = kRows / 16;

/// Barriers, eight bytes each, by their place.
constexpr int kFull = 0;
constexpr int kEmpty = kFull + kStages;
constexpr int kRowsFull = kEmpty + kStages;
constexpr int kRowsEmpty = kRowsFull + kConsumers;
constexpr int kBarrierBytes = (kRowsEmpty + kConsumers) * 8;

/// Places in shared memory; steps: of 16 dimensions, without the slots'.
template <class Epilogue, int kSteps>
struct Layout {
    static constexpr int kChunks = (kSteps + 3) / 4;
    static constexpr int kChunkBytes = kColumns * kDepth * 2;
    static constexpr int kStageBytes = kChunks * kChunkBytes + kColumns * 32;
    static constexpr int kRowChunkBytes = kGroupRows * kDepth * 2;
    static constexpr int kRowBytes = kChunks * kRowChunkBytes + kGroupRows * 32;
    static constexpr int kRowsAt = kStages * kStageBytes;
    static __host__ __device__ constexpr int lists_at(int buffers) {
        return kRowsAt + buffers * kRowBytes;
    }
    static constexpr int kRecordBytes = kStrips * Epilogue::kSharedPerRecord;
};

/// Where in the cycle of tiles a warpgroup's row blocks begin.
__device__ __forceinline__ int first_tile(int group, int tiles) {
    return group * tiles / kConsumers;
}

template <class Epilogue, int kSteps>
__global__ void __launch_bounds__(kThreads, 1) folded_kernel(
        const __grid_constant__ AugmentedMaps maps,
        const __grid_constant__ ScoreArgs args,
        const __grid_constant__ typename Epilogue::Args out,
        int buffers,
        int capacity) {
    using L = Layout<Epilogue, kSteps>;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    const uint32_t lists = base + L::lists_at(buffers);
    const uint32_t barriers = lists + capacity * L::kRecordBytes;
    const auto barrier = [&](int kind, int i) {
        return barriers + (kind + i) * 8;
    };
    const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    const int row_blocks = (args.rows + kRows - 1) / kRows;
    const int first_block = int(blockIdx.x);
    const int asking_block = first_block + kPilotRounds * int(gridDim.x);
    const int all_tiles = args.components / kColumns;
    const int begin = int(int64_t(all_tiles) * blockIdx.y / gridDim.y);
    const int tiles =
            int(int64_t(all_tiles) * (blockIdx.y + 1) / gridDim.y) - begin;
    if (threadIdx.x == 0) {
        // Every consumer warp releases for itself: none may fall behind by the
        // two phases that a barrier's parity cannot tell apart.
        for (int s = 0; s < kStages; s++) {
            ptx::barrier_init(barrier(kFull, s), 1);
            ptx::barrier_init(barrier(kEmpty, s), kConsumers * 4);
        }
        for (int w = 0; w < kConsumers; w++) {
            ptx::barrier_init(barrier(kRowsFull, w), 1);
            ptx::barrier_init(barrier(kRowsEmpty, w), 4);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();

    if (warp < 4) {
        ptx::fewer_registers<32>();
        const bool elected = ptx::elect_one();
        if (warp == 0) { // components
            uint32_t phase = 1;
            int stage = 0;
            const int blocks = (row_blocks - first_block + int(gridDim.x) - 1) /
                    int(gridDim.x);
            const int behind = first_tile(kConsumers - 1, tiles);
            int total = blocks * tiles + behind;
            int tile = 0;
            for (int i = 0; i < total; i++) {
                if (i == kPilotRounds * tiles && blocks > kPilotRounds &&
                    Epilogue::pilot_failed(out)) {
                    total = i + behind;
                    if (i == total) {
                        break;
                    }
                }
                const uint32_t full = barrier(kFull, stage);
                uint32_t to = base + stage * L::kStageBytes;
                ptx::barrier_wait(barrier(kEmpty, stage), phase);
                if (elected) {
                    ptx::barrier_expect(full, L::kStageBytes);
#pragma unroll
                    for (int p = 0; p < L::kChunks; p++) {
                        ptx::tma_load(
                                to,
                                &maps.components,
                                full,
                                p * kDepth,
                                (begin + tile) * kColumns,
                                0);
                        to += L::kChunkBytes;
                    }
                    ptx::tma_load(
                            to,
                            &maps.component_slots,
                            full,
                            0,
                            (begin + tile) * kColumns,
                            0);
                }
                tile = tile + 1 == tiles ? 0 : tile + 1;
                stage ^= 1;
                phase ^= stage == 0;
            }
        } else if (warp == 1) { // rows
            // Barriers are a warpgroup's, so that none is waited for across
            // two phases; buffers are used in turn.
            int load = 0;
            for (int block = first_block; block < row_blocks;
                 block += gridDim.x) {
                if (block == asking_block && Epilogue::pilot_failed(out)) {
                    break;
                }
                for (int w = 0; w < kConsumers; w++, load++) {
                    const int row = int(args.row_begin) + block * kRows +
                            w * kGroupRows;
                    const uint32_t full = barrier(kRowsFull, w);
                    uint32_t to =
                            base + L::kRowsAt + load % buffers * L::kRowBytes;
                    const int before = load - buffers;
                    if (before >= 0) {
                        ptx::barrier_wait(
                                barrier(kRowsEmpty, before % kConsumers),
                                before / kConsumers & 1);
                    }
                    if (elected) {
                        ptx::barrier_expect(full, L::kRowBytes);
#pragma unroll
                        for (int p = 0; p < L::kChunks; p++) {
                            ptx::tma_load(
                                    to, &maps.rows, full, p * kDepth, row, 0);
                            to += L::kRowChunkBytes;
                        }
                        ptx::tma_load(to, &maps.row_slots, full, 0, row, 0);
                    }
                }
            }
        }
    } else {
        ptx::more_registers<160>();
        const int w = warp / 4 - 1;
        const int lane = threadIdx.x % 32;
        Epilogue epilogue(
                args,
                out,
                lists + (warp - 4) * capacity * Epilogue::kSharedPerRecord,
                capacity);
        // Where this lane's part of the rows lies, see load_matrix.
        const int row_in_group = warp % 4 * 16 + lane % 16;
        const uint32_t rows_at = base + L::kRowsAt + w % buffers * L::kRowBytes;
        const uint32_t my_rows = rows_at + row_in_group * 128;
        const uint32_t my_slots = rows_at + L::kChunks * L::kRowChunkBytes +
                row_in_group * 32 + lane / 16 * 16;
        float c[kGroups][4];
        uint32_t a[kSteps + 1][4];
        uint32_t phase = 0, row_phase = 0;
        int stage = 0;
        auto release = [&] {
            __syncwarp();
            if (lane == 0) {
                ptx::barrier_arrive(barrier(kEmpty, stage));
            }
            stage ^= 1;
            phase ^= stage == 0;
        };
        auto skip = [&](int count) {
            for (int i = 0; i < count; i++) {
                ptx::barrier_wait(barrier(kFull, stage), phase);
                release();
            }
        };
        const int offset = first_tile(w, tiles);
        skip(offset);
        for (int block = first_block; block < row_blocks; block += gridDim.x) {
            if (block == asking_block && Epilogue::pilot_failed(out)) {
                __syncwarp(); // other lanes have written the first rounds'
                for (block = first_block; block < row_blocks;
                     block += gridDim.x) {
                    Epilogue::overflow_strip(
                            args, out, block * kRows + (warp - 4) * 16);
                }
                break;
            }
            epilogue.begin(block * kRows + (warp - 4) * 16);
            ptx::barrier_wait(barrier(kRowsFull, w), row_phase);
            row_phase ^= 1;
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                const uint32_t piece = k % 4 * 2 + lane / 16;
                ptx::load_matrix(
                        a[k],
                        my_rows + k / 4 * L::kRowChunkBytes +
                                ((piece ^ (row_in_group & 7)) << 4));
            }
            ptx::load_matrix(a[kSteps], my_slots);
            int tile = offset;
            for (int i = 0; i < tiles; i++) {
                const uint32_t at = base + stage * L::kStageBytes;
                ptx::barrier_wait(barrier(kFull, stage), phase);
                ptx::wgmma_fence();
#pragma unroll
                for (int k = 0; k < kSteps; k++) {
                    // 16 halves further: 32 bytes
                    ptx::wgmma_m64n128k16(
                            c,
                            a[k],
                            ptx::wgmma_descriptor(at + k / 4 * L::kChunkBytes) +
                                    2 * (k % 4),
                            k > 0);
                }
                ptx::wgmma_m64n128k16(
                        c,
                        a[kSteps],
                        ptx::wgmma_descriptor_narrow(
                                at + L::kChunks * L::kChunkBytes),
                        true);
                ptx::wgmma_commit();
                ptx::wgmma_wait<0>();
                release();
                if (i == 0 && lane == 0) {
                    // Not right after load_matrix: an arrival can overtake it.
                    ptx::barrier_arrive(barrier(kRowsEmpty, w));
                }
                epilogue.scores(c, (begin + tile) * kColumns);
                tile = tile + 1 == tiles ? 0 : tile + 1;
            }
            epilogue.finish_scores();
        }
        skip(first_tile(kConsumers - 1, tiles) - offset);
    }
}

template <class Epilogue, int kSteps>
void launch(
        const ScoreArgs& args,
        const typename Epilogue::Args& out,
        int shared_limit,
        int processors,
        cudaStream_t stream) {
    using L = Layout<Epilogue, kSteps>;
    // Where warpgroups begin a tile or more apart, they take turns.
    const int buffers = args.components / kColumns / args.splits >= kConsumers
            ? 1
            : kConsumers;
    int capacity = 0;
    if constexpr (L::kRecordBytes > 0) {
        capacity = std::min(
                (shared_limit - L::lists_at(buffers) - kBarrierBytes) /
                        L::kRecordBytes,
                SelectEpilogue::kMaxCapacity);
    }
    const int shared =
            L::lists_at(buffers) + capacity * L::kRecordBytes + kBarrierBytes;
    allow_shared(folded_kernel<Epilogue, kSteps>, shared);
    const AugmentedOperands& folded = args.folded;
    const AugmentedMaps maps(
            args.rows_operand,
            kGroupRows,
            CU_TENSOR_MAP_SWIZZLE_NONE,
            folded.row_slots,
            folded.components,
            folded.component_slots);
    const int blocks = std::min(processors, (args.rows + kRows - 1) / kRows);
    // Blocks that wait for one another must all be there.
    cudaLaunchAttribute cooperative;
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks, args.splits);
    config.blockDim = kThreads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &cooperative;
    auto mine = out;
    if constexpr (requires { mine.pilot; }) {
        if (mine.pilot && args.rows >= kPilotShare * blocks * kRows) {
            mine.pilot_rows = blocks * kRows;
            config.numAttrs = 1;
        }
    }
    const auto start = [&] {
        return cudaLaunchKernelEx(
                &config,
                folded_kernel<Epilogue, kSteps>,
                maps,
                args,
                mine,
                buffers,
                capacity);
    };
    cudaError_t error = start();
    if constexpr (requires { mine.pilot; }) {
        if (error == cudaErrorCooperativeLaunchTooLarge) {
            cudaGetLastError(); // part of the device is not ours: no pilot
            mine.pilot_rows = 0;
            config.numAttrs = 0;
            error = start();
        }
    }
    check(error, "folded kernel");
}

} // namespace

template <class Out>
void score_folded(const ScoreArgs& args, const Out& out, cudaStream_t stream) {
    using Epilogue = EpilogueOf<Out>;
    const int device = current_device();
    const int processors =
            device_attribute(cudaDevAttrMultiProcessorCount, device);
    const int shared =
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int steps = (args.d + 15) / 16;
    const auto run = steps <= 2 ? launch<Epilogue, 2>
            : steps <= 4        ? launch<Epilogue, 4>
            : steps <= 6        ? launch<Epilogue, 6>
            : steps == 7        ? launch<Epilogue, 7>
                                : launch<Epilogue, 8>;
    run(args, out, shared, processors, stream);
}

template void score_folded(const ScoreArgs&, const SelectArgs&, cudaStream_t);
template void score_folded(const ScoreArgs&, const LseArgs&, cudaStream_t);

} // namespace gmm::cuda
