#pragma once

#include <cstddef>

#include <faiss/IndexIVF.h>

#include "faiss_ext/coarse/QueryBlock.h"
#include "faiss_ext/coarse/QueryCoarse.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

/// Queries that a thread takes at once: their products with the means share
/// what is loaded of these.
constexpr size_t kQueryBlock = 48;

/// A block of queries, and what is computed of each before its codes.
struct Queries {
    const faiss::IndexIVF& ivf;
    QueryBlock block;
    QueryCoarse coarse; ///< of the query that was chosen

    /// @param params  of a graph over the means, or nullptr
    Queries(const faiss::IndexIVF& ivf_in,
            const faiss::SearchParameters* params)
            : ivf(ivf_in), coarse(ivf_in, params) {}

    /// @param with_distances  to the means, without which nothing is chosen
    void start(
            const CellCodes& codes,
            size_t n,
            const float* x,
            bool with_distances = true) {
        block.start(codes, n, x, with_distances && !coarse.by_graph());
    }
    /// @param q  query i of the block; must stay valid
    void choose(size_t i, const float* q) {
        if (coarse.by_graph()) {
            coarse.start_graph(q);
        } else {
            coarse.start(
                    &block.distances[i * ivf.nlist],
                    block.least[i],
                    block.largest[i]);
        }
    }
    const float* rotated(size_t i) const {
        return &block.rotated[i * ivf.d];
    }
    /// |q|, for inner products only
    float norm(size_t i) const {
        return is_ip(ivf) ? block.norm(i) : 0;
    }
};

} // namespace faiss_ext
