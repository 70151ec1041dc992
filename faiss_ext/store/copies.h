#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Where the vectors of one block go when max_assign > 1.
struct Assignment {
    std::vector<idx_t> homes;          ///< size n
    std::vector<uint32_t> copied;      ///< row of each copy, ascending
    std::vector<idx_t> copy_lists;     ///< list that each copy goes to
    std::vector<int32_t> copy_earlier; ///< (max_assign - 1) for each copy

    /// The vectors that are copied, copied.size() * d.
    std::vector<float> gather(size_t d, const float* x) const;

    /// Enters earlier_lists for entries that were appended to the lists in
    /// this order: all vectors to their homes, then all copies.
    void enter(GMMIndexRef index) const;
};

/** Chooses homes and copies by assign_threshold, or by direction and ratio
 * (see IVFGMM::assign_ratio) among the 8 nearest lists.
 *
 * @param homes  as the quantizer assigned them, size n
 */
Assignment assign_copies(
        GMMIndexRef index, size_t n, const float* x, const idx_t* homes);

/// Throws FaissException unless max_assign is what the index was filled with.
void check_max_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm);

/// Takes in what add_sa_codes and the like appended since we looked last.
void adopt_strays(GMMIndexRef index);

/** Takes in entries that FAISS appended to the lists behind our back (merge,
 * copy of a subset): the entries of list i from old_size[i] on.
 *
 * @param earlier  earlier_lists of the index that they come from
 */
void append_foreign(
        GMMIndexRef index,
        const std::vector<size_t>& old_size,
        const std::vector<std::vector<int32_t>>& earlier);

} // namespace faiss_ext
