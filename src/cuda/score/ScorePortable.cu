#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/score/Select.cuh"

namespace gmm::cuda {

namespace {

/** The portable kernel: 128 rows by 128 components, four warps of 32 rows.
 *
 * A warp owns whole rows, so that no epilogue needs another warp. Both
 * operands stream through three stages of 32 dimensions, each row 64 bytes,
 * swizzled by 16-byte pieces against bank conflicts.
 */
constexpr int kRows = 128;
constexpr int kColumns = 128;
constexpr int kGroups = kColumns / 8;
constexpr int kThreads = 128;
constexpr int kDepth = 32;
constexpr int kOperandBytes = 128 * kDepth * 2;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kStages = 3;
constexpr int kStrips = kRows / 16;

__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
    return row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
}

/// 128 rows of an operand, 32 dimensions from `column`; zeros outside.
__device__ __forceinline__ void load_operand(
        uint32_t to,
        const Operand& operand,
        int plane,
        int64_t first,
        int valid_rows,
        int column) {
    constexpr int kPieces = kDepth / 8;
    const int piece = threadIdx.x % kPieces;
    const int at = column + piece * 8;
    const __half* from = operand.data +
            (int64_t(plane) * operand.rows + first) * operand.pitch + at;
#pragma unroll
    for (int i = 0; i < 128 / (kThreads / kPieces); i++) {
        const int row = i * (kThreads / kPieces) + threadIdx.x / kPieces;
        const bool valid = row < valid_rows && at < operand.pitch;
        ptx::copy_async(
                to + swizzled(row, piece),
                valid ? from + int64_t(row) * operand.pitch : operand.data,
                valid);
    }
}

/// c += 32 rows by 128 components over one stage.
__device__ __forceinline__ void multiply(
        float (&c)[2][kGroups][4], uint32_t a, uint32_t b, int steps) {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < kDepth / 16; k++) {
        if (k >= steps) {
            break;
        }
        uint32_t rows[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            ptx::load_matrix(
                    rows[m],
                    a +
                            swizzled(
                                    warp * 32 + m * 16 + lane % 16,
                                    k * 2 + lane / 16));
        }
#pragma unroll
        for (int g = 0; g < kGroups; g += 2) {
            uint32_t columns[4];
            ptx::load_matrix(
                    columns,
                    b +
                            swizzled(
                                    g * 8 + lane % 8 + lane / 16 * 8,
                                    k * 2 + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                ptx::mma_m16n8k16(c[m][g], rows[m], columns[0], columns[1]);
                ptx::mma_m16n8k16(c[m][g + 1], rows[m], columns[2], columns[3]);
            }
        }
    }
}

template <class Epilogue>
__global__ void __launch_bounds__(kThreads, 2) score_kernel(
        const __grid_constant__ ScoreArgs args,
        const __grid_constant__ typename Epilogue::Args out,
        int capacity) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t stages = ptx::smem_address(shared);
    const int warp = threadIdx.x / 32;
    const int first = blockIdx.x * kRows;

    const int depths = (args.d + kDepth - 1) / kDepth;
    const int chunks = depths * args.num_terms;
    const int all_tiles = args.components / kColumns;
    const int first_tile = int(int64_t(all_tiles) * blockIdx.y / gridDim.y);
    const int last_tile =
            int(int64_t(all_tiles) * (blockIdx.y + 1) / gridDim.y);
    const int first_component = args.component_begin + first_tile * kColumns;
    const int total = (last_tile - first_tile) * chunks;

    // What the next load fetches; loads come in order.
    int load_step = 0, load_term = 0, load_depth = 0;
    int load_component = first_component;
    auto load = [&] {
        const int term = load_term, column = load_depth * kDepth;
        const int component = load_component;
        const uint32_t to = stages + load_step % kStages * kStageBytes;
        if (load_step++ >= total) {
            ptx::copy_async_commit(); // an empty group keeps the count
            return;
        }
        if (++load_depth == depths) {
            load_depth = 0;
            if (++load_term == args.num_terms) {
                load_term = 0;
                load_component += kColumns;
            }
        }
        load_operand(
                to,
                args.rows_operand,
                args.term_rows[term],
                args.row_begin + first,
                args.rows - first,
                column);
        load_operand(
                to + kOperandBytes,
                args.components_operand,
                args.term_components[term],
                component,
                kColumns,
                column);
        ptx::copy_async_commit();
    };

    const int strip_bytes = capacity * Epilogue::kSharedPerRecord;
    const uint32_t lists =
            stages + kStages * kStageBytes + warp * 2 * strip_bytes;
    Epilogue epilogue[2] = {
            {args, out, lists, capacity},
            {args, out, lists + strip_bytes, capacity}};
    epilogue[0].begin(first + warp * 32);
    epilogue[1].begin(first + warp * 32 + 16);

    float c[2][kGroups][4] = {};
    load();
    load();
    int chunk = 0, depth = 0, column = first_component;
    for (int step = 0; step < total; step++) {
        ptx::copy_async_wait<kStages - 2>();
        // This stage is full for all, and the one before is free.
        __syncthreads();
        load();
        const uint32_t at = stages + step % kStages * kStageBytes;
        const int left = args.d - depth * kDepth;
        depth = depth + 1 == depths ? 0 : depth + 1;
        multiply(c, at, at + kOperandBytes, (left + 15) / 16);
        if (++chunk == chunks) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
                epilogue[m].tile(c[m], column, args.component_constants);
#pragma unroll
                for (int g = 0; g < kGroups; g++) {
                    c[m][g][0] = c[m][g][1] = c[m][g][2] = c[m][g][3] = 0;
                }
            }
            chunk = 0;
            column += kColumns;
        }
    }
    epilogue[0].finish();
    epilogue[1].finish();
}

template <class Epilogue>
void launch(
        const ScoreArgs& args,
        const typename Epilogue::Args& out,
        cudaStream_t stream) {
    // Lists get what two blocks on a processor leave, or at least ten records.
    const int device = current_device();
    const int per_processor = device_attribute(
            cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    const int per_block =
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    constexpr int kRecord = kStrips * Epilogue::kSharedPerRecord;
    int capacity = 0;
    if constexpr (kRecord > 0) {
        capacity = (per_processor / 2 - 1024 - kStages * kStageBytes) / kRecord;
        if (capacity < 8) {
            capacity = (per_block - kStages * kStageBytes) / kRecord;
        }
        capacity = std::min(capacity, SelectEpilogue::kMaxCapacity);
    }
    const int shared = kStages * kStageBytes + capacity * kRecord;
    allow_shared(score_kernel<Epilogue>, shared);
    const dim3 grid((args.rows + kRows - 1) / kRows, args.splits);
    score_kernel<Epilogue>
            <<<grid, kThreads, shared, stream>>>(args, out, capacity);
    check_launch("portable score kernel");
}

} // namespace

template <class Out>
void score_portable(
        const ScoreArgs& args, const Out& out, cudaStream_t stream) {
    launch<EpilogueOf<Out>>(args, out, stream);
}

template void score_portable(const ScoreArgs&, const SelectArgs&, cudaStream_t);
template void score_portable(const ScoreArgs&, const LseArgs&, cudaStream_t);
template void score_portable(
        const ScoreArgs&, const ResponsibilityArgs&, cudaStream_t);
template void score_portable(const ScoreArgs&, const LogitArgs&, cudaStream_t);

} // namespace gmm::cuda
