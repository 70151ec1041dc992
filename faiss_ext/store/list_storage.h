#pragma once

#include <cstddef>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// An IndexIVFGMM seen without its codec: the two halves of one object.
struct GMMIndexRef {
    faiss::IndexIVF& ivf;
    IVFGMM& gmm;
};

/// The vectors of a list, decoded; size list_size * d.
void decode_list(
        const faiss::IndexIVF& ivf, size_t list, std::vector<float>& out);

/// The means as floats, size nlist * d.
std::vector<float> quantizer_means(const faiss::IndexIVF& ivf);

/// Whether this entry is the vector itself and not a copy of one whose home
/// is elsewhere.
bool is_primary(const IVFGMM& gmm, size_t list, size_t offset);

/** Rewrites a list as its entries order[0], order[1], ...; entries that are
 * not named go. Parallel arrays are not touched. */
void permute_list(
        faiss::IndexIVF& ivf, size_t list, const std::vector<uint32_t>& order);

/// Enters the primary entries of a list from `begin` on in the direct map.
void update_direct_map(GMMIndexRef index, size_t list, size_t begin);

/// Sorts the tail of a list into its cells.
void fold_tail(GMMIndexRef index, size_t list);

/// Sorts a list's entries so that what has the same earlier lists is
/// together, primaries first.
void sort_copies(GMMIndexRef index, size_t list);

/// Removes all entries of a list whose ids the selector has; returns how many
/// of them were primary.
size_t remove_from_list(
        GMMIndexRef index, size_t list, const faiss::IDSelector& sel);

/** Enters the cells and sketches of vectors that were appended to their home
 * lists (size n; -1: nowhere) in this order.
 *
 * With METRIC_INNER_PRODUCT the means are unit vectors, and the cell of a
 * vector is that of its direction.
 */
void append_to_tails(
        GMMIndexRef index,
        size_t n,
        const float* x,
        const idx_t* homes,
        const std::vector<float>& means);

/// Chooses L for what the index holds and sorts every list into its cells.
void rebuild_cells(GMMIndexRef index);

} // namespace faiss_ext
