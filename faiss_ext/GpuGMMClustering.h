#pragma once

#include <string>
#include <vector>

#include <faiss/Clustering.h>

#include "CudaOptions.h"
#include "GaussianMixture.h"
#include "VectorSource.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** FAISS's clustering interface over expectation maximisation.
 *
 * Trains a Gaussian mixture where faiss::Clustering runs Lloyd's k-means. It
 * uses the GPU when the library was built with CUDA and a device is there,
 * and the CPU otherwise; `backend` says which of them ran.
 *
 * Fields of faiss::ClusteringParameters: niter iterations at most (after
 * hard_niter of k-means), of EM but for the last ones; nredo keeps the run of
 * the least mean squared distance, as FAISS does (of the best likelihood if the
 * last iteration was EM's);
 * spherical and int_centroids are applied to the means after each iteration;
 * frozen_centroids keeps the means, all k of which must be given, and fits the
 * weights and variances; update_index re-trains the index as FAISS does, but at
 * the end only, since EM does not assign through it; min_ and
 * max_points_per_centroid, seed, verbose as in FAISS; decode_block_size is the
 * block of train_encoded. iteration_stats[].obj is the mean squared distance
 * after an iteration of k-means (FAISS's is the sum) and the mean
 * log-likelihood after one of EM.
 */
struct GpuGMMClustering : faiss::Clustering {
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    /// k-means iterations before EM, from random vectors; on the CPU, with
    /// k >= kGroupedFrom, twice as many in each of sqrt(k) groups of vectors,
    /// which takes less time than one iteration with all means
    int hard_niter = 5;
    /// Of niter, at most half: k-means iterations that end the training. Lists
    /// are of the nearest mean, and where many components share a vector's
    /// responsibility EM draws their means together. None for full and tied,
    /// which say more than distances do, and where centroids are frozen
    int last_hard_niter = 2;
    double variance_floor = 1e-3; ///< as gmm::TrainingOptions::variance_floor
    double tolerance = 1e-5;      ///< relative gain at which EM stops; 0: never
    gmm::CudaOptions cuda;        ///< which GPUs train, and how

    /// With fewer components, iterations with all means cost little.
    static constexpr size_t kGroupedFrom = 512;

    /// From so many an E-step on the CPU compares a vector with 16 sqrt(k)
    /// components near it (gmm::make_grouped_cpu_backend)
    static constexpr size_t kNearGroupsFrom = 32768;

    std::string backend; ///< out: what trained, "cpu" or "cuda"
    /// out: size k, k * d (diagonal) or 1 (tied_spherical), in the user's
    /// units; empty for full and tied
    std::vector<float> variances;
    /// out, full and tied: as gmm::GaussianMixture's, in the user's units
    std::vector<float> precisions_cholesky;
    std::vector<float> log_weights; ///< out: size k

    GpuGMMClustering(int d, int k);
    GpuGMMClustering(int d, int k, const faiss::ClusteringParameters& cp);

    /** Fits the mixture; centroids (read as the start if they are set) then
     * hold the means, and variances and log_weights stand beside them.
     *
     * @param n          > 0, at least k
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

    /** As train, from vectors that need not be in memory, which are read block
     * by block in every iteration. Of more than k * max_points_per_centroid a
     * sample is used: one of each so many neighbours, chosen by the seed.
     * Memory O(k d) beside what the backend holds.
     */
    void train(const gmm::VectorSource& source, faiss::Index& index);

    /// As train, from vectors encoded by codec, decode_block_size at a time
    /// (the base class's is not virtual: call this one by its own type).
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
