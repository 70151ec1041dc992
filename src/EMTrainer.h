#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "Backend.h"
#include "GaussianMixture.h"
#include "VectorSource.h"

namespace gmm {

enum class Initialisation {
    kmeans_plus_plus, ///< on a subsample (Arthur and Vassilvitskii 2007), for
                      ///< data in well separated groups
    random_subset,    ///< k distinct vectors
    hierarchical,     ///< k-means in each of sqrt(k) groups, on a sample of
                      ///< 128 vectors for a mean: what several iterations with
                      ///< all means reach, for less than one's time on a CPU;
                      ///< not for full and tied covariances
    given_means,      ///< the means of the model passed in
};

struct TrainingIteration {
    EStep step;
    double objective;    ///< mean log p(x) in the user's units; hard: mean
                         ///< squared distance
    double seconds;      ///< whole iteration
    double e_seconds;    ///< the backend's part
    double dropped_mass; ///< share of responsibility left out, in [0, 1]
    size_t reseeded;     ///< dead components restarted after this iteration
    double imbalance;    ///< K sum n_k^2 / (sum n_k)^2, 1 = balanced
};

struct TrainingOptions {
    Covariance covariance = Covariance::isotropic;
    Initialisation init = Initialisation::random_subset;
    int hard_iterations = 5; ///< k-means iterations before EM; none where
                             ///< variances are given or means are fixed;
                             ///< hierarchical: twice as many in each
                             ///< group, at least 2
    int niter = 20;          ///< EM iterations at most
    double tolerance = 1e-5; ///< stop when the mean log-likelihood gains less
                             ///< than this times its magnitude (in units of
                             ///< the data's deviation, at least d); 0: never
    /// K-means iterations after EM, for means whose vectors will be those
    /// nearest to them: responsibilities that many components share draw means
    /// together, at the worst into one. They fit variances and weights to these
    /// vectors as well. None where means are fixed.
    int last_hard_iterations = 0;
    /// Above 0: the least variance of a component, times that of the vectors
    /// around its mean before EM and, where it holds up a component, around
    /// the mean that EM has found (LocalVariance.h), for which there is a hard
    /// E-step more then. Diagonal, full, tied:
    /// larger in dimensions where vectors are farther apart. Full and tied:
    /// added to the diagonal
    double variance_floor = 1e-3;
    double reg_covar = 0;     ///< in the user's units squared, added to every
                              ///< variance (the diagonal) as scikit-learn's
    double min_count = 1.0;   ///< n_k below which a component is dead, in
                              ///< units of the least positive weight
    bool update_means = true; ///< false: means stay, the rest is fitted
    uint64_t seed = 1234;

    /// Applied to the means (user's units, size k * d) after each M-step:
    /// normalisation, rounding. Empty: none.
    std::function<void(float* means)> project_means;
    /// Called after each iteration; false stops the training, and what was
    /// reached is returned. May throw to abandon it.
    std::function<bool(const TrainingIteration&)> progress;
    /// Called, in any thread, while what comes before the first iteration takes
    /// long. May throw to abandon the training. Empty: nothing is called.
    std::function<void()> check;
};

/// Why a training ended.
enum class Stop {
    converged,      ///< the likelihood gained less than the tolerance
    max_iterations, ///< niter were done
    callback,       ///< TrainingOptions::progress returned false
};

struct TrainingResult {
    GaussianMixture model; ///< in the user's units
    std::vector<TrainingIteration> iterations;
    bool converged = false;
    Stop stop = Stop::max_iterations;

    /// EM iterations done, those of k-means not counted.
    int n_iter() const;
    /// The mean log-likelihood that the last EM iteration found, of the model
    /// before its M-step, as scikit-learn's lower_bound_; -infinity if none.
    double lower_bound() const;
};

/** Fits a mixture of k components by expectation maximisation.
 *
 * Time O(iterations n k d) in the backend, memory O(k d) + the backend's own.
 * Data are centred and scaled inside; the result is in the user's units. The
 * same seed, data and backend give the same model, bit for bit.
 *
 * @param weights  size source.n, non-negative, not all zero; or nullptr
 * @param start    read for Initialisation::given_means: means (k * d), and
 *                 variances (precisions_cholesky) and log_weights where they
 *                 are not empty; without variances, hard iterations come
 *                 first (hard_iterations) and find weights of their own
 *
 * Throws InvalidArgument for k = 0, k > n, a value that is not finite
 * (naming its row), weights that are negative or all zero, and options out of
 * range.
 */
TrainingResult train(
        const VectorSource& source,
        const float* weights,
        size_t k,
        const TrainingOptions& options,
        Backend& backend,
        const GaussianMixture* start = nullptr);

} // namespace gmm
