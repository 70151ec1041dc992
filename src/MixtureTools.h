#pragma once

#include <cstdint>
#include <vector>

#include "Backend.h"
#include "EMTrainer.h"

/// What one asks of a mixture that is fitted. Vectors and models are in the
/// user's units; a backend that is passed in is bound anew (set_data,
/// set_model). Rows with a value that is not finite are wrong input, named.
namespace gmm {

/// Free parameters, as scikit-learn counts them: k - 1 weights, k * d means,
/// and k, k * d, 1, k * d (d + 1) / 2 or d (d + 1) / 2 for the covariances.
size_t num_parameters(const GaussianMixture& model);

/// The weighted mean of log p(x_i).
double score(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend);

/// Akaike's criterion, 2 p - 2 log L (Akaike 1974). The weights are counts: L
/// is that of sum_i w_i vectors.
double aic(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend);

/// The Bayesian criterion, p log n - 2 log L (Schwarz 1978), n = sum_i w_i.
double bic(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend);

/** n independent draws.
 *
 * @param x           size n * d
 * @param components  which component each comes from, size n, or nullptr
 */
void sample(
        const GaussianMixture& model,
        size_t n,
        uint64_t seed,
        float* x,
        int64_t* components = nullptr);

/// The most responsible component of each vector, out has size source.n.
void predict(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        int64_t* out);

/// Responsibilities, size source.n * k; memory beyond that is O(k) a row of one
/// block.
void predict_proba(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out);

/// log p(x_i) of each vector, size source.n: GaussianMixture::log_prob, in the
/// backend's precision and time.
void log_prob(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out);

/// -sum_k r_ik log r_ik in nats, size source.n: 0 where one component is
/// certain, log k where none is preferred.
void responsibility_entropy(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out);

/// A mixture of `k` >= model.k components: those with the largest scatter
/// (weight times the trace of the covariance) are split until there are k.
GaussianMixture grow(const GaussianMixture& model, size_t k, uint64_t seed);

struct SweepEntry {
    size_t k;
    double aic;
    double bic;
    TrainingResult result;
};

/** Fits a mixture for each of some numbers of components, each from the one
 * before it, grown by splits, twice as many at a time at most: a sweep costs
 * little more than twice its last training. But for isotropic and
 * tied_spherical each is fitted from a start of its own as well, which takes
 * twice the time, and the likelier one taken.
 *
 * @param ks       ascending, at least one
 * @param options  of all trainings; the first begins as they say, the others
 *                 with means that are given and no k-means iterations
 */
std::vector<SweepEntry> sweep(
        const VectorSource& source,
        const float* weights,
        const std::vector<size_t>& ks,
        const TrainingOptions& options,
        Backend& backend);

} // namespace gmm
