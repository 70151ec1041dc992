#pragma once

#include <cstddef>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** One query's squared distances to the means, as many as it needs.
 *
 * All of them, which the caller has computed; or, where the quantizer is an
 * HNSW graph over the means, those that the graph says are nearest, and after
 * that whichever are asked for.
 */
class QueryCoarse {
public:
    /// @param params  of the graph's search, or nullptr
    explicit QueryCoarse(
            const faiss::IndexIVF& ivf,
            const faiss::SearchParameters* params = nullptr);

    /// Whether the distances come through a graph.
    bool by_graph() const {
        return means != nullptr;
    }

    /// @param all  the query's distances to all means; must stay valid
    void start(const float* all, float least, float largest);
    /// @param q  the query, if by_graph(); must stay valid
    void start_graph(const float* q);

    /// If by_graph(): replaces `lists` by some that were not among those
    /// before, the nearer ones first, and makes their distances known; false if
    /// there are no more.
    bool more_lists(std::vector<uint32_t>& lists);

    /// Makes the distances of these lists known.
    void need(const int32_t* lists, size_t n);

    /// Size nlist; valid where known.
    const float* distances = nullptr;
    /// Of all distances but those to outlying means; if by_graph(), least is of
    /// those that are known.
    float least = 0, largest = 0;

private:
    const faiss::IndexIVF& ivf;
    const float* const means; ///< behind the graph, or nullptr
    const faiss::SearchParameters* const graph_params;
    const float* query = nullptr;
    float scale = 0;        ///< METRIC_INNER_PRODUCT: 2 / |q|
    size_t n_asked = 0;     ///< of the graph
    std::vector<float> own; ///< distances, if by_graph()
    /// Of each list: known since this query, and given out.
    std::vector<uint32_t> known, given;
    uint32_t stamp = 0;
    std::vector<idx_t> found;
    std::vector<float> found_distances;
};

} // namespace faiss_ext
