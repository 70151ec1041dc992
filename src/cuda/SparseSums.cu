#include <cub/block/block_reduce.cuh>
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>

#include "Entry.cuh"
#include "Evaluate.cuh"
#include "Ptx.cuh"

namespace gmm::cuda {

namespace {

/// Dimensions that a warp sums: eight a lane, each half its own entries.
constexpr int kSlab = 128;

struct SumArgs {
    const uint64_t* entries; ///< sorted
    EntryLayout layout;
    uint32_t count;
    const __half* hi; ///< plane, from the block's first row
    const __half* lo;
    const float* row_constant;
    const unsigned char* narrow; ///< components that lo counts in, or nullptr
    int d, pitch;
    float* head;  ///< [ranges] the piece that a range begins with
    float* tail;  ///< [ranges] the piece that it ends with, if another
    float* whole; ///< [groups][k] a piece that lies inside a range
    int k;
    uint32_t* starts; ///< [keys + 1] the first entry whose key is not below
    uint32_t keys;
};

__device__ __forceinline__ size_t whole_at(const SumArgs& args, uint32_t key) {
    return size_t(key >> args.layout.component_bits) * args.k +
            key_component(args.layout, key);
}

constexpr int kSumWarps = 8;
constexpr int kGroups = kRange / 32; ///< entries of a lane

/// What a warp holds of its range. Rows come a batch ahead.
template <bool kLo>
struct SumShared {
    static constexpr int kBatch = kLo ? 8 : 16; ///< rows
    __half x[2][kLo ? 2 : 1][kBatch][kSlab];
    uint32_t row[kRange];
    float value[kRange];
    uint32_t turns[kGroups]; ///< entries that begin another component
    uint32_t lo[kGroups];    ///< and those that second halves count in
};

/// What a lane keeps of its entries: every 32nd.
struct LaneEntries {
    float constant[kGroups]; ///< of their rows
    uint32_t key[kGroups];
};

/// Reads a range's entries, and tells where keys begin.
template <bool kLo>
__device__ __forceinline__ LaneEntries read_range(
        const SumArgs& args,
        uint32_t begin,
        int count,
        SumShared<kLo>& shared) {
    constexpr uint32_t kAll = 0xffffffffu;
    const int lane = threadIdx.x % 32;
    // Entry `at` is the first of key `to`; those from `from` on have none.
    const auto begins = [&](uint32_t from, uint32_t to, uint32_t at) {
        for (uint32_t k = from + lane; k <= to && blockIdx.y == 0; k += 32) {
            args.starts[k] = at;
        }
    };
    uint64_t entry[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
        // Behind the end: the last entry, of which nothing is added.
        entry[g] = args.entries[begin + min(g * 32 + lane, count - 1)];
    }
    const uint32_t next_key =
            begin ? entry_key(args.layout, args.entries[begin - 1]) + 1 : 0;
    uint32_t last = __shfl_sync(kAll, entry_key(args.layout, entry[0]), 0);
    begins(next_key, last, begin);
    LaneEntries mine;
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
        const int i = g * 32 + lane;
        const uint32_t key = mine.key[g] = entry_key(args.layout, entry[g]);
        const uint32_t row = entry_row(args.layout, entry[g]);
        shared.row[i] = row;
        shared.value[i] = i < count ? entry_value(args.layout, entry[g]) : 0.f;
        mine.constant[g] = args.row_constant[row];
        uint32_t before = __shfl_up_sync(kAll, key, 1);
        before = lane ? before : last;
        last = __shfl_sync(kAll, key, 31);
        const uint32_t turns = __ballot_sync(kAll, key != before);
        for (uint32_t left = turns; left; left &= left - 1) {
            const int source = __ffs(left) - 1;
            begins(__shfl_sync(kAll, before, source) + 1,
                   __shfl_sync(kAll, key, source),
                   begin + g * 32 + source);
        }
        const bool needs_lo = kLo &&
                (!args.narrow ||
                 args.narrow[key_component(args.layout, key)] > 1);
        const uint32_t lo = __ballot_sync(kAll, needs_lo);
        if (lane == 0) {
            shared.turns[g] = turns;
            shared.lo[g] = lo;
        }
    }
    if (begin + count == args.count) {
        begins(last + 1, args.keys, args.count);
    }
    __syncwarp();
    return mine;
}

/** One warp a range and slab of dimensions. A half-warp takes every second
 * entry; each lane reads what it has copied itself. */
template <bool kLo, bool kSquares>
__global__ void __launch_bounds__(32 * kSumWarps, 3)
        sum_kernel(const __grid_constant__ SumArgs args) {
    using Shared = SumShared<kLo>;
    constexpr uint32_t kAll = 0xffffffffu;
    constexpr int kBatch = Shared::kBatch;
    constexpr uint32_t kBatchBits = (1u << kBatch) - 1;
    extern __shared__ __align__(16) unsigned char all_shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int half = lane / 16, x_at = lane % 16 * 8;
    Shared& shared = reinterpret_cast<Shared*>(all_shared)[warp];
    const uint32_t range = blockIdx.x * kSumWarps + warp;
    const uint32_t begin = range * kRange;
    if (begin >= args.count) {
        return;
    }
    const int count = int(min(uint32_t(kRange), args.count - begin));
    const int column = blockIdx.y * kSlab + x_at;
    const int size = piece_size(args.d, kSquares);
    const LaneEntries entries = read_range<kLo>(args, begin, count, shared);
    const auto bits = [&](const uint32_t(&of)[kGroups], int first) {
        return of[first / 32] >> first % 32 & kBatchBits;
    };
    const auto fetch = [&](int first) {
        if (first < count && column < args.pitch) {
            auto& x = shared.x[first / kBatch % 2];
            // Entries are sorted by component: it is rarely some of them.
            const bool any_lo = kLo && bits(shared.lo, first);
            uint32_t row[kBatch / 2];
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                row[i / 2] = shared.row[first + i + half];
            }
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                const size_t at = size_t(row[i / 2]) * args.pitch + column;
                ptx::copy_async(
                        ptx::smem_address(&x[0][i + half][x_at]),
                        args.hi + at,
                        true);
                if (any_lo) {
                    ptx::copy_async(
                            ptx::smem_address(&x[kLo][i + half][x_at]),
                            args.lo + at,
                            true);
                }
            }
        }
        ptx::copy_async_commit();
    };

    float y[8] = {}, y2[8] = {};
    const auto add = [&](int i, float r, bool any_lo) {
        const auto& x = shared.x[i / kBatch % 2];
        float v[8];
        widen(*reinterpret_cast<const uint4*>(&x[0][i % kBatch][x_at]), v);
        if (any_lo) {
            float rest[8];
            widen(*reinterpret_cast<const uint4*>(&x[kLo][i % kBatch][x_at]),
                  rest);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] += rest[j];
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float rx = r * v[j];
            y[j] = kSquares ? y[j] + rx : fmaf(r, v[j], y[j]);
            y2[j] = kSquares ? fmaf(rx, v[j], y2[j]) : 0.f;
        }
    };
    int from = 0; // where the current component begins
    const auto flush = [&](int to, float* piece) {
        float n = 0, q = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const int i = g * 32 + lane;
            const float r = i >= from && i < to ? shared.value[i] : 0.f;
            n += r;
            q = fmaf(r, entries.constant[g], q);
        }
