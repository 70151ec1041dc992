#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "Backend.h"
#include "GaussianMixture.h"
#include "VectorSource.h"

namespace gmm {

/// Where the means of a training start.
enum class Initialisation {
    kmeans_plus_plus, ///< on a subsample (Arthur and Vassilvitskii 2007), for
                      ///< data in well separated groups
    random_subset,    ///< k distinct vectors
    hierarchical,     ///< k-means in each of sqrt(k) groups, on a sample of 128
                  ///< vectors a mean: as good as several iterations with all
                  ///< means, in less time than one takes on a CPU; not for
                  ///< full and tied covariances
    given_means, ///< the means of the `start` given to train()
};

/// What an iteration did, of EM (EStep::soft) or k-means (EStep::hard).
struct TrainingIteration {
    EStep step;
    double objective; ///< soft: mean log p(x) in the user's units; hard: mean
                      ///< squared distance
    double seconds;   ///< of the whole iteration
    double e_seconds; ///< of the backend's E-step
    double dropped_mass; ///< share of responsibility left out, in [0, 1]
    size_t reseeded;     ///< dead components restarted after this iteration
    double imbalance;    ///< K sum n_k^2 / (sum n_k)^2, 1 = balanced
};

struct TrainingOptions {
    Covariance covariance = Covariance::isotropic;
    Initialisation init = Initialisation::random_subset;
    int hard_iterations = 5; ///< k-means iterations before EM; none where
                             ///< variances are given or means are fixed;
                             ///< hierarchical: twice as many in each group, at
                             ///< least 2
    int niter = 20;          ///< EM iterations at most
    double tolerance = 1e-5; ///< EM ends when the mean log-likelihood gains
                             ///< less than this times its magnitude (in units
                             ///< of the data's deviation, at least d); 0: never
    /// k-means iterations after EM, for users that assign vectors to their
    /// nearest mean: where many components share a vector's responsibility, EM
    /// draws their means together. Variances and weights are fitted to the
    /// nearest vectors, too. None where means are fixed.
    int last_hard_iterations = 0;
    /// Above 0: the least variance of a component, as a share of the variance
    /// of the vectors around its mean before EM (LocalVariance.h). Where EM
    /// ends at that, it is measured anew around the mean that EM has found,
    /// which takes one hard E-step more. For diagonal, full and tied
    /// covariances it is larger in dimensions where vectors are farther apart;
    /// for full and tied ones it is added to the diagonal, and at least what
    /// sums in double leave matrices positive definite by. What is added, as
    /// reg_covar is, is no part of the likelihood: that may fall by a little.
    double variance_floor = 1e-3;
    double reg_covar = 0;     ///< in the user's units squared, added to every
                              ///< variance (the diagonal) as scikit-learn's
    double min_count = 1.0;   ///< n_k below which a component is dead, in
                              ///< units of the least positive weight
    bool update_means = true; ///< false: means stay, the rest is fitted
    uint64_t seed = 1234;

    /// Applied to the means (user's units, size k * d) after each M-step, to
    /// normalise or round them. Empty: they stay.
    std::function<void(float* means)> project_means;
    /// Called after each iteration if it is not empty. false ends the training
    /// with the model that was reached; an exception abandons it.
    std::function<bool(const TrainingIteration&)> progress;
    /// Called now and then, in any thread, before the first iteration if it is
    /// not empty. An exception abandons the training.
    std::function<void()> check;
};

/// Why a training ended.
enum class Stop {
    converged,      ///< the likelihood gained less than the tolerance
    max_iterations, ///< all niter iterations were done
    callback,       ///< TrainingOptions::progress returned false
};

struct TrainingResult {
    GaussianMixture model; ///< in the user's units
    std::vector<TrainingIteration> iterations;
    bool converged = false;
    Stop stop = Stop::max_iterations;

    /// Iterations of EM, without those of k-means.
    int n_iter() const;
    /// The mean log-likelihood of the model before the last M-step of EM, as
    /// scikit-learn's lower_bound_; -infinity without an iteration of EM.
    double lower_bound() const;
};

/** Fits a mixture of k components by expectation maximisation.
 *
 * Time O(iterations n k d) in the backend, memory O(k d) + the backend's own.
 * Full covariances: O(iterations (n k d^2 + k d^3)) and O(k d^2); tied: O(n k d
 * + n d^2 + d^3) an iteration and O(k d + d^2).
 * Data are centred and scaled inside; the result is in the user's units. The
 * same seed, data and backend give the same model, bit for bit.
 *
 * @param weights  size source.n, non-negative, at least k of them positive; or
 *                 nullptr: all are 1
 * @param k        components, at most source.n
 * @param backend  bound anew (set_data, set_model), also after the training
 * @param start    read for Initialisation::given_means: means (k * d), and
 *                 variances (or precisions_cholesky) and log_weights if they
 *                 are not empty. Without variances k-means comes first
 *                 (hard_iterations) and fits weights of its own
 *
 * Throws InvalidArgument for k = 0, k > n, a value that is not finite (naming
 * its row), such weights, a start that is not as above, and options out of
 * range; DeviceError as the backend does.
 */
TrainingResult train(
        const VectorSource& source,
        const float* weights,
        size_t k,
        const TrainingOptions& options,
        Backend& backend,
        const GaussianMixture* start = nullptr);

} // namespace gmm
