#pragma once

#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>

#include "GaussianMixture.h"

namespace faiss_ext {

struct IVFGMM;

/** An existing, trained and filled IVF index in, the same data under a GMM
 * out.
 *
 * The mixture starts from the index's own centroids and is fitted on its
 * vectors (decoded where they are compressed; at most
 * max_points_per_centroid * nlist of them). Flat indexes are re-filed
 * exactly; IndexIVFPQ and IndexIVFScalarQuantizer are re-encoded from their
 * decoded vectors, for which the codec of an inner-product index is trained
 * anew if centroids are longer than 1. Ids stay. The index given stays as it
 * is.
 *
 * Throws FaissException for an index that is not trained or has fewer vectors
 * than lists, and for types other than IndexIVFFlat, IndexIVFPQ,
 * IndexIVFScalarQuantizer.
 */
std::unique_ptr<faiss::IndexIVF> swap_to_gmm(
        const faiss::IndexIVF& index,
        gmm::Covariance covariance = gmm::Covariance::isotropic);

/** IVFGMM::calibrate of the GMM index inside, with queries as that index's
 * user gives them: transforms on the way (IndexPreTransform) are applied.
 *
 * The parts of IndexShards and IndexReplicas are calibrated one after another,
 * each for its own k nearest vectors. They are farther out than the share of
 * the k nearest of all that a shard holds, so that the whole finds more than
 * each part does. If one part throws, those before it have been calibrated.
 * Queries must be given: xq may not be nullptr.
 *
 * Recall is that of the GMM index itself: behind it an IndexRefine asks it for
 * k * k_factor, which is the k to give.
 */
void calibrate(faiss::Index* index, size_t nq, const float* xq, size_t k = 10);

/** The index without IndexIDMap and IndexIDMap2 around its IVF index, which
 * keep ids themselves: lists get the ids that the maps hold, and stay where
 * they are. Once something was removed FAISS's IndexIDMap gives wrong ids,
 * since it takes those of an IVF index for positions. Of IndexIDMap2, which
 * reconstructs by id, a direct map stays, and of a direct map one of ids as
 * they now are.
 *
 * Transforms on the way stay; maps around other indexes, and those of an
 * IndexRefine, too. Throws FaissException for lists that cannot change, for
 * entries that a map does not know, and for a map that does not own what it
 * wraps; the index is gone then.
 */
std::unique_ptr<faiss::Index> without_id_maps(
        std::unique_ptr<faiss::Index> index);

/// A copy with mixture, cells and calibration (faiss::clone_index copies the
/// stock part alone). Takes in first, as write_index does, what FAISS's own
/// functions added. Throws where write_index would, as of mapped lists, and
/// for lists in a file unless they are read-only: the two would share it.
std::unique_ptr<faiss::Index> clone_index(const faiss::Index* index);

/// The GMM part of an index, wherever it is wrapped (IndexPreTransform,
/// IndexRefine, IndexIDMap), or nullptr. Of IndexShards and IndexReplicas,
/// whose parts have one each, nullptr: extract_gmms gives them all.
IVFGMM* extract_gmm(faiss::Index* index);
const IVFGMM* extract_gmm(const faiss::Index* index);

/// Those of all parts of IndexShards and IndexReplicas, and of any other index
/// the one that extract_gmm gives; empty where there is none.
std::vector<IVFGMM*> extract_gmms(faiss::Index* index);

} // namespace faiss_ext
