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

/// IndexIVFGMM::update_vectors, all or none; of several rows with one id the
/// last counts.
void update_vectors(
        GMMIndexRef index, size_t n, const idx_t* ids, const float* v);

/// IndexIVFGMM::remove_ids. All or none.
size_t remove_ids(GMMIndexRef index, const faiss::IDSelector& sel);

} // namespace faiss_ext
