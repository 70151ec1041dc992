#include "faiss_ext/IndexGMM.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include <omp.h>

#include <faiss/utils/distances.h>

#include "FullCovariance.h"
#include "ParallelFor.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/impl/check_calls.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

namespace {

/// Floats in one block of distances: 16 MB.
constexpr size_t kBlockFloats = size_t(4) << 20;
/// From that many queries on sgemm pays (and rounds a little differently);
/// FAISS's own bound.
constexpr size_t kSgemmThreshold = 20;
/// Of |x|^2 + |mu|^2: where |x - mu|^2 is less its rounding shows.
constexpr float kLostDigits = 1e-3f;

/// Squared L2 distances to all means, or inner products.
struct AllDistances {
    const IndexGMM& index;
    /// What is taken off all means and off the queries: |x|^2 - 2 x.mu +
    /// |mu|^2 in floats loses what is small beside the distance from the
    /// origin.
    std::vector<float> centre;
    std::vector<float> moved; ///< the means, where sgemm reads them
    std::vector<float> norms; ///< their squares

    /// @param n  queries at a time, at most
    AllDistances(const IndexGMM& index, size_t n) : index(index) {
        if (by_sgemm(n)) {
            const size_t d = index.d;
            centre = centre_of_means(index.nlist, d, index.get_xb());
            moved = about(index.nlist, d, index.get_xb(), centre);
            norms.resize(index.nlist);
            faiss::fvec_norms_L2sqr(norms.data(), moved.data(), d, index.nlist);
        }
    }

    bool by_sgemm(size_t n) const {
        return n >= kSgemmThreshold && index.metric_type == faiss::METRIC_L2;
    }

    /// out: size n * nlist.
    void operator()(size_t n, const float* x, float* out) const {
        const size_t nlist = index.nlist;
        const size_t d = index.d;
        if (by_sgemm(n)) {
            const std::vector<float> y = about(n, d, x, centre);
            faiss::pairwise_L2sqr(d, n, y.data(), nlist, moved.data(), out);
            // Where means are in groups, those of a query's own have lost
            // digits. Written so that a NaN stays one.
            gmm::parallel_for(n, [&](size_t i) {
                const float* q = &y[i * d];
                const float norm = faiss::fvec_norm_L2sqr(q, d);
                for (size_t c = 0; c < nlist; c++) {
                    float& square = out[i * nlist + c];
                    if (square < kLostDigits * (norm + norms[c])) {
                        square = faiss::fvec_L2sqr(q, &moved[c * d], d);
                    }
                }
            });
            return;
        }
        const bool ip = index.metric_type == faiss::METRIC_INNER_PRODUCT;
        const float* means = index.get_xb();
#pragma omp parallel for if (n > 1)
        for (int64_t i = 0; i < static_cast<int64_t>(n); i++) {
            float* row = out + i * nlist;
            if (ip) {
                faiss::fvec_inner_products_ny(row, x + i * d, means, d, nlist);
            } else {
                faiss::fvec_L2sqr_ny(row, x + i * d, means, d, nlist);
            }
        }
    }
};

/** log pi_k + log N(x; mu_k, Sigma_k) of one query and all components.
 *
 * Isotropic and tied_spherical from the squared distances at hand. The others
 * from the differences, in the plain way: |x|^2 - 2 x.mu + |mu|^2 over small
 * variances would lose all digits in single precision.
 */
struct LogJoint {
    const IndexGMM& index;
    std::vector<float> constant; ///< what does not depend on x, size nlist

    explicit LogJoint(const IndexGMM& index)
            : index(index), constant(index.nlist) {
        const double log_2pi = 1.8378770664093453;
        const size_t d = index.d;
        for (size_t k = 0; k < index.nlist; k++) {
            double log_det = 0;
            if (gmm::has_matrices(index.covariance)) {
                log_det = gmm::log_determinant(d, factor(k));
            } else if (index.covariance == gmm::Covariance::diagonal) {
                for (size_t j = 0; j < d; j++) {
                    log_det += std::log(double(index.variances[k * d + j]));
                }
            } else {
                log_det = d * std::log(double(variance(k)));
            }
            constant[k] = index.log_weights[k] - 0.5 * (d * log_2pi + log_det);
        }
    }

    const float* factor(size_t k) const {
        const bool one = index.covariance == gmm::Covariance::tied;
        return index.precisions_cholesky.data() +
                (one ? 0 : k * size_t(index.d) * index.d);
    }

    /// |(x - mu)^T U|^2 of an upper triangular U.
    float mahalanobis_full(
            size_t k, const float* x, std::vector<float>& y) const {
        const size_t d = index.d;
        const float* mean = index.get_xb() + k * d;
        const float* u = factor(k);
        y.assign(d, 0.0f);
        for (size_t i = 0; i < d; i++) {
            const float diff = x[i] - mean[i];
#pragma omp simd
            for (size_t j = i; j < d; j++) {
                y[j] += diff * u[i * d + j];
            }
        }
        return faiss::fvec_norm_L2sqr(y.data(), d);
    }

