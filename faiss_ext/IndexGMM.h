#pragma once

#include <memory>
#include <string>

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
 * METRIC_INNER_PRODUCT: means are normalised (the mixture lives on the unit
 * sphere), and likelihoods are evaluated at the normalised query.
 */
struct IndexGMM : faiss::Index {
    size_t nlist = 0;
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    faiss::ClusteringParameters cp; ///< of the clustering that trains it
    ProbePolicy policy;

    faiss::IndexFlat means;         ///< the nlist means, size nlist * d
    std::vector<float> variances;   ///< as in GpuGMMClustering
    std::vector<float> log_weights; ///< size nlist
    std::string backend;            ///< what trained it

    IndexGMM(
            size_t d,
            size_t nlist,
            gmm::Covariance covariance = gmm::Covariance::isotropic,
            faiss::MetricType metric = faiss::METRIC_L2);

    /// Fits the mixture (GpuGMMClustering) and v of the scale-free posterior.
    void train(idx_t n, const float* x) override;

    /// Takes a fitted mixture instead. Throws if it is not valid or its shape
    /// is not (nlist, d).
    void set_mixture(const gmm::GaussianMixture& mixture);
    gmm::GaussianMixture mixture() const;

    /// Throws: components come from train or set_mixture.
    void add(idx_t n, const float* x) override;
    void reset() override;

    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const faiss::SearchParameters* params = nullptr) const override;

    void reconstruct(idx_t key, float* recons) const override;
};

} // namespace faiss_ext
