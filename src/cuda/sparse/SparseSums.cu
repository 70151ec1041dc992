#include <cub/block/block_reduce.cuh>
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>

#include "cuda/sparse/SparseSums.cuh"

namespace gmm::cuda {

namespace {

constexpr int kSumWarps = 8;

template <bool kLo, bool kSquares>
__global__ void __launch_bounds__(32 * kSumWarps, 3)
        sum_kernel(const __grid_constant__ SumArgs args) {
    extern __shared__ __align__(16) unsigned char all_shared[];
    const int warp = threadIdx.x / 32;
    sum_range<kLo, kSquares>(
            args,
            blockIdx.x * kSumWarps + warp,
            blockIdx.y,
            reinterpret_cast<SumShared<kLo>*>(all_shared)[warp]);
}

constexpr int kCollectColumns = 256;
constexpr int kCollectSlices = 4; ///< that share a component's groups

/// One block a component: its pieces, in a fixed order, into the sums.
__global__ void __launch_bounds__(kCollectColumns* kCollectSlices)
        collect_kernel(
                const __grid_constant__ SumArgs args,
                int groups,
                const __grid_constant__ DeviceSums sums) {
    __shared__ double parts[kCollectSlices][kCollectColumns];
    __shared__ uint32_t begins[kMaxGroups], ends[kMaxGroups];
    const int k = blockIdx.x;
    const auto key = [&](int g) {
        return uint32_t(g) << args.layout.component_bits | k;
    };
    if (threadIdx.y == 0) {
        for (int g = threadIdx.x; g < groups; g += blockDim.x) {
            begins[g] = args.starts[key(g)];
            ends[g] = args.starts[key(g) + 1];
        }
    }
    __syncthreads();
    const bool squares = sums.y2;
    const int size = piece_size(sums.d, squares);
    const int used = 2 + sums.d * (squares ? 2 : 1);
    for (int j0 = 0; j0 < used; j0 += blockDim.x) {
        const int j = j0 + threadIdx.x;
        double sum = 0;
#pragma unroll 4
        for (int g = threadIdx.y; g < groups; g += kCollectSlices) {
            if (j < used) {
                sum += collect_pieces(
                        args, begins[g], ends[g], key(g), size, j);
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
    const TripleLayout layout = s.layout(count);
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
    args.row_constant = rows.summed_constant(lo) + row_begin;
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
    allow_shared(kernel, shared);
    kernel<<<grid, 32 * kSumWarps, shared, stream>>>(args);
    check_launch("segment sums");
    const int passes = (piece + kCollectColumns - 1) / kCollectColumns;
    const int columns = (piece / passes + 31) / 32 * 32;
    collect_kernel<<<sums.k, dim3(columns, kCollectSlices), 0, stream>>>(
            args, s.groups_, sums);
    check_launch("collection of sums");
}

void sum_values(
        const ValueSum& first, const ValueSum& second, cudaStream_t stream) {
    values_kernel<<<dim3(kSumBlocks, second.count ? 2 : 1), 256, 0, stream>>>(
            first, second);
    check_launch("sum of values");
}

} // namespace gmm::cuda
