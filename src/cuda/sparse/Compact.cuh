#pragma once

#include "cuda/sparse/ResponsibilityTriple.cuh"

/** Select's entries, which lie by unit, to a block's, which lie together. */
namespace gmm::cuda {

/// Units that a warp moves, so that their loads are under way together.
constexpr int kWarpUnits = 4;
constexpr int kWarpRows = kWarpUnits * kUnitRows;

/// A warp's units: where their entries go, and how many they are.
struct UnitPlaces {
    uint32_t to[kWarpUnits];
    int count[kWarpUnits];
    int most;            ///< of the counts
    uint32_t overflowed; ///< where their overflowed rows go
    bool any_overflowed;

    __device__ __forceinline__
    UnitPlaces(const CompactArgs& args, int first_unit) {
        constexpr uint32_t kAll = 0xffffffffu;
        const int lane = threadIdx.x % 32;
        const uint64_t mine = args.offsets[min(
                first_unit + min(lane, kWarpUnits), args.units)];
        const uint32_t low = uint32_t(mine), high = uint32_t(mine >> 32);
        most = 0;
#pragma unroll
        for (int u = 0; u < kWarpUnits; u++) {
            to[u] = __shfl_sync(kAll, low, u);
            count[u] = int(__shfl_sync(kAll, low, u + 1) - to[u]);
            most = max(most, count[u]);
        }
        overflowed = __shfl_sync(kAll, high, 0);
        any_overflowed = __shfl_sync(kAll, high, kWarpUnits) != overflowed;
    }
};

__device__ __forceinline__ void compact_units(
        const CompactArgs& args, int first_unit, const UnitPlaces& places) {
    const int lane = threadIdx.x % 32;
    const size_t from = size_t(first_unit) * kUnitCapacity;
    for (int i = lane; i < places.most; i += 32) {
        uint32_t key[kWarpUnits];
        uint2 value[kWarpUnits];
#pragma unroll
        for (int u = 0; u < kWarpUnits; u++) {
            if (i < places.count[u]) {
                key[u] = args.keys[from + u * kUnitCapacity + i];
                value[u] = args.values[from + u * kUnitCapacity + i];
            }
        }
#pragma unroll
        for (int u = 0; u < kWarpUnits; u++) {
            if (i < places.count[u]) {
                args.entries[places.to[u] + i] = pack_triple(
                        args.layout,
                        (first_unit + u) * kUnitRows / args.layout.group_rows,
                        value[u].x,
                        key[u],
                        __uint_as_float(value[u].y));
            }
        }
    }
    if (!places.any_overflowed) {
        return;
    }
    uint32_t at = places.overflowed;
    for (int i = 0; i < kWarpRows; i += 32) {
        const int row = first_unit * kUnitRows + i + lane;
        const bool lost = row < args.rows && isnan(args.row_lse[row]);
        const uint32_t all = __ballot_sync(0xffffffffu, lost);
        if (lost) {
            args.overflowed[at + __popc(all & ((1u << lane) - 1))] = row;
        }
        at += __popc(all);
    }
}

} // namespace gmm::cuda
