#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <bit>

#include "Sparse.h"

namespace gmm::cuda {

namespace {

/// One warp a unit: its entries and its overflowed rows to their places.
__global__ void __launch_bounds__(256) compact_kernel(
        int units,
        int rows,
        const uint32_t* keys,
        const uint2* values,
        const float* row_lse,
        const uint64_t* offsets,
        int group_rows,
        int k,
        uint32_t* out_keys,
        uint2* out_values,
        uint32_t* overflowed) {
    const int unit = blockIdx.x * 8 + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (unit >= units) {
        return;
    }
    const uint64_t at = offsets[unit], next = offsets[unit + 1];
    const uint32_t to = uint32_t(at);
    const int count = int(uint32_t(next) - to);
    const size_t from = size_t(unit) * kUnitCapacity;
    const uint32_t group = unit * kUnitRows / group_rows * k;
    for (int i = lane; i < count; i += 32) {
        out_keys[to + i] = group + keys[from + i];
        out_values[to + i] = values[from + i];
    }
    if (at >> 32 != next >> 32) {
        const int row = unit * kUnitRows + lane;
        const bool lost = lane < kUnitRows && row < rows && isnan(row_lse[row]);
        const uint32_t all = __ballot_sync(0xffffffffu, lost);
        if (lost) {
            overflowed[(at >> 32) + __popc(all & ((1u << lane) - 1))] = row;
        }
    }
}

/// A warp two units: how many of their rows have no log-sum-exp.
__global__ void __launch_bounds__(256)
        recount_kernel(int rows, const float* row_lse, uint64_t* unit_counts) {
    const int row = blockIdx.x * 256 + threadIdx.x;
    const int lane = threadIdx.x % 32;
    const uint32_t lost =
            __ballot_sync(0xffffffffu, row < rows && isnan(row_lse[row]));
    if (lane % kUnitRows == 0 && row < rows) {
        uint64_t& count = unit_counts[row / kUnitRows];
        count = uint32_t(count) | uint64_t(__popc(lost >> lane & 0xffff)) << 32;
    }
}

int units_of(int rows) {
    return (rows + kUnitRows - 1) / kUnitRows;
}

/// Rows of a group, as halves: about a third of an H100's L2.
constexpr size_t kGroupBytes = size_t(16) << 20;

/// Groups of rows: few enough that a key stays within 16 bits (two passes of
/// the sort) and that the pieces stay small.
int groups_of(int rows, int k, int d, bool squares) {
    const size_t wanted =
            (size_t(rows) * d * 2 + kGroupBytes - 1) / kGroupBytes;
    const size_t by_bits = std::max<size_t>(1, 65536 / size_t(k));
    const size_t by_memory = std::max<size_t>(
            1, (size_t(64) << 20) / (size_t(k) * piece_size(d, squares) * 4));
    return int(std::max<size_t>(
            1, std::min({wanted, by_bits, by_memory, size_t(16)})));
}

/// The sizes of SparseScratch's arrays, in the order of its reserve().
struct Sizes {
    size_t bytes[16];
    size_t temporary;
    size_t total = 0;

