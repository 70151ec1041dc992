#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <bit>

#include "cuda/sparse/Compact.cuh"

namespace gmm::cuda {

namespace {

__global__ void __launch_bounds__(256)
        compact_kernel(const __grid_constant__ CompactArgs args) {
    const int warp = blockIdx.x * 8 + threadIdx.x / 32;
    const int unit = warp * kWarpUnits;
    if (unit < args.units) {
        compact_units(args, unit, UnitPlaces(args, unit));
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

/// Rows of a group, as halves: about a third of an H100's L2.
constexpr size_t kGroupBytes = size_t(16) << 20;

/// Groups of rows: few enough that a key stays within 16 bits (two passes of
/// the sort) and that the pieces stay small.
int most_groups(int k, int d, bool squares) {
    const size_t by_bits = size_t(65536) >> std::bit_width(unsigned(k - 1));
    const size_t by_memory =
            (size_t(64) << 20) / (size_t(k) * piece_size(d, squares) * 4);
    return int(std::clamp<size_t>(std::min(by_bits, by_memory), 1, kMaxGroups));
}

int groups_of(int rows, int k, int d, bool squares) {
    const size_t wanted =
            (size_t(rows) * d * 2 + kGroupBytes - 1) / kGroupBytes;
    return int(std::clamp<size_t>(wanted, 1, most_groups(k, d, squares)));
}

/// The sizes of SparseScratch's arrays, in the order of its reserve().
struct Sizes {
    size_t bytes[15];
    size_t temporary;
    size_t total = 0;

    Sizes(int rows, int k, int d, bool squares) {
        const size_t units = units_of(rows);
        const size_t entries = units * kUnitCapacity;
        const size_t ranges = entries / kRange + 1;
        const size_t piece = piece_size(d, squares) * sizeof(float);
        const size_t groups = groups_of(rows, k, d, squares);
        const size_t keys = groups << std::bit_width(unsigned(k - 1));
        size_t scan = 0, sort = 0;
        check(cub::DeviceScan::ExclusiveSum(
                      nullptr,
                      scan,
                      static_cast<uint64_t*>(nullptr),
                      static_cast<uint64_t*>(nullptr),
                      int(units + 1)),
              "scan");
        cub::DoubleBuffer<uint64_t> none;
        check(cub::DeviceRadixSort::SortKeys(nullptr, sort, none, int(entries)),
              "sort");
        temporary = std::max(scan, sort);
        const size_t all[15] = {
                entries * 4,
                entries * 8,
                size_t(rows) * 2,
                (units + 1) * 8,
                size_t(rows) * 4,
                size_t(rows) * 4,
                (units + 1) * 8,
                entries * 8,
                entries * 8,
                (keys + 1) * 4,
                ranges * piece * 2,
                size_t(k) * groups * piece,
                units * 4,
                8,
                4};
        for (int i = 0; i < 15; i++) {
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

int64_t SparseScratch::good_rows(int k, int d, bool squares) {
    return most_groups(k, d, squares) * int64_t(kGroupBytes) / (2 * d);
}

size_t SparseScratch::bytes() const {
    return memory_.bytes();
}

void SparseScratch::release() {
    memory_.release();
}

SparseScratch::~SparseScratch() {
    if (copies_) {
        cudaStreamSynchronize(copies_); // it writes to total_
        cudaStreamDestroy(copies_);
    }
    for (cudaEvent_t event : {placed_, counted_}) {
        if (event) {
            cudaEventDestroy(event);
        }
    }
}

void SparseScratch::reserve(int rows, int k, int d, bool squares) {
    const Sizes sizes(rows, k, d, squares);
    if (!copies_) {
        check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking),
              "creating a stream");
    }
    for (cudaEvent_t* event : {&placed_, &counted_}) {
        if (!*event) {
            check(cudaEventCreateWithFlags(event, cudaEventDisableTiming),
                  "creating an event");
        }
    }
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
    take(entries_[0]);
    take(entries_[1]);
    take(starts_);
    take(head_);
    take(whole_);
    take(unit_dropped);
    take(pilot);
    take(rejected);
    groups_ = groups_of(rows, k, d, squares);
    k_ = k;
    tail_ = head_ + sizes.bytes[10] / 8;
    temporary_ = at;
    temporary_bytes_ = sizes.temporary;
}

TripleLayout SparseScratch::layout(int rows) const {
    return entry_layout(rows, k_, groups_);
}

TripleRoom SparseScratch::room(int rows, uint32_t used) const {
    return {entries_[0],
            reinterpret_cast<float*>(entries_[1]),
            used,
            uint32_t(units_of(rows)) * kUnitCapacity,
            k_,
            layout(rows)};
}

CompactArgs SparseScratch::compaction(int rows) const {
    return {units_of(rows),
            rows,
            keys,
            values,
            row_lse,
            offsets_,
            layout(rows),
            entries_[0],
            overflowed};
}

void SparseStep::place(SparseScratch& s, int rows, cudaStream_t stream) {
    // The sums before each unit, and, one further, all: what unit_counts has
    // there is in none.
    const int units = units_of(rows);
    size_t temporary = s.temporary_bytes_;
    check(cub::DeviceScan::ExclusiveSum(
                  s.temporary_,
                  temporary,
                  s.unit_counts,
                  s.offsets_,
                  units + 1,
                  stream),
          "scan of the units");
    // On a stream of its own: kernels would wait for the copy's end.
    check(cudaEventRecord(s.placed_, stream), "recording an event");
    check(cudaStreamWaitEvent(s.copies_, s.placed_), "waiting for the scan");
    check(cudaMemcpyAsync(
                  s.total_.as<uint64_t>(),
                  s.offsets_ + units,
                  8,
                  cudaMemcpyDeviceToHost,
                  s.copies_),
          "reading the number of entries");
    check(cudaEventRecord(s.counted_, s.copies_), "recording an event");
}

void SparseStep::compact(
        const SparseScratch& s, int rows, cudaStream_t stream) {
    const CompactArgs args = s.compaction(rows);
    const int per_block = 8 * kWarpUnits;
    const int blocks = (args.units + per_block - 1) / per_block;
    compact_kernel<<<blocks, 256, 0, stream>>>(args);
    check_launch("compaction");
}

void SparseStep::wait(const SparseScratch& s) {
    check(cudaEventSynchronize(s.counted_), "selecting components");
    const uint64_t total = *s.total_.as<uint64_t>();
    entries = uint32_t(total);
    overflowed = int(total >> 32);
}

void SparseStep::compact_again(
        SparseScratch& s, int rows, cudaStream_t stream) {
    recount_kernel<<<(rows + 255) / 256, 256, 0, stream>>>(
            rows, s.row_lse, s.unit_counts);
    check_launch("counting of rows");
    place(s, rows, stream);
    compact(s, rows, stream);
    wait(s);
}

} // namespace gmm::cuda
