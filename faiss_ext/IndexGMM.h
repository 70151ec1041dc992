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
 * should be probed, with the squared L2 distance to each mean (for
 * METRIC_INNER_PRODUCT the inner product), which residual codecs rely on, and
 * -1 once policy.probe_mass of the posterior is covered. assign() returns the
 * first of that order.
 *
 * The index is a faiss::IndexFlat of its means, with ntotal = nlist once
 * trained: whatever FAISS does with a flat quantizer (residuals, precomputed
 * tables, writing it to a file, moving it to a GPU) sees the means. A copy that
 * FAISS makes as an IndexFlat probes in the order `distance`.
 *
 * METRIC_INNER_PRODUCT: means are normalised (the mixture lives on the unit
 * sphere), and likelihoods are evaluated at the normalised query.
 */
struct IndexGMM : faiss::IndexFlat {
    size_t nlist = 0;
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    faiss::ClusteringParameters cp; ///< of the clustering that trains it
    ProbePolicy policy; ///< the order of probing, and where it stops

    /// As in GpuGMMClustering. Full and tied covariances cost d times more per
    /// query in the order log_likelihood, and nothing in other orders.
    std::vector<float> variances;
    std::vector<float> precisions_cholesky;
    std::vector<float> log_weights; ///< size nlist
    std::string backend;            ///< what trained it: "cpu" or "cuda"

    IndexGMM(
            size_t d,
            size_t nlist,
            gmm::Covariance covariance = gmm::Covariance::isotropic,
            faiss::MetricType metric = faiss::METRIC_L2);

    /** Fits the mixture (GpuGMMClustering), and policy.exponent to the lists in
     * which training vectors have their neighbours.
     *
     * Throws FaissException for wrong input, with this object as it was.
     */
    void train(idx_t n, const float* x) override;

    /// Takes a fitted mixture instead; policy stays as it is. Throws if the
    /// mixture is not valid or its shape is not (nlist, d).
    void set_mixture(const gmm::GaussianMixture& mixture);
    gmm::GaussianMixture mixture() const;

    /// Throws: components come from train or set_mixture. What was trained on
    /// exactly nlist vectors is forgotten, too: those were centroids, of an IVF
    /// index that lacks quantizer_trains_alone = 1.
    void add(idx_t n, const float* x) override;
    size_t remove_ids(const faiss::IDSelector& sel) override;
    void merge_from(faiss::Index& other, idx_t add_id = 0) override;
    /// Back to the untrained state.
    void reset() override;

    /** Components to probe. Throws FaissException for wrong input; but in a
     * parallel region, which no exception may leave, all labels are -1 instead.
     *
     * Thread-safe. The orders log_likelihood and scale_free take 16 MB at most
     * (or nlist floats) for a block of distances.
     *
     * @param n          queries
     * @param x          size n * d; a query with a NaN gets labels of -1
     * @param k          components wanted for each
     * @param distances  size n * k, in the index's metric
     * @param labels     size n * k, -1 where fewer are to be probed
     * @param params     nullptr, or without a selector
     */
    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const faiss::SearchParameters* params = nullptr) const override;
    /// IndexFlat's.
    void range_search(
            idx_t n,
            const float* x,
            float radius,
            faiss::RangeSearchResult* result,
            const faiss::SearchParameters* params = nullptr) const override;

private:
    idx_t n_trained = 0; ///< vectors, by train()
};

} // namespace faiss_ext