    Sizes(int rows, int k, int d, bool squares) {
        const size_t units = units_of(rows);
        const size_t entries = units * kUnitCapacity;
        const size_t ranges = entries / kRange + 1;
        const size_t piece = piece_size(d, squares) * sizeof(float);
        const size_t groups = groups_of(rows, k, d, squares);
        size_t scan = 0, sort = 0;
        check(cub::DeviceScan::ExclusiveSum(
                      nullptr,
                      scan,
                      static_cast<uint64_t*>(nullptr),
                      static_cast<uint64_t*>(nullptr),
                      int(units + 1)),
              "scan");
        cub::DoubleBuffer<uint32_t> no_keys;
        cub::DoubleBuffer<uint2> no_values;
        check(cub::DeviceRadixSort::SortPairs(
                      nullptr, sort, no_keys, no_values, int(entries), 0, 32),
              "sort");
        temporary = std::max(scan, sort);
        const size_t all[16] = {
                entries * 4,
                entries * 8,
                size_t(rows) * 2,
                (units + 1) * 8,
                size_t(rows) * 4,
                size_t(rows) * 4,
                (units + 1) * 8,
                entries * 4,
                entries * 4,
                entries * 8,
                entries * 8,
                (size_t(k) * groups + 1) * 4,
                ranges * piece * 2,
                size_t(k) * groups * piece,
                units * 4,
                4};
        for (int i = 0; i < 16; i++) {
            bytes[i] = (all[i] + 255) / 256 * 256;
            total += bytes[i];
        }
        total += temporary;
    }
};

} // namespace

size_t SparseScratch::bytes_for(int rows, int k, int d, bool squares) {
    return Sizes(rows, k, d, squares).total;
}

int SparseScratch::units(int rows) const {
    return units_of(rows);
}

size_t SparseScratch::bytes() const {
    return memory_.bytes();
}

void SparseScratch::release() {
    memory_.release();
}

void SparseScratch::reserve(int rows, int k, int d, bool squares) {
    const Sizes sizes(rows, k, d, squares);
    memory_.reserve(sizes.total);
    total_.reserve(sizeof(uint64_t));
    char* at = memory_.as<char>();
    int i = 0;
    auto take = [&](auto*& pointer) {
        pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(at);
        at += sizes.bytes[i++];
    };
    take(keys);
    take(values);
    take(row_ranges);
    take(unit_counts);
    take(row_lse);
    take(overflowed);
    take(offsets_);
    take(sorted_keys_[0]);
    take(sorted_keys_[1]);
    take(sorted_values_[0]);
    take(sorted_values_[1]);
    take(starts_);
    take(head_);
    take(whole_);
    take(unit_dropped);
    take(lost);
    groups_ = groups_of(rows, k, d, squares);
    k_ = k;
    tail_ = head_ + sizes.bytes[12] / 8;
    temporary_ = at;
    temporary_bytes_ = sizes.temporary;
}

static int group_rows_of(int rows, int groups) {
    return (units_of(rows) + groups - 1) / groups * kUnitRows;
}

EntryRoom SparseScratch::room(int rows, uint32_t used) const {
    return {sorted_keys_[0],
            sorted_values_[0],
            used,
            uint32_t(units_of(rows)) * kUnitCapacity,
            group_rows_of(rows, groups_),
            k_};
}

void SparseStep::compact(SparseScratch& s, int rows, cudaStream_t stream) {
    const int units = units_of(rows);
    check(cudaMemsetAsync(s.unit_counts + units, 0, 8, stream), "clearing");
    size_t temporary = s.temporary_bytes_;
    check(cub::DeviceScan::ExclusiveSum(
                  s.temporary_,
                  temporary,
                  s.unit_counts,
                  s.offsets_,
                  units + 1,
                  stream),
          "scan of the units");
    check(cudaMemcpyAsync(
                  s.total_.as<uint64_t>(),
                  s.offsets_ + units,
                  8,
                  cudaMemcpyDeviceToHost,
                  stream),
          "reading the number of entries");
    compact_kernel<<<(units + 7) / 8, 256, 0, stream>>>(
            units,
            rows,
            s.keys,
            s.values,
            s.row_lse,
            s.offsets_,
            group_rows_of(rows, s.groups_),
            s.k_,
            s.sorted_keys_[0],
            s.sorted_values_[0],
            s.overflowed);
    check_launch("compaction");
    check(cudaStreamSynchronize(stream), "selecting components");
    const uint64_t total = *s.total_.as<uint64_t>();
    entries = uint32_t(total);
    overflowed = int(total >> 32);
}

void SparseStep::compact_again(
        SparseScratch& s, int rows, cudaStream_t stream) {
    recount_kernel<<<(rows + 255) / 256, 256, 0, stream>>>(
            rows, s.row_lse, s.unit_counts);
    check_launch("counting of rows");
    compact(s, rows, stream);
}

} // namespace gmm::cuda