    float variance(size_t k) const {
        return index.variances
                [index.covariance == gmm::Covariance::tied_spherical ? 0 : k];
    }

    void operator()(const float* x, const float* squared, float* out) const {
        const size_t d = index.d;
        std::vector<float> y;
        for (size_t k = 0; k < index.nlist; k++) {
            float mahalanobis = 0;
            if (gmm::has_matrices(index.covariance)) {
                mahalanobis = mahalanobis_full(k, x, y);
            } else if (index.covariance == gmm::Covariance::diagonal) {
                const float* mean = index.get_xb() + k * d;
                const float* var = index.variances.data() + k * d;
#pragma omp simd reduction(+ : mahalanobis)
                for (size_t j = 0; j < d; j++) {
                    const float diff = x[j] - mean[j];
                    mahalanobis += diff * diff / var[j];
                }
            } else {
                mahalanobis = squared[k] / variance(k);
            }
            out[k] = constant[k] - 0.5f * mahalanobis;
        }
    }
};

/// The part of search behind `distance`: the probes of one query.
struct Prober {
    const IndexGMM& index;
    const LogJoint* log_joint; ///< nullptr: the order does not read it
    bool similarity;

    Prober(const IndexGMM& index, const LogJoint* log_joint)
            : index(index), log_joint(log_joint),
              similarity(index.metric_type == faiss::METRIC_INNER_PRODUCT) {}

    void operator()(
            const float* x,
            const float* distances,
            size_t nprobe,
            float* out_dis,
            idx_t* out_keys) const {
        const size_t nlist = index.nlist;
        std::vector<float> unit_x, unit_dis, scores, squared;
        const float* order_by = distances;
        if (similarity) {
            unit_x.assign(x, x + index.d);
            faiss::fvec_renorm_L2(index.d, 1, unit_x.data());
            const float norm2 = faiss::fvec_norm_L2sqr(x, index.d);
            const float scale = norm2 > 0 ? 1 / std::sqrt(norm2) : 1;
            unit_dis.resize(nlist);
            for (size_t k = 0; k < nlist; k++) {
                unit_dis[k] = distances[k] * scale;
            }
            order_by = unit_dis.data();
            x = unit_x.data();
        }
        if (log_joint) {
            const float* l2 = distances;
            if (similarity) {
                squared.resize(nlist);
                for (size_t k = 0; k < nlist; k++) {
                    squared[k] = 2 - 2 * unit_dis[k]; // a NaN stays one
                    if (squared[k] < 2 * kLostDigits) {
                        squared[k] = faiss::fvec_L2sqr(
                                x, index.get_xb() + k * index.d, index.d);
                    }
                }
                l2 = squared.data();
            }
            scores.resize(nlist);
            (*log_joint)(x, l2, scores.data());
        }
        index.policy.select(
                nlist,
                order_by,
                scores.data(),
                similarity,
                nprobe,
                out_keys,
                out_dis);
        for (size_t i = 0; similarity && i < nprobe; i++) {
            if (out_keys[i] >= 0) {
                out_dis[i] = distances[out_keys[i]];
            }
        }
    }
};

/// What likelihoods read: the fields are the caller's to change, but together.
void check_shape(const IndexGMM& index) {
    const size_t d = index.d, k = index.nlist;
    const auto check = [&](const char* name, size_t size, size_t expected) {
        FAISS_THROW_IF_NOT_FMT(
                size == expected,
                "%s: %zu values, expected %zu for covariance = %s, nlist = %zu "
                "(set_mixture changes them together)",
                name,
                size,
                expected,
                gmm::to_string(index.covariance),
                k);
    };
    as_faiss_exception([&] { gmm::check_covariance(index.covariance); });
    check("ntotal", index.ntotal, k);
    check("variances",
          index.variances.size(),
          gmm::num_variances(index.covariance, k, d));
    check("precisions_cholesky",
          index.precisions_cholesky.size(),
          gmm::num_factors(index.covariance, k, d));
    check("log_weights", index.log_weights.size(), k);
}

} // namespace

IndexGMM::IndexGMM(
        size_t d,
        size_t nlist,
        gmm::Covariance covariance,
        faiss::MetricType metric)
        : faiss::IndexFlat(d, metric), nlist(nlist), covariance(covariance) {
    FAISS_THROW_IF_NOT_FMT(
            d > 0 && d <= size_t(std::numeric_limits<int>::max()),
            "d = %zu, expected at least 1",
            d);
    FAISS_THROW_IF_NOT_FMT(
            nlist > 0 && nlist <= size_t(std::numeric_limits<int>::max()),
            "nlist = %zu, expected at least 1",
            nlist);
    check_metric(metric);
    is_trained = false;
    cp.spherical = metric == faiss::METRIC_INNER_PRODUCT;
}

