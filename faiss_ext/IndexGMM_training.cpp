#include "faiss_ext/IndexGMM.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include <faiss/utils/distances.h>

#include "faiss_ext/GpuGMMClustering.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

namespace {

/// Training vectors that the exponent is fitted on, and how many of them are
/// queries: enough for two digits of it, in a few percent of training time.
constexpr size_t kExponentSample = 32768;
constexpr size_t kExponentQueries = 512;
constexpr size_t kExponentNeighbors = 10;
constexpr double kMinExponent = 0.25;
constexpr double kMaxExponent = 32;

/// The sum over queries i of count[i] times the mean of log d over the
/// posterior d^-v, with log d of all lists in row i of log_dis.
double expected_log_distance(
        size_t nlist,
        const std::vector<float>& log_dis,
        const std::vector<double>& count,
        double v) {
    double sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (int64_t i = 0; i < static_cast<int64_t>(count.size()); i++) {
        const float* row = log_dis.data() + i * nlist;
        const float least = *std::min_element(row, row + nlist);
        double weight = 0, weighted = 0;
        for (size_t l = 0; l < nlist; l++) {
            const double w = std::exp(-v * (row[l] - least));
            weight += w;
            weighted += w * row[l];
        }
        sum += count[i] * weighted / weight;
    }
    return sum;
}

/** The v for which the posterior d_k^-v is most likely to have drawn the lists
 * that hold the neighbours of vectors among the vectors.
 *
 * An exponential family in v with the statistic -log d_k: its log-likelihood
 * is concave, and its maximum is where the mean of log d over the posterior
 * equals that over the neighbours' lists.
 */
double fit_exponent(const IndexGMM& index, size_t n, const float* x) {
    const size_t d = index.d;
    const size_t nlist = index.nlist;
    const size_t nb = std::min(n, kExponentSample);
    const size_t nq = std::min(nb / 2, kExponentQueries);
    const size_t k = std::min(kExponentNeighbors + 1, nb);
    if (nq == 0 || nlist < 2) {
        return index.policy.exponent;
    }
    std::vector<float> base(nb * d), queries(nq * d);
    for (size_t i = 0; i < nb; i++) {
        std::copy_n(x + i * n / nb * d, d, base.data() + i * d);
    }
    // FAISS's products lose what is small beside the distance from the origin.
    const std::vector<float> centre = centre_of_means(nlist, d, index.get_xb());
    const std::vector<float> means = about(nlist, d, index.get_xb(), centre);
    base = about(nb, d, base.data(), centre);
    for (size_t i = 0; i < nq; i++) {
        std::copy_n(base.data() + i * nb / nq * d, d, queries.data() + i * d);
    }
    // On the sphere the orders by inner product and by L2 are the same.
    std::vector<float> dis(nq * k);
    std::vector<idx_t> ids(nq * k);
    faiss::knn_L2sqr(
            queries.data(), base.data(), d, nq, nb, k, dis.data(), ids.data());

    std::vector<float> neighbors(nq * k * d);
    for (size_t i = 0; i < nq * k; i++) {
        std::copy_n(
                base.data() + std::max<idx_t>(ids[i], 0) * d,
                d,
                neighbors.data() + i * d);
    }
    std::vector<idx_t> lists(nq * k);
    std::vector<float> list_dis(nq * k);
    faiss::knn_L2sqr(
            neighbors.data(),
            means.data(),
            d,
            nq * k,
            nlist,
            1,
            list_dis.data(),
            lists.data());

    // log d of every list for every query, and their sum over the lists of
    // the neighbours.
    std::vector<float> log_dis(nq * nlist);
    faiss::pairwise_L2sqr(
            d, nq, queries.data(), nlist, means.data(), log_dis.data());
    for (float& v : log_dis) {
        v = std::log(std::max(v, std::numeric_limits<float>::min()));
    }
    std::vector<double> count(nq);
    double observed = 0;
    for (size_t i = 0; i < nq; i++) {
        const idx_t self = i * nb / nq;
        for (size_t j = i * k; j < (i + 1) * k; j++) {
            if (ids[j] >= 0 && ids[j] != self) {
                observed += log_dis[i * nlist + lists[j]];
                count[i]++;
            }
        }
    }
    double low = kMinExponent, high = kMaxExponent;
    for (int i = 0; i < 20; i++) {
        const double v = std::sqrt(low * high);
        // The larger v, the smaller the distances that the posterior expects.
        const double expected = expected_log_distance(nlist, log_dis, count, v);
        (expected > observed ? low : high) = v;
    }
    return std::sqrt(low * high);
}

} // namespace

void IndexGMM::train(idx_t n, const float* x) {
    FAISS_THROW_IF_NOT_FMT(n > 0, "n = %" PRId64 ", expected > 0", n);
    check_finite("x", n, d, x);
    std::vector<float> unit;
    if (metric_type == faiss::METRIC_INNER_PRODUCT) {
        unit.assign(x, x + n * d);
        faiss::fvec_renorm_L2(d, n, unit.data());
        x = unit.data();
    }

    IndexGMM fitted(d, nlist, covariance, metric_type);
    GpuGMMClustering clus(d, nlist, cp);
    clus.covariance = covariance;
    clus.verbose = cp.verbose || verbose;
    faiss::IndexFlat assigner(d);
    clus.train(n, x, assigner);
    fitted.set_mixture(clus.mixture());
    const double exponent = fit_exponent(fitted, n, x);

    set_mixture(clus.mixture());
    backend = clus.backend;
    n_trained = n;
    policy.exponent = exponent;
    if (clus.verbose) {
        printf("IndexGMM: exponent of the scale-free posterior %.3g\n",
               exponent);
    }
}

} // namespace faiss_ext
