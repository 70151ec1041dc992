#pragma once

#include <cstddef>
#include <vector>

#include "GaussianMixture.h"

namespace gmm {

/// Size of SufficientStats::sum_x2: k, k * d (diagonal), k * d (d + 1) / 2
/// (full) or k + d (d + 1) / 2 (tied).
size_t num_moments(Covariance covariance, size_t k, size_t d);

/** What the E-step leaves for the M-step, in the units of the Frame.
 *
 * Additive: statistics of blocks, GPUs and machines can be summed in any
 * grouping. Sums are in double. Memory O(k d); full: 4 k d (d + 1) bytes for
 * the second moments, as many as the model's factors have.
 */
struct SufficientStats {
    Covariance covariance = Covariance::isotropic;
    size_t d = 0;
    size_t k = 0;

    std::vector<double> n_k;   ///< sum_i w_i r_ik, size k
    std::vector<double> sum_x; ///< sum_i w_i r_ik y_i, size k * d
    /// sum_i w_i r_ik |y_i|^2, size k; diagonal: of y_ij^2, size k * d; full:
    /// of y_i y_i^T, the lower triangles row by row; tied: |y_i|^2 of each
    /// component, then the lower triangle of all together
    std::vector<double> sum_x2;

    double weight = 0; ///< sum_i w_i
    /// sum_i w_i log p(y_i), y in the frame; hard mode: minus the sum of
    /// squared distances to the nearest mean
    double objective = 0;
    /// responsibility (weighted) that a sparse M-step left out
    double dropped_mass = 0;

    SufficientStats() = default;
    SufficientStats(Covariance covariance, size_t k, size_t d);

    void clear();
    /// Adds the other's sums. Throws InvalidArgument if shapes differ.
    void merge(const SufficientStats& other);
};

/** The M-step: the mixture that maximises the expected log-likelihood
 * (Dempster, Laird and Rubin 1977; Bishop, PRML, eq. 9.24 to 9.26).
 *
 * Components with n_k < min_count keep the means and variances that `model`
 * has on entry (with the weight of min_count, or a millionth of all if that is
 * more): the trainer re-seeds them.
 *
 * @param variance_floor  of each component, in the frame's units, > 0, size k;
 *                        or one for all. Full and tied: added to the diagonal,
 *                        so that no eigenvalue is below it. The kinds with one
 *                        variance or matrix for all take their median, weighted
 *                        by n_k, in which a vector far away has little say
 * @param reg_covar       in the frame's units, added to every variance (to the
 *                        diagonal) as scikit-learn's reg_covar
 * @param floor_shape     of diagonal, full and tied: what a floor is multiplied
 *                        by in each dimension, size d; empty: 1
 * @param update_means    false: means stay, the rest is fitted around them
 * @param model           in and out, in the frame's units
 */
void m_step(
        const SufficientStats& stats,
        const std::vector<double>& variance_floor,
        double min_count,
        bool update_means,
        GaussianMixture& model,
        double reg_covar = 0,
        const std::vector<double>& floor_shape = {});

/// The value up to which half of the weight lies; values.size() >= 1.
double weighted_median(
        const std::vector<double>& values, const std::vector<double>& weights);

} // namespace gmm
