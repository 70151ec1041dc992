#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// What is near the calibration's queries.
struct Truth {
    struct Near {
        idx_t location; ///< (list, offset) pair
        float distance; ///< in the units of coarse_distances
    };
    size_t k;
    /// The many vectors nearest to each query, sorted by location: far more
    /// than k, so that a search's k-th distance so far is known from what it
    /// has scanned of them.
    std::vector<std::vector<Near>> near;
    /// Distance of the k-th neighbour; near ones up to it count as found. It
    /// allows for rounding, so that equal vectors are equally near.
    std::vector<float> kth;
};

/** By brute force over blocks of decoded lists, O(ntotal d nq) time as matrix
 * products.
 *
 * A query that is itself in the index, at `self` (or -1), is left out, and so
 * are its k nearest: vectors of one picture or document have near-duplicates
 * that a new query has not, and are easier to find.
 */
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
