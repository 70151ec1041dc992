#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/CellCodes.h"

namespace faiss_ext {

/// What a few queries need before their codes are looked at: themselves
/// rotated, and their squared distances to all means (those of their
/// directions for inner products, 2 - 2 q.mu / |q|). In the calling thread.
struct QueryBlock {
    size_t d = 0, nlist = 0;
    std::vector<float> rotated;   ///< P (q - c), size n * d
    std::vector<float> centred;   ///< q - c, where there are distances
    std::vector<float> distances; ///< size n * nlist
    /// Of each query's distances; those to outlying means can be larger.
    std::vector<float> least, largest;

    /// @param with_distances  false where a graph over the means gives them
    void start(
            const CellCodes& codes,
            size_t n,
            const float* x,
            bool with_distances);

    /// Distances alone.
    void measure(const CellCodes& codes, size_t n, const float* x);

    /// |q| of query i where c is 0: for inner products.
    float norm(size_t i) const;
};

} // namespace faiss_ext
