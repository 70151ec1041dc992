#pragma once

#include <string>
#include <vector>

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

#include "GaussianMixture.h"
#include "faiss_ext/ProbePolicy.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** A Gaussian mixture as the coarse quantizer of any stock FAISS IVF index.
 *
 *     faiss::IndexIVFPQ index(new IndexGMM(d, nlist), d, nlist, 16, 8);
 *     index.own_fields = true;
 *     index.quantizer_trains_alone = 1;
 *
 * is the whole swap. search() returns components in the order in which they
 * should be probed, with the squared L2 distance to each mean (the inner
 * product for METRIC_INNER_PRODUCT: residual codecs rely on it), and -1 once
 * probe_mass of the posterior is covered. assign() returns the home list: the
 * first of that order.
 *
 * It is a faiss::IndexFlat of its means, with ntotal = nlist once trained, so
 * that whatever FAISS does with a flat quantizer (residuals, precomputed
 * tables, writing it to a file, moving it to a GPU) works here and sees the
 * means. Where FAISS copies it as an IndexFlat, what is left is the order
 * `distance`.
 *
 * METRIC_INNER_PRODUCT: means are normalised (the mixture lives on the unit
 * sphere), and likelihoods are evaluated at the normalised query.
 */
struct IndexGMM : faiss::IndexFlat {
    size_t nlist = 0;
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    faiss::ClusteringParameters cp; ///< of the clustering that trains it
    ProbePolicy policy;

    /// As in GpuGMMClustering; full and tied cost d times more per query in the
    /// order log_likelihood, and nothing in the others.
    std::vector<float> variances;
    std::vector<float> precisions_cholesky;
    std::vector<float> log_weights; ///< size nlist
    std::string backend;            ///< what trained it

    IndexGMM(
            size_t d,
            size_t nlist,
            gmm::Covariance covariance = gmm::Covariance::isotropic,
            faiss::MetricType metric = faiss::METRIC_L2);

    /** Fits the mixture (GpuGMMClustering), and policy.exponent to where the
     * neighbours of training vectors are among the training vectors.
     *
     * Throws FaissException for wrong input, with this object as it was.
     */
    void train(idx_t n, const float* x) override;

    /// Takes a fitted mixture instead; policy stays as it is. Throws if it is
    /// not valid or its shape is not (nlist, d).
    void set_mixture(const gmm::GaussianMixture& mixture);
    gmm::GaussianMixture mixture() const;

    /// Throws: components come from train or set_mixture. What was trained on
    /// nlist vectors is gone then: faiss::Clustering, by which an IVF index
    /// trains that lacks quantizer_trains_alone = 1, had it fit its centroids.
    void add(idx_t n, const float* x) override;
    size_t remove_ids(const faiss::IDSelector& sel) override;
    void merge_from(faiss::Index& other, idx_t add_id = 0) override;
    /// Back to the untrained state.
    void reset() override;

    /** Components to probe. In a parallel region, which no exception may leave,
     * what is wrong makes all labels -1 instead.
     *
     * Thread-safe. The orders other than `distance` take O(min(n, block)
     * nlist) memory, and a block is at most 16 MB.
     *
     * @param n          queries; one with a NaN gets labels of -1
     * @param k          components wanted for each
     * @param distances  size n * k
     * @param labels     size n * k, -1 where fewer are to be probed
     * @param params     may not have a selector
     */
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const faiss::SearchParameters* params = nullptr) const override;

private:
    idx_t n_trained = 0; ///< vectors, by train()
};

} // namespace faiss_ext
