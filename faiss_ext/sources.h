#pragma once

#include <cstddef>

#include <faiss/Index.h>

#include "VectorSource.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/// Training, filling and calibrating from vectors that need not be in memory:
/// files, functions, arrays of f32, f16 or u8 (gmm::VectorSource). One block of
/// them is held as floats at a time, and what each function says. The index may
/// be inside IndexPreTransform, IndexIDMap, IndexRefine and IndexShards.

/** Trains the index, and transforms before it that are not trained yet.
 *
 * A GMM index reads the source in every iteration (IVFGMM::train_from), through
 * the transforms before it. Everything else learns from a sample in memory:
 * transforms and codecs from 65,536 rows, an IVF index of FAISS's own from
 * max_points_per_centroid * nlist, at least 65,536.
 *
 * Throws FaissException for a source of another dimension, of too few rows,
 * with a value that is not finite (naming its row), or that cannot be read. A
 * GMM index is then as it was; transforms that were trained stay trained.
 */
void train(faiss::Index* index, const gmm::VectorSource& source);

/** Adds all rows, in blocks of 32,768 (fewer above 1024 dimensions), each of
 * which is added whole or not at all. Cells and calibration are made once,
 * after the last block; in an index that has entries also after a block of more
 * than half of it. Memory O(block + list) beside the index.
 *
 * Throws FaissException for what train() throws for. If any rows are in, the
 * message says how many: they are the first of the source. Cells and
 * calibration are due then (IVFGMM::maintain()). Shards, also behind
 * wrappers, take their shares of a block one after another, each whole or not
 * at all; an IndexShards of successive ids, which FAISS fills in one call,
 * takes all rows or none.
 *
 * @param ids  size source.n, or nullptr: ntotal, ntotal + 1, ...
 */
void add(
        faiss::Index* index,
        const gmm::VectorSource& source,
        const idx_t* ids = nullptr);

/// faiss_ext::calibrate (ivflib.h) on the queries of a source, all of which are
/// held as floats.
void calibrate(
        faiss::Index* index, const gmm::VectorSource& queries, size_t k = 10);

} // namespace faiss_ext
