#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

struct PairCells;

inline bool is_ip(const faiss::IndexIVF& ivf) {
    return ivf.metric_type == faiss::METRIC_INNER_PRODUCT;
}

/// The vectors behind the quantizer if it is an IndexHNSWFlat, else nullptr.
const faiss::IndexFlat* hnsw_of(const faiss::IndexIVF& ivf);

/// The means where the quantizer has them, size nlist * d, or nullptr.
const float* means_in_memory(const faiss::IndexIVF& ivf);
const float* means_in_memory(const faiss::Index& quantizer);

/// An empty quantizer of the index's kind: an IndexHNSWFlat with its
/// parameters, or an IndexFlat.
std::unique_ptr<faiss::Index> empty_quantizer(const faiss::IndexIVF& ivf);

/** The list of the nearest mean of each vector (of the largest inner product);
 * as the quantizer says where it is not an IndexFlat. Time O(n nlist d) as
 * matrix products, memory a copy of the means. */
void nearest_lists(
        const faiss::Index& quantizer, size_t n, const float* x, idx_t* lists);

/// What the products with all means tell of vectors beside their lists; empty
/// where they tell nothing.
struct KnownCells {
    std::vector<uint16_t> cell;   ///< of each vector in its list
    std::vector<uint8_t> records; ///< of each vector, as CellCodes::encode
    float norm2 = 0; ///< METRIC_INNER_PRODUCT: the largest squared norm

    bool empty() const {
        return cell.empty();
    }
};

/** The same for an index with cells, or without.
 *
 * Where the products with the means tell the cells of the vectors as well,
 * `known` gets these and the codes, since the vectors are in a cache now.
 */
void nearest_lists(
        const faiss::IndexIVF& ivf,
        const PairCells& cells,
        size_t n,
        const float* x,
        idx_t* lists,
        KnownCells& known);

} // namespace faiss_ext