void IndexGMM::set_mixture(const gmm::GaussianMixture& mixture) {
    as_faiss_exception([&] { mixture.validate(); });
    FAISS_THROW_IF_NOT_FMT(
            mixture.k == nlist && mixture.d == size_t(d),
            "mixture: %zu components of dimension %zu, expected nlist = %zu "
            "of d = %d",
            mixture.k,
            mixture.d,
            nlist,
            d);
    std::vector<float> means = mixture.means;
    if (metric_type == faiss::METRIC_INNER_PRODUCT) {
        faiss::fvec_renorm_L2(d, nlist, means.data());
    }
    faiss::IndexFlat::reset();
    is_trained = true; // IndexFlat::add asks for it
    faiss::IndexFlat::add(nlist, means.data());
    covariance = mixture.covariance;
    variances = mixture.variances;
    precisions_cholesky = mixture.precisions_cholesky;
    log_weights = mixture.log_weights;
    n_trained = 0;
    backend.clear();
}

gmm::GaussianMixture IndexGMM::mixture() const {
    FAISS_THROW_IF_NOT_MSG(is_trained, "IndexGMM is not trained");
    gmm::GaussianMixture model;
    model.covariance = covariance;
    model.d = d;
    model.k = nlist;
    model.means.assign(get_xb(), get_xb() + nlist * d);
    model.variances = variances;
    model.precisions_cholesky = precisions_cholesky;
    model.log_weights = log_weights;
    return model;
}

void IndexGMM::add(idx_t, const float*) {
    if (n_trained == idx_t(nlist)) { // by faiss::Clustering, to its centroids
        reset();
    }
    FAISS_THROW_MSG(
            "IndexGMM::add: components come from train or set_mixture (an IVF "
            "index needs quantizer_trains_alone = 1)");
}

size_t IndexGMM::remove_ids(const faiss::IDSelector&) {
    FAISS_THROW_MSG("IndexGMM::remove_ids: components cannot be removed");
}

void IndexGMM::merge_from(faiss::Index&, idx_t) {
    FAISS_THROW_MSG("IndexGMM::merge_from: mixtures cannot be merged");
}

void IndexGMM::reset() {
    faiss::IndexFlat::reset();
    variances.clear();
    precisions_cholesky.clear();
    log_weights.clear();
    backend.clear();
    n_trained = 0;
    is_trained = false;
}

void IndexGMM::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const faiss::SearchParameters* params) const {
    const auto check = [&] {
        FAISS_THROW_IF_NOT_MSG(is_trained, "IndexGMM is not trained");
        check_rows("x", n, d, x);
        check_answers(n, k, distances, labels);
        FAISS_THROW_IF_NOT_MSG(
                !params || !params->sel,
                "params->sel: components cannot be selected by id");
        policy.validate();
        if (policy.order == ProbeOrder::log_likelihood) {
            check_shape(*this);
        }
    };
    try {
        check();
    } catch (const faiss::FaissException&) {
        // FAISS's fast-scan indexes ask in a parallel region, which no
        // exception may leave.
        if (omp_get_level() == 0) { // counts regions of one thread, too
            throw;
        }
        const idx_t wanted = n * std::max<idx_t>(k, 0);
        std::fill(labels, labels + wanted, -1);
        std::fill(
                distances,
                distances + wanted,
                std::numeric_limits<float>::max());
        return;
    }

    const bool by_likelihood = policy.order == ProbeOrder::log_likelihood;
    if (!by_likelihood && policy.order != ProbeOrder::scale_free) {
        faiss::IndexFlat::search(n, x, k, distances, labels);
        constexpr float kNone = std::numeric_limits<float>::max();
        const bool named = k == 1 && metric_type == faiss::METRIC_L2;
        for (idx_t i = 0; named && i < n; i++) {
            if (!(distances[i] < kNone)) { // FAISS 1.7.3 gives 0
                labels[i] = -1;
                distances[i] = kNone;
            }
        }
        return;
    }
    std::unique_ptr<LogJoint> log_joint;
    if (by_likelihood) {
        log_joint = std::make_unique<LogJoint>(*this);
    }
    const Prober probe(*this, log_joint.get());
    const idx_t block = std::max<idx_t>(1, kBlockFloats / nlist);
    const AllDistances all_distances(*this, std::min(n, block));
    std::vector<float> dis(std::min(n, block) * nlist);
    for (idx_t begin = 0; begin < n; begin += block) {
        const idx_t count = std::min(block, n - begin);
        const float* xb = x + begin * d;
        all_distances(count, xb, dis.data());
        gmm::parallel_for(count, [&](size_t i) {
            probe(xb + i * d,
                  dis.data() + i * nlist,
                  k,
                  distances + (begin + i) * k,
                  labels + (begin + i) * k);
        });
    }
}

void IndexGMM::range_search(
        idx_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result,
        const faiss::SearchParameters* params) const {
    check_rows("x", n, d, x);
    check_result(n, result);
    faiss::IndexFlat::range_search(n, x, radius, result, params);
}

} // namespace faiss_ext
