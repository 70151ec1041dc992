#pragma once

#include <cstddef>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Vectors that are assigned, encoded and added at once.
constexpr size_t kAddBlock = 32768;

/** What IndexIVFGMM::add_with_ids and add_core do.
 *
 * In blocks, each of which is added whole or not at all. If a block after the
 * first fails, or what makes the cells and the calibration anew afterwards, a
 * FaissException says how many vectors are in.
 *
 * @param homes  list of each vector or -1 (nowhere), or nullptr: the
 *               quantizer's nearest
 */
void add_vectors(
        GMMIndexRef index,
        idx_t n,
        const float* x,
        const idx_t* ids,
        const idx_t* homes);

/// IndexIVFGMM::update_vectors. All or none.
void update_vectors(
        GMMIndexRef index, size_t n, const idx_t* ids, const float* v);

/// IndexIVFGMM::remove_ids. All or none.
size_t remove_ids(GMMIndexRef index, const faiss::IDSelector& sel);

/** Whether copy_subset_to has anything to copy. Throws for what FAISS would not
 * survive or count, an untrained index, a1 and a2 out of their ranges, and
 * where the codes of one are nothing to the other (check_same_encoding()).
 *
 * @param kind  FAISS's SUBSET_TYPE_*
 */
bool has_subset(
        const faiss::IndexIVF& from,
        const faiss::IndexIVF& other,
        int kind,
        idx_t a1,
        idx_t a2);

/** Moves all entries of `from` to `index`, or copies those of its lists only.
 * All or none.
 *
 * @param from     with means and codec of the index; of one without vectors,
 *                 copy_records()
 * @param earlier  earlier_lists of the entries, or empty
 */
void take_entries(
        GMMIndexRef index,
        const faiss::InvertedLists& from,
        idx_t ntotal,
        idx_t add_id,
        const std::vector<std::vector<int32_t>>& earlier);

} // namespace faiss_ext
