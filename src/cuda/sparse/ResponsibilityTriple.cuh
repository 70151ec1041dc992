#pragma once

#include "cuda/ptx/Ptx.cuh"
#include "cuda/sparse/Sparse.h"

/** Entries as words, see TripleLayout. */
namespace gmm::cuda {

/// group: the row's.
__device__ __forceinline__ uint64_t pack_triple(
        const TripleLayout& layout,
        uint32_t group,
        uint32_t row,
        uint32_t k,
        float r) {
    const uint32_t key = group << layout.component_bits | k;
    const uint32_t row_in_group = row - group * layout.group_rows;
    const int cut = 31 - layout.value_bits;
    // Without its sign, for 0 may have one; at most what fits, for it may be no
    // number.
    const uint32_t bits = __float_as_uint(r) & 0x7fffffffu;
    const uint32_t value = min(
            (bits + (1u << cut >> 1)) >> cut, (1u << layout.value_bits) - 1);
    return ((uint64_t(key) << layout.row_bits | row_in_group)
            << layout.value_bits) |
            value;
}

__device__ __forceinline__ uint32_t
triple_key(const TripleLayout& layout, uint64_t entry) {
    return uint32_t(entry >> (layout.row_bits + layout.value_bits));
}

__device__ __forceinline__ uint32_t
key_component(const TripleLayout& layout, uint32_t key) {
    return key & ((1u << layout.component_bits) - 1);
}

__device__ __forceinline__ uint32_t
triple_row(const TripleLayout& layout, uint64_t entry) {
    const uint32_t group = triple_key(layout, entry) >> layout.component_bits;
    return group * layout.group_rows +
            (uint32_t(entry >> layout.value_bits) &
             ((1u << layout.row_bits) - 1));
}

__device__ __forceinline__ float triple_value(
        const TripleLayout& layout, uint64_t entry) {
    const uint32_t value = uint32_t(entry) & ((1u << layout.value_bits) - 1);
    return __uint_as_float(value << (31 - layout.value_bits));
}

} // namespace gmm::cuda
