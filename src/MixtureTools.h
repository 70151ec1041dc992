#pragma once

#include <cstdint>
#include <vector>

#include "Backend.h"
#include "EMTrainer.h"

/// Functions of fitted mixtures. Vectors and models are in the user's units. A
/// backend that is passed in is bound anew (set_data, set_model). `weights` has
/// size source.n, or is nullptr: all are 1. What reads vectors throws
/// InvalidArgument for a model that is not valid or of another dimension than
/// the source, a value that is not finite (naming its row) and wrong weights.
namespace gmm {

/// Free parameters, as scikit-learn counts them: k - 1 weights, k * d means,
/// and k, k * d, 1, k * d (d + 1) / 2 or d (d + 1) / 2 for the covariances.
size_t num_parameters(const GaussianMixture& model);

/// The weighted mean of log p(x_i): sum_i w_i log p(x_i) / sum_i w_i.
double score(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend);

/// Akaike's criterion, 2 p - 2 log L (Akaike 1974), with p = num_parameters.
/// Weights are counts: L is the likelihood of sum_i w_i vectors.
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

/// The most responsible component of each vector; out has size source.n.
void predict(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        int64_t* out);

/// The responsibilities of all components for each vector, size source.n * k.
/// Memory beyond that is O(k) for each row of one block.
void predict_proba(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out);

/// log p(x_i) of each vector, size source.n, in the backend's precision
/// (GaussianMixture::log_prob is the slow one in double).
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

/// A mixture of k components, made by splitting those of `model` with the
/// largest scatter (weight times the trace of the covariance). Throws
/// InvalidArgument for k below model.k.
GaussianMixture grow(const GaussianMixture& model, size_t k, uint64_t seed);

struct SweepEntry {
    size_t k;
    double aic;
    double bic;
    TrainingResult result;
};

/** Fits a mixture for each of several numbers of components.
 *
 * Each starts from the mixture before it, which grow() splits, to twice as many
 * components at a time: a sweep takes little more than twice the time of its
 * last training. Diagonal, full and tied mixtures are fitted from a start of
 * their own as well, which takes twice the time, and the likelier one is kept.
 * Ends early, with the entries so far, if options.progress returns false.
 *
 * @param ks       numbers of components, ascending, at least one
 * @param options  of all trainings; from the second on means are given and
 *                 there are no k-means iterations before EM. init must not be
 *                 given_means, since the first has no start
 */
std::vector<SweepEntry> sweep(
        const VectorSource& source,
        const float* weights,
        const std::vector<size_t>& ks,
        const TrainingOptions& options,
        Backend& backend);

} // namespace gmm
