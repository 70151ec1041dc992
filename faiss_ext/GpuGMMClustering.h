#pragma once

#include <string>
#include <vector>

#include <faiss/Clustering.h>

#include "CudaOptions.h"
#include "GaussianMixture.h"
#include "VectorSource.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** FAISS's clustering interface over expectation maximisation (EM).
 *
 * Trains a Gaussian mixture where faiss::Clustering runs Lloyd's k-means. It
 * uses the GPU when the library was built with CUDA and a device is there,
 * and the CPU otherwise; `backend` says which of them ran.
 *
 * What fields of faiss::ClusteringParameters mean here:
 *  - niter: iterations at most, after hard_niter of k-means; of EM but for the
 *    last_hard_niter last ones.
 *  - nredo: of so many runs the one with the least mean squared distance is
 *    kept, as FAISS does, or with the best likelihood if EM came last.
 *  - spherical, int_centroids: applied to the means after each iteration.
 *  - frozen_centroids: the means stay, all k of which must be given; weights
 *    and variances are fitted.
 *  - update_index: the index is trained again, as FAISS does, but at the end
 *    only, since EM does not assign through it.
 *  - min_ and max_points_per_centroid, seed, verbose: as in FAISS.
 *  - decode_block_size: vectors that train_encoded decodes at a time.
 *
 * iteration_stats[].obj is the mean squared distance after an iteration of
 * k-means (FAISS's is the sum) and the mean log-likelihood after one of EM.
 */
struct GpuGMMClustering : faiss::Clustering {
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    /// k-means iterations before EM, from random vectors. On the CPU, with
    /// k >= kGroupedFrom, twice as many in each of sqrt(k) groups of vectors,
    /// which takes less time than one iteration with all means.
    int hard_niter = 5;
    /// k-means iterations that end the training, at most half of niter: an
    /// index files vectors by their nearest mean, but EM draws means together
    /// where many components share a vector's responsibility. None with full
    /// and tied covariances, which say more than distances do, and
    /// frozen_centroids.
    int last_hard_niter = 2;
    double variance_floor = 1e-3; ///< as gmm::TrainingOptions::variance_floor
    double tolerance = 1e-5;      ///< relative gain at which EM stops; 0: never
    gmm::CudaOptions cuda;        ///< which GPUs train, and how

    /// From this k on k-means starts in groups (see hard_niter).
    static constexpr size_t kGroupedFrom = 512;

    /// From this k on an E-step on the CPU compares a vector only with 16
    /// sqrt(k) components near it (gmm::make_grouped_cpu_backend).
    static constexpr size_t kNearGroupsFrom = 32768;

    std::string backend; ///< out: what trained, "cpu" or "cuda"
    /// out: size k, k * d (diagonal) or 1 (tied_spherical), in the user's
    /// units; empty for full and tied
    std::vector<float> variances;
    /// out, full and tied: gmm::GaussianMixture's, in the user's units
    std::vector<float> precisions_cholesky;
    std::vector<float> log_weights; ///< out: size k

    GpuGMMClustering(int d, int k);
    GpuGMMClustering(int d, int k, const faiss::ClusteringParameters& cp);

    /** Fits the mixture, from `centroids` if there are any (up to k); then
     * `centroids` holds the means, and the fields above the rest.
     *
     * @param n          at least k
     * @param x          training vectors, size n * d, finite
     * @param index      receives the means (reset, then add)
     * @param x_weights  size n, non-negative, or nullptr
     *
     * Throws FaissException for wrong input, with this object as it was.
     */
    void train(
            idx_t n,
            const float* x,
            faiss::Index& index,
            const float* x_weights = nullptr) override;

    /** The same from vectors that need not be in memory: they are read block by
     * block in every iteration. Of more than k * max_points_per_centroid a
     * sample is used (gmm::sample_source). Memory O(k d) beside what the
     * backend holds.
     */
    void train(const gmm::VectorSource& source, faiss::Index& index);

    /// The same from vectors encoded by `codec` (nullptr: floats), n *
    /// codec->sa_code_size() bytes. Not virtual in the base class: to be called
    /// by this type.
    void train_encoded(
            idx_t n,
            const uint8_t* x_in,
            const faiss::Index* codec,
            faiss::Index& index,
            const float* weights = nullptr);

    /// The fitted mixture. Throws if train has not been called.
    gmm::GaussianMixture mixture() const;
};

} // namespace faiss_ext
