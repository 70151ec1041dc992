#pragma once

#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>

#include "GaussianMixture.h"

namespace faiss_ext {

struct IVFGMM;

/** Makes a GMM index of the vectors and ids of a trained and filled IVF index,
 * which stays as it is.
 *
 * The mixture starts from the index's centroids and is fitted on its vectors
 * (at most max_points_per_centroid * nlist of them, decoded where they are
 * compressed). With index.cp.frozen_centroids the centroids stay, and only
 * variances and weights are fitted; those of inner products all become as many
 * times shorter as leaves none longer than 1. The vectors of an IndexIVFFlat
 * are stored exactly as they were; those of IndexIVFPQ and
 * IndexIVFScalarQuantizer are decoded and encoded again by the same codec,
 * which for inner products is trained anew if centroids are longer than 1.
 * nprobe, max_codes and the kind of direct map stay the same.
 *
 * Throws FaissException for an index that is not trained or has fewer vectors
 * than lists, for types other than IndexIVFFlat, IndexIVFPQ and
 * IndexIVFScalarQuantizer, and for full and tied covariances.
 */
std::unique_ptr<faiss::IndexIVF> swap_to_gmm(
        const faiss::IndexIVF& index,
        gmm::Covariance covariance = gmm::Covariance::isotropic);

/** IVFGMM::calibrate of the GMM index inside `index`, with queries as they are
 * given to `index`: transforms on the way (IndexPreTransform) are applied.
 *
 * The parts of IndexShards and IndexReplicas are calibrated one after another,
 * each for its own k nearest vectors, and compare settings by the costs of the
 * first, so that replicas give the same answers. A shard holds fewer than k of
 * the k nearest of all, and its k nearest are farther out, so that the whole
 * finds more than the target. If one part throws, those before it have been
 * calibrated.
 *
 * Throws FaissException where there is no GMM index, or not in all parts.
 *
 * @param nq  at least 20
 * @param xq  size nq * d; not nullptr
 * @param k   neighbours asked of the GMM index: in an IndexRefine k * k_factor
 */
void calibrate(faiss::Index* index, size_t nq, const float* xq, size_t k = 10);

/** Takes IndexIDMap and IndexIDMap2 from around an IVF index, whose lists get
 * the ids that the maps hold: an IVF index keeps ids itself, and FAISS's
 * IndexIDMap takes these for positions, which gives wrong ids once something
 * was removed.
 *
 * The index gets a direct map if there was an IndexIDMap2, which reconstructs
 * by id, or if it had one; an empty one in an IndexRefine, which reconstructs
 * by itself, gets none. Transforms on the way stay, and so do maps around
 * other indexes and around an IndexRefine.
 *
 * Throws FaissException for lists that cannot change, entries that a map does
 * not know, and a map that does not own what it wraps; the index is destroyed
 * then.
 */
std::unique_ptr<faiss::Index> without_id_maps(
        std::unique_ptr<faiss::Index> index);

/// A copy with mixture, cells and calibration (faiss::clone_index copies the
/// stock part alone). Entries that FAISS's own functions added are taken in
/// first. Throws FaissException where write_index would (mapped lists), and for
/// lists in a file unless they are read-only: both indexes would write to it.
std::unique_ptr<faiss::Index> clone_index(const faiss::Index* index);

/// The GMM part of an index inside any IndexPreTransform, IndexRefine and
/// IndexIDMap; nullptr if there is none, and for IndexShards and IndexReplicas,
/// which have several (extract_gmms).
IVFGMM* extract_gmm(faiss::Index* index);
const IVFGMM* extract_gmm(const faiss::Index* index);

/// The GMM parts of all parts of IndexShards and IndexReplicas, or the one that
/// extract_gmm gives; empty where there is none.
std::vector<IVFGMM*> extract_gmms(faiss::Index* index);

} // namespace faiss_ext
