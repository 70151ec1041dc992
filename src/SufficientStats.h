#pragma once

#include <cstddef>
#include <vector>

#include "GaussianMixture.h"

namespace gmm {

/// Size of SufficientStats::sum_x2: k, k * d (diagonal), k * d (d + 1) / 2
/// (full) or k + d (d + 1) / 2 (tied).
size_t num_moments(Covariance covariance, size_t k, size_t d);

/** What the E-step leaves for the M-step: sums over vectors y_i in the frame's
 * units, with weights w_i and responsibilities r_ik.
 *
 * Additive: statistics of blocks, GPUs and machines can be summed in any
 * grouping. Sums are in double. Memory O(k d); for full covariances 4 k d
 * (d + 1) bytes for the second moments, as much as the model's factors.
 */
struct SufficientStats {
    Covariance covariance = Covariance::isotropic;
    size_t d = 0;
    size_t k = 0;

    std::vector<double> n_k;   ///< sum_i w_i r_ik, size k
    std::vector<double> sum_x; ///< sum_i w_i r_ik y_i, size k * d
    /// sum_i w_i r_ik |y_i|^2, size k. Diagonal: the same of y_ij^2, size k *
    /// d. Full: of y_i y_i^T, the lower triangle of each component row by row.
    /// Tied: of |y_i|^2 for each component, then the lower triangle of y_i
    /// y_i^T for all together.
    std::vector<double> sum_x2;

    double weight = 0; ///< sum_i w_i
    /// sum_i w_i log p(y_i); of EStep::hard minus sum_i w_i times the squared
    /// distance to the nearest mean.
    double objective = 0;
    /// Sum of the weighted responsibilities that a backend left out.
    double dropped_mass = 0;

    SufficientStats() = default;
    SufficientStats(Covariance covariance, size_t k, size_t d);

    void clear(); ///< sets all sums to 0
    /// Adds the other's sums. Throws InvalidArgument if shapes differ.
    void merge(const SufficientStats& other);
};

/** The M-step: the mixture that maximises the expected log-likelihood
 * (Dempster, Laird and Rubin 1977; Bishop, PRML, eq. 9.24 to 9.26).
 *
 * Components with n_k < min_count keep the means and variances that `model`
 * has on entry (with the weight of min_count, or a millionth of all if that is
 * more): the trainer re-seeds them. Throws InvalidArgument for shapes that do
 * not fit, floors that are not positive and a negative reg_covar.
 *
 * @param variance_floor  least variance of each component, in the frame's
 *                        units, > 0, size k or 1 (for all). For full and tied
 *                        it is added to the diagonal, so that no eigenvalue is
 *                        below it. tied_spherical and tied take the median,
 *                        weighted by n_k, in which a vector far away has little
 *                        say
 * @param update_means    false: means stay, the rest is fitted around them
 * @param model           in and out, in the frame's units
 * @param reg_covar       in the frame's units, added to every variance (to the
 *                        diagonal) as scikit-learn's reg_covar
 * @param floor_shape     for diagonal, full and tied: a factor of the floors
 *                        for each dimension, size d; empty: 1
 */
void m_step(
        const SufficientStats& stats,
        const std::vector<double>& variance_floor,
        double min_count,
        bool update_means,
        GaussianMixture& model,
        double reg_covar = 0,
        const std::vector<double>& floor_shape = {});

/// The median of at least one value, each counted by its weight.
double weighted_median(
        const std::vector<double>& values, const std::vector<double>& weights);

} // namespace gmm
