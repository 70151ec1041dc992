#include <cub/device/device_scan.cuh>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

/// One warp a segment of a component's words, two words a lane.
__global__ void __launch_bounds__(256) count_kernel(
        const PairBits pairs,
        int64_t begin,
        int64_t end,
        const PairLists lists) {
    const int lane = threadIdx.x % 32;
    const int64_t unit = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (unit >= int64_t(lists.k) * lists.segments) {
        return;
    }
    const int64_t component = unit / lists.segments;
    const int64_t first =
            begin + unit % lists.segments * kSegmentWords + lane * 2;
    const uint64_t* const words = pairs.bits + component * pairs.words;
    int sum = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        sum += first + e < end ? __popcll(words[first + e]) : 0;
    }
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (lane == 0) {
        lists.counts[unit] = sum;
    }
}

__global__ void __launch_bounds__(256) tiles_kernel(const PairLists lists) {
    const int c = blockIdx.x * 256 + threadIdx.x;
    if (c < lists.k) {
        const uint32_t n = lists.begin[int64_t(c + 1) * lists.segments] -
                lists.begin[int64_t(c) * lists.segments];
        lists.tiles[c] = (n + kTilePairs - 1) / kTilePairs;
    } else if (c == lists.k) {
        lists.tiles[c] = 0;
    }
}

__global__ void __launch_bounds__(256) list_kernel(
        const PairBits pairs,
        int64_t begin,
        int64_t end,
        const PairLists lists) {
    const int lane = threadIdx.x % 32;
    const int64_t unit = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (unit >= int64_t(lists.k) * lists.segments) {
        return;
    }
    const int64_t component = unit / lists.segments;
    const int64_t first = begin + unit % lists.segments * kSegmentWords;
    const uint64_t* const words = pairs.bits + component * pairs.words;
    uint64_t mine[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int64_t at = first + e * 32 + lane;
        mine[e] = at < end ? words[at] : 0;
    }
    uint32_t to = lists.begin[unit];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        for (uint32_t left = __ballot_sync(0xffffffffu, mine[e] != 0); left;
             left &= left - 1) {
            const int from = __ffs(left) - 1;
            const uint64_t word = __shfl_sync(0xffffffffu, mine[e], from);
            const int64_t row = (first + e * 32 + from) * 64 + lane;
            const uint32_t low = uint32_t(word), high = uint32_t(word >> 32);
            const uint32_t below = (1u << lane) - 1;
            if (low >> lane & 1) {
                lists.row[to + __popc(low & below)] = int32_t(row);
            }
            to += __popc(low);
            if (high >> lane & 1) {
                lists.row[to + __popc(high & below)] = int32_t(row + 32);
            }
            to += __popc(high);
        }
    }
}

unsigned blocks_for(const PairLists& lists) {
    return unsigned((int64_t(lists.k) * lists.segments + 7) / 8);
}

} // namespace

size_t list_scratch_bytes(int k, int segments) {
    size_t bytes = 0;
    uint32_t* const none = nullptr;
    check(cub::DeviceScan::ExclusiveSum(
                  nullptr, bytes, none, none, int64_t(k) * segments + 1),
          "asking for scratch");
    return bytes;
}

void count_pairs(
        const PairBits& bits,
        int64_t begin,
        int64_t end,
        PairLists& lists,
        cudaStream_t stream) {
    lists.segments = segments_of(end - begin);
    const int64_t units = int64_t(lists.k) * lists.segments;
    check(cudaMemsetAsync(lists.counts + units, 0, sizeof(uint32_t), stream),
          "clearing");
    count_kernel<<<blocks_for(lists), 256, 0, stream>>>(
            bits, begin, end, lists);
    check_launch("count_kernel");
    size_t bytes = lists.scratch_bytes;
    check(cub::DeviceScan::ExclusiveSum(
                  lists.scratch,
                  bytes,
                  lists.counts,
                  lists.begin,
                  units + 1,
                  stream),
          "adding up");
    tiles_kernel<<<unsigned(lists.k / 256 + 1), 256, 0, stream>>>(lists);
    check_launch("tiles_kernel");
    bytes = lists.scratch_bytes;
    check(cub::DeviceScan::ExclusiveSum(
                  lists.scratch,
                  bytes,
                  lists.tiles,
                  lists.tile_begin,
                  int64_t(lists.k) + 1,
                  stream),
          "adding up");
}

void list_pairs(
        const PairBits& bits,
        int64_t begin,
        int64_t end,
        const PairLists& lists,
        cudaStream_t stream) {
    list_kernel<<<blocks_for(lists), 256, 0, stream>>>(bits, begin, end, lists);
    check_launch("list_kernel");
}

} // namespace gmm::cuda::full
