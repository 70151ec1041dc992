#pragma once

#include <cstdint>
#include <vector>

#include "faiss_ext/store/list_storage.h"

/// Entries of other indexes: merge_from and copy_subset_to.
namespace faiss_ext {

/** Whether copy_subset_to has anything to copy. Throws for an untrained index,
 * a1 and a2 out of their ranges, which FAISS would not survive, and indexes of
 * which one cannot read the codes of the other (check_same_encoding()).
 *
 * @param kind  FAISS's SUBSET_TYPE_*
 */
bool has_subset(
        const faiss::IndexIVF& from,
        const faiss::IndexIVF& other,
        int kind,
        idx_t a1,
        idx_t a2);

/** Adds copies of all entries of `from` to the index. All or none.
 *
 * @param from     lists of the index's means and codec; for an index without
 *                 vectors those of copy_records()
 * @param ntotal   vectors among the entries
 * @param add_id   added to the ids
 * @param earlier  IVFGMM::earlier_lists of the entries, or empty
 */
void take_entries(
        GMMIndexRef index,
        const faiss::InvertedLists& from,
        idx_t ntotal,
        idx_t add_id,
        const std::vector<std::vector<int32_t>>& earlier);

/// What copy_subset_to does with the lists of a subset that FAISS has copied.
void add_subset(GMMIndexRef index, const faiss::InvertedLists& subset);

} // namespace faiss_ext
