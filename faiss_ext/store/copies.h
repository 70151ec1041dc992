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
};

/** Chooses homes and copies by assign_threshold, or by direction and ratio
 * (see IVFGMM::assign_ratio) among the 8 nearest lists.
 *
 * @param homes  size n; a vector of -1 gets neither list nor copies
 * @param given  the caller chose the homes, and not the quantizer, which
 *               assign_threshold overrules
 */
Assignment assign_copies(
        GMMIndexRef index,
        size_t n,
        const float* x,
        const idx_t* homes,
        bool given);

/// Whether some entries are known to have copies, or to be none.
bool has_copies(const IVFGMM& gmm);

/// Throws FaissException unless max_assign is from 1 to nlist and what the
/// index was filled with;
void check_max_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm);

/// and, above 1, assign_ratio and assign_threshold, by which vectors that come
/// get their copies, are in their ranges.
void check_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm);

} // namespace faiss_ext
