#pragma once

#include <faiss/Index.h>
#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

// What every later line relies on, compared once: before an index is written,
// so that nothing is written that cannot be read, and after FAISS has read its
// part of a file, whose checksum says nothing about who made it.

/** The stock part: wrappers, quantizer, codec, lists and direct map fit each
 * other. Time O(nlist * d), and O(ntotal) where there is a direct map or a
 * wrapper that looks things up by id.
 *
 * Throws FaissException naming what does not fit, its value, and what was
 * expected. Types that FAISS has and we do not know are not looked into.
 *
 * @param index  wrapped or not
 */
void check_stock_part(const faiss::Index& index);

/// Of all indexes inside, for indexes of FAISS's own. Throws FaissException
/// naming the type that this FAISS does not know.
void check_scalar_quantizers_known(const faiss::Index& index);

/// The cells of each list ascend and hold no more than it has entries.
void check_offsets(const PairCells& cells, const faiss::InvertedLists& lists);

/// Settings that FAISS would throw for in threads of its own, where nobody can
/// catch it.
void check_search_settings(const faiss::IndexIVF& ivf);

/** The mixture's part fits the stock part: sizes, places, finite values. Time
 * O(entries).
 *
 * Throws as above. */
void check_gmm_part(const faiss::IndexIVF& ivf, const IVFGMM& gmm);

} // namespace faiss_ext
