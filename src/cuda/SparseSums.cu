#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>

#include "Evaluate.cuh"
#include "Sparse.h"

namespace gmm::cuda {

namespace {

/// Dimensions that a warp sums: eight a lane, each half its own entries.
constexpr int kSlab = 128;

/// starts[key]: the first entry whose key is not below.
__global__ void starts_kernel(
        const uint32_t* keys, uint32_t count, int k, uint32_t* starts) {
    const int key = blockIdx.x * blockDim.x + threadIdx.x;
    if (key > k) {
        return;
    }
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (keys[middle] < uint32_t(key)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    starts[key] = low;
}

struct SumArgs {
    const uint32_t* keys;
    const uint2* values;
    uint32_t count;
    const __half* hi; ///< plane, from the block's first row
    const __half* lo;
    const float* row_constant;
    const unsigned char* narrow; ///< components that lo counts in, or nullptr
    int d, k, pitch;
    float* head;  ///< [ranges] the piece that a range begins with
    float* tail;  ///< [ranges] the piece that it ends with, if another
    float* whole; ///< [k] a piece that lies inside a range
};

/** One warp a range and slab of dimensions. Keys and values are read once a
 * warp and handed around; a half-warp takes every second entry, and rows are
 * fetched several at a time, before they are needed. */
template <bool kLo, bool kSquares>
__global__ void __launch_bounds__(256)
        sum_kernel(const __grid_constant__ SumArgs args) {
    constexpr int kPairs = kLo ? 4 : 8; ///< of entries that are fetched at once
    const uint32_t range = blockIdx.x * 8 + threadIdx.x / 32;
    const int lane = threadIdx.x % 32, half = lane / 16;
    const uint32_t begin = range * kRange;
    if (begin >= args.count) {
        return;
    }
    const int column = blockIdx.y * kSlab + lane % 16 * 8;
    const bool inside = column < args.pitch;
    const int size = piece_size(args.d, kSquares);

    float n = 0, q = 0, y[8] = {}, y2[8] = {};
    uint32_t current = args.keys[begin];
    bool first = true;
    auto whole = [](float x) {
        return x + __shfl_xor_sync(0xffffffffu, x, 16);
    };
    auto flush = [&](float* piece) {
        n = whole(n);
        q = whole(q);
        if (blockIdx.y == 0 && lane == 0) {
            piece[0] = n;
            piece[1] = q;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            y[i] = whole(y[i]);
            if (kSquares) {
                y2[i] = whole(y2[i]);
            }
            if (half == i / 4 && column + i < args.d) {
                piece[2 + column + i] = y[i];
                if (kSquares) {
                    piece[2 + args.d + column + i] = y2[i];
                }
            }
            y[i] = y2[i] = 0;
        }
        n = q = 0;
    };
    auto turn_to = [&](uint32_t key) {
        if (key != current) {
            flush(first ? args.head + size_t(range) * size
                        : args.whole + size_t(current) * size);
            first = false;
            current = key;
        }
    };

#pragma unroll 1
    for (int group = 0; group < kRange / 32; group++) {
        const uint32_t mine = begin + group * 32 + lane;
        if (begin + group * 32 >= args.count) {
            break;
        }
        const int count = int(min(32u, args.count - (begin + group * 32)));
        // Beyond the end: the last component, of which nothing is added.
        const bool valid = mine < args.count;
        const uint32_t key = args.keys[min(mine, args.count - 1)];
        const uint2 value = valid ? args.values[mine] : make_uint2(0, 0);
        const float constant = args.row_constant[value.x];
        const uint32_t with_lo = kLo
                ? __ballot_sync(
                          0xffffffffu,
                          valid &&
                                  (!args.narrow ||
                                   args.narrow[key % args.k] > 1))
                : 0;
#pragma unroll 1
        for (int e = 0; e < count; e += 2 * kPairs) {
            uint4 hi[kPairs], lo[kPairs];
            // Entries are sorted by component: it is rarely some of them.
            const bool any_lo =
                    kLo && (with_lo >> e & ((1u << 2 * kPairs) - 1));
#pragma unroll
            for (int i = 0; i < kPairs; i++) {
                const uint32_t row =
                        __shfl_sync(0xffffffffu, value.x, e + 2 * i + half);
                const size_t at = size_t(row) * args.pitch + column;
                hi[i] = inside ? *reinterpret_cast<const uint4*>(args.hi + at)
                               : make_uint4(0, 0, 0, 0);
                if (kLo) {
                    lo[i] = inside && any_lo
                            ? *reinterpret_cast<const uint4*>(args.lo + at)
                            : make_uint4(0, 0, 0, 0);
                }
            }
#pragma unroll
            for (int i = 0; i < kPairs; i++) {
                const int at = e + 2 * i;
                const uint32_t k0 = __shfl_sync(0xffffffffu, key, at);
                const uint32_t k1 = __shfl_sync(0xffffffffu, key, at + 1);
                const float r = __uint_as_float(
                        __shfl_sync(0xffffffffu, value.y, at + half));
                const float c = __shfl_sync(0xffffffffu, constant, at + half);
                if (at >= count) {
                    break;
                }
                auto add = [&](float weight) {
                    n += weight;
                    q = fmaf(weight, c, q);
                    float x[8];
                    widen(hi[i], x);
                    if (kLo) {
                        float rest[8];
                        widen(lo[i], rest);
#pragma unroll
                        for (int j = 0; j < 8; j++) {
                            x[j] += rest[j];
                        }
                    }
#pragma unroll
                    for (int j = 0; j < 8; j++) {
                        if (kSquares) {
                            const float rx = weight * x[j];
                            y[j] += rx;
                            y2[j] = fmaf(rx, x[j], y2[j]);
                        } else {
                            y[j] = fmaf(weight, x[j], y[j]);
                        }
                    }
                };
                turn_to(k0);
                if (k1 == k0) {
                    add(r);
                } else {
                    add(half ? 0.f : r);
                    turn_to(k1);
                    add(half ? r : 0.f);
                }
            }
        }
    }
    flush((first ? args.head : args.tail) + size_t(range) * size);
}

constexpr int kCollectColumns = 256;
constexpr int kCollectSlices = 4; ///< that share a component's groups

/// One block a component: its pieces, in a fixed order, into the sums.
__global__ void __launch_bounds__(kCollectColumns* kCollectSlices)
        collect_kernel(
                const uint32_t* starts,
                int groups,
                const float* head,
                const float* tail,
                const float* whole,
                const __grid_constant__ DeviceSums sums) {
    __shared__ double parts[kCollectSlices][kCollectColumns];
    const int k = blockIdx.x;
    const uint32_t count = starts[groups * sums.k];
    const bool squares = sums.y2;
    const int size = piece_size(sums.d, squares);
    const int used = 2 + sums.d * (squares ? 2 : 1);
    for (int j0 = 0; j0 < used; j0 += blockDim.x) {
        const int j = j0 + threadIdx.x;
        double sum = 0;
        for (int g = threadIdx.y; g < groups && j < used; g += blockDim.y) {
            const int key = g * sums.k + k;
            const uint32_t begin = starts[key], end = starts[key + 1];
            if (begin == end) {
                continue;
            }
            const uint32_t first = begin / kRange, last = (end - 1) / kRange;
            // A range's last piece is its tail also where it ends with it.
            const bool reaches_end =
                    last > first || end % kRange == 0 || end == count;
            sum += begin % kRange == 0 ? head[size_t(first) * size + j]
                    : reaches_end      ? tail[size_t(first) * size + j]
                                       : whole[size_t(key) * size + j];
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
    __shared__ double parts[8];
    for (int step = 16; step; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (double p : parts) {
            sum += p;
        }
        of.scratch[blockIdx.x] = sum;
    }
}

__global__ void add_kernel(const ValueSum first, const ValueSum second) {
    const ValueSum of = blockIdx.x ? second : first;
    double all = 0;
    for (int i = threadIdx.x; i < kSumBlocks; i += 32) {
        all += of.scratch[i];
    }
    for (int step = 16; step; step /= 2) {
        all += __shfl_xor_sync(0xffffffffu, all, step);
    }
    if (threadIdx.x == 0) {
        *of.sum += all;
    }
}

} // namespace

void SparseStep::accumulate(
        SparseScratch& s,
        const PreparedRows& rows,
        int64_t row_begin,
        bool lo,
        const unsigned char* narrow,
        const DeviceSums& sums,
        cudaStream_t stream) {
    if (entries == 0) {
        return;
    }
    cub::DoubleBuffer<uint32_t> keys(s.sorted_keys_[0], s.sorted_keys_[1]);
    cub::DoubleBuffer<uint2> values(s.sorted_values_[0], s.sorted_values_[1]);
    const unsigned keys_used = unsigned(sums.k) * unsigned(s.groups_);
    const int bits = std::max(1, int(std::bit_width(keys_used - 1)));
    size_t temporary = s.temporary_bytes_;
    check(cub::DeviceRadixSort::SortPairs(
                  s.temporary_,
                  temporary,
                  keys,
                  values,
                  int(entries),
                  0,
                  bits,
                  stream),
          "sorting by component");
    starts_kernel<<<(keys_used + 256) / 256, 256, 0, stream>>>(
            keys.Current(), uint32_t(entries), int(keys_used), s.starts_);
    check_launch("component starts");

    SumArgs args;
    args.keys = keys.Current();
    args.values = values.Current();
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
    args.k = sums.k;
    args.head = s.head_;
    args.tail = s.tail_;
    args.whole = s.whole_;
    const int piece = piece_size(sums.d, squares);
    const int ranges = int((entries + kRange - 1) / kRange);
    const dim3 grid((ranges + 7) / 8, (sums.d + kSlab - 1) / kSlab);
    const auto kernel = lo
            ? (squares ? sum_kernel<true, true> : sum_kernel<true, false>)
            : (squares ? sum_kernel<false, true> : sum_kernel<false, false>);
    kernel<<<grid, 256, 0, stream>>>(args);
    check_launch("segment sums");
    const int columns = std::min(kCollectColumns, (piece + 31) / 32 * 32);
    collect_kernel<<<sums.k, dim3(columns, kCollectSlices), 0, stream>>>(
            s.starts_, s.groups_, s.head_, s.tail_, s.whole_, sums);
    check_launch("collection of sums");
}

void sum_values(
        const ValueSum& first, const ValueSum& second, cudaStream_t stream) {
    const int both = second.count ? 2 : 1;
    values_kernel<<<dim3(kSumBlocks, both), 256, 0, stream>>>(first, second);
    check_launch("sum of values");
    add_kernel<<<both, 32, 0, stream>>>(first, second);
    check_launch("sum of values");
}

} // namespace gmm::cuda
