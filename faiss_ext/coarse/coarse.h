#pragma once

#include <cstddef>

#include <memory>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

inline bool is_ip(const faiss::IndexIVF& ivf) {
    return ivf.metric_type == faiss::METRIC_INNER_PRODUCT;
}

/// The vectors behind the quantizer if it is an IndexHNSWFlat, else nullptr.
const faiss::IndexFlat* hnsw_of(const faiss::IndexIVF& ivf);

/// The means where the quantizer has them, size nlist * d, or nullptr.
const float* means_in_memory(const faiss::IndexIVF& ivf);

/// An empty quantizer of the index's kind: an IndexHNSWFlat with its
/// parameters, or an IndexFlat.
std::unique_ptr<faiss::Index> empty_quantizer(const faiss::IndexIVF& ivf);

/** The quantizer's nearest list of each vector. Blocks of vectors side by side,
 * each in one thread: FAISS's own threads and those of its BLAS wait for each
 * other, which takes half as long again. */
void nearest_lists(
        const faiss::IndexIVF& ivf, size_t n, const float* x, idx_t* lists);

/** Squared distances of queries to all means; for METRIC_INNER_PRODUCT those
 * of the queries' directions, 2 - 2 q.mu / |q|.
 *
 * @param out  size n * nlist
 */
void coarse_distances(
        const faiss::IndexIVF& ivf, size_t n, const float* x, float* out);

} // namespace faiss_ext