#pragma unroll
        for (int step = 16; step; step /= 2) {
            n += __shfl_xor_sync(kAll, n, step);
            q += __shfl_xor_sync(kAll, q, step);
        }
        if (blockIdx.y == 0 && lane == 0) {
            piece[0] = n;
            piece[1] = q;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            y[j] += __shfl_xor_sync(kAll, y[j], 16);
            y2[j] += kSquares ? __shfl_xor_sync(kAll, y2[j], 16) : 0.f;
            if (half == j / 4 && column + j < args.d) {
                piece[2 + column + j] = y[j];
                if (kSquares) {
                    piece[2 + args.d + column + j] = y2[j];
                }
            }
            y[j] = y2[j] = 0;
        }
        from = to;
    };
    const auto key_at = [&](int i) {
        uint32_t key = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
            const uint32_t other = __shfl_sync(kAll, entries.key[g], i % 32);
            key = i / 32 == g ? other : key;
        }
        return key;
    };

    fetch(0);
#pragma unroll 1
    for (int batch = 0; batch < count; batch += kBatch) {
        fetch(batch + kBatch);
        ptx::copy_async_wait<1>();
        const bool any_lo = kLo && bits(shared.lo, batch);
        // Once, but for the batches in which components change.
        uint32_t turns = bits(shared.turns, batch);
        for (int done = 0;; turns &= turns - 1) {
            const int to = turns ? __ffs(turns) - 1 : kBatch;
            const uint32_t mine = ((1u << to) - (1u << done)) >> half;
            asm volatile("" ::: "memory"); // registers are short for all rows
#pragma unroll
            for (int i = 0; i < kBatch; i += 2) {
                const float r = shared.value[batch + i + half];
                add(batch + i + half, mine >> i & 1 ? r : 0.f, any_lo);
            }
            if (!turns) {
                break;
            }
            float* const piece = from
                    ? args.whole + whole_at(args, key_at(from)) * size
                    : args.head + size_t(range) * size;
            flush(batch + to, piece);
            done = to;
        }
        __syncwarp(); // all has been read where the next fetch writes
    }
    flush(count, (from ? args.tail : args.head) + size_t(range) * size);
}

