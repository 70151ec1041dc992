#pragma once

#include <cstddef>

#include <faiss/IndexIVF.h>

namespace faiss_ext {

inline bool is_ip(const faiss::IndexIVF& ivf) {
    return ivf.metric_type == faiss::METRIC_INNER_PRODUCT;
}

/** Squared distances of queries to all means; for METRIC_INNER_PRODUCT those
 * of the queries' directions, 2 - 2 q.mu / |q|.
 *
 * @param out  size n * nlist
 */
void coarse_distances(
        const faiss::IndexIVF& ivf, size_t n, const float* x, float* out);

} // namespace faiss_ext
