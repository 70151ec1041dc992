#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/impl/list_storage.h"

namespace faiss_ext {

/// Where the neighbours of the calibration's queries are.
struct Truth {
    size_t k;
    std::vector<idx_t> locations; ///< (list, offset) pairs, size nq * k
    std::vector<float> kth;       ///< squared distance (or -ip), size nq
};

/// k nearest stored vectors of each query, by brute force over blocks of
/// decoded lists; `self` (or -1) is left out.
Truth exact_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        const std::vector<idx_t>& self);

/// nq vectors of the index, drawn without replacement, and where they are.
void draw_queries(
        GMMIndexRef index,
        size_t nq,
        std::vector<float>& xq,
        std::vector<idx_t>& self);

} // namespace faiss_ext