constexpr int kCollectColumns = 256;
constexpr int kCollectSlices = 4; ///< that share a component's groups

/// One block a component: its pieces, in a fixed order, into the sums.
__global__ void __launch_bounds__(kCollectColumns* kCollectSlices)
        collect_kernel(
                const uint32_t* starts,
                int groups,
                int component_bits,
                const float* head,
                const float* tail,
                const float* whole,
                const __grid_constant__ DeviceSums sums) {
    __shared__ double parts[kCollectSlices][kCollectColumns];
    __shared__ uint32_t begins[kMaxGroups], ends[kMaxGroups];
    const int k = blockIdx.x;
    if (threadIdx.y == 0) {
        for (int g = threadIdx.x; g < groups; g += blockDim.x) {
            const uint32_t key = uint32_t(g) << component_bits | k;
            begins[g] = starts[key];
            ends[g] = starts[key + 1];
        }
    }
    __syncthreads();
    const uint32_t count = starts[size_t(groups) << component_bits];
    const bool squares = sums.y2;
    const int size = piece_size(sums.d, squares);
    const int used = 2 + sums.d * (squares ? 2 : 1);
    for (int j0 = 0; j0 < used; j0 += blockDim.x) {
        const int j = j0 + threadIdx.x;
        double sum = 0;
#pragma unroll 4
        for (int g = threadIdx.y; g < groups; g += kCollectSlices) {
            const uint32_t begin = begins[g], end = ends[g];
            if (begin == end || j >= used) {
                continue;
            }
            const uint32_t first = begin / kRange, last = (end - 1) / kRange;
            // A range's last piece is its tail also where it ends with it.
            const bool reaches_end =
                    last > first || end % kRange == 0 || end == count;
            sum += begin % kRange == 0 ? head[size_t(first) * size + j]
                    : reaches_end      ? tail[size_t(first) * size + j]
                                  : whole[(size_t(g) * sums.k + k) * size + j];
            for (uint32_t r = first + 1; r <= last; r++) {
                sum += head[size_t(r) * size + j];
            }
        }
        parts[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && j < used) {
            for (int slice = 1; slice < kCollectSlices; slice++) {
                sum += parts[slice][threadIdx.x];
            }
            double& to = j == 0 ? sums.n_k[k]
                    : j == 1    ? sums.constant[k]
                    : j < 2 + sums.d
                    ? sums.y[size_t(k) * sums.d + j - 2]
                    : sums.y2[size_t(k) * sums.d + j - 2 - sums.d];
            to += sum;
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(256)
        values_kernel(const ValueSum first, const ValueSum second) {
    const ValueSum of = blockIdx.y ? second : first;
    double sum = 0;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < of.count;
         i += 256 * kSumBlocks) {
        sum += of.weight ? double(of.weight[i]) * of.values[i]
                         : double(of.values[i]);
    }
    using Reduce = cub::BlockReduce<double, 256>;
    __shared__ Reduce::TempStorage storage;
    __shared__ bool is_last;
    sum = Reduce(storage).Sum(sum);
    if (threadIdx.x == 0) {
        of.scratch[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicInc(of.done, kSumBlocks - 1) == kSumBlocks - 1;
    }
    __syncthreads();
    if (is_last) { // all parts, in their order
        __threadfence();
        sum = Reduce(storage).Sum(__ldcg(of.scratch + threadIdx.x));
        if (threadIdx.x == 0) {
            *of.sum += sum;
        }
    }
}
static_assert(kSumBlocks == 256);

} // namespace

void SparseStep::accumulate(
        SparseScratch& s,
        const PreparedRows& rows,
        int64_t row_begin,
        int count,
        bool lo,
        const unsigned char* narrow,
        const DeviceSums& sums,
        cudaStream_t stream) {
    if (entries == 0) {
        return;
    }
    const EntryLayout layout = s.layout(count);
    cub::DoubleBuffer<uint64_t> sorted(s.entries_[0], s.entries_[1]);
    const unsigned keys = unsigned(s.groups_) << layout.component_bits;
    const int key_at = layout.row_bits + layout.value_bits;
    size_t temporary = s.temporary_bytes_;
    check(cub::DeviceRadixSort::SortKeys(
                  s.temporary_,
                  temporary,
                  sorted,
                  int(entries),
                  key_at,
                  key_at + std::max(1, int(std::bit_width(keys - 1))),
                  stream),
          "sorting by component");
    SumArgs args;
    args.entries = sorted.Current();
    args.layout = layout;
    args.count = uint32_t(entries);
    args.d = sums.d;
    args.pitch = rows.operand.pitch;
    const bool squares = sums.y2;
    args.hi = rows.operand.data + row_begin * args.pitch;
    args.lo = lo ? args.hi + rows.operand.rows * args.pitch * (squares ? 2 : 1)
                 : nullptr;
    args.row_constant =
            (lo ? rows.row_constant : rows.row_constant_hi) + row_begin;
    args.narrow = narrow;
    args.head = s.head_;
    args.tail = s.tail_;
    args.whole = s.whole_;
    args.k = sums.k;
    args.starts = s.starts_;
    args.keys = keys;
    const int piece = piece_size(sums.d, squares);
    const int ranges = int((entries + kRange - 1) / kRange);
    const dim3 grid(
            (ranges + kSumWarps - 1) / kSumWarps, (sums.d + kSlab - 1) / kSlab);
    const auto kernel = lo
            ? (squares ? sum_kernel<true, true> : sum_kernel<true, false>)
            : (squares ? sum_kernel<false, true> : sum_kernel<false, false>);
    const int shared = kSumWarps *
            (lo ? sizeof(SumShared<true>) : sizeof(SumShared<false>));
    check(cudaFuncSetAttribute(
                  kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "shared memory of the sums");
    kernel<<<grid, 32 * kSumWarps, shared, stream>>>(args);
    check_launch("segment sums");
    const int passes = (piece + kCollectColumns - 1) / kCollectColumns;
    const int columns = (piece / passes + 31) / 32 * 32;
    collect_kernel<<<sums.k, dim3(columns, kCollectSlices), 0, stream>>>(
            s.starts_,
            s.groups_,
            layout.component_bits,
            s.head_,
            s.tail_,
            s.whole_,
            sums);
    check_launch("collection of sums");
}

void sum_values(
        const ValueSum& first, const ValueSum& second, cudaStream_t stream) {
    values_kernel<<<dim3(kSumBlocks, second.count ? 2 : 1), 256, 0, stream>>>(
            first, second);
    check_launch("sum of values");
}

} // namespace gmm::cuda
