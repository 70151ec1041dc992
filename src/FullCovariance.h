#pragma once

#include <cstddef>
#include <vector>

#include "GaussianMixture.h"
#include "SufficientStats.h"

/// Matrices of the kinds `full` and `tied`: row-major, size d * d, in double.
namespace gmm {

/** Replaces the lower triangle of a by L, a = L L^T, and clears the rest.
 *
 * Only the lower triangle is read. False, with a undefined, if a is not
 * positive definite in double precision. */
bool cholesky(size_t d, double* a);

/// The inverse of the lower triangular l, which is lower triangular as well.
void invert_lower(size_t d, const double* l, double* out);

/** U with U U^T = covariance^-1, upper triangular: L^-T of the covariance's
 * Cholesky factor L, as scikit-learn's precisions_cholesky_.
 *
 * @param covariance  its lower triangle is read; overwritten
 * @param out         size d * d
 * @return false, with out untouched, if it is not positive definite */
bool precision_cholesky(size_t d, double* covariance, float* out);

/// Sigma_c of any covariance kind, size d * d. O(d^3) for full and tied.
std::vector<double> covariance_matrix(const GaussianMixture& model, size_t c);

/// L with L L^T = Sigma_c, lower triangular, size d * d. O(d^3) for full and
/// tied.
std::vector<double> covariance_factor(const GaussianMixture& model, size_t c);

/// Replaces z by L z with that L, size d: from normal deviates to those of
/// component c. O(d^2) for full and tied.
void times_factor(const GaussianMixture& model, size_t c, double* z);

/// The diagonal of Sigma_c, size d. O(d^3) for full and tied.
std::vector<double> component_variances(const GaussianMixture& model, size_t c);

/// Of each component the mean of its variances, size k. O(k d^3) for full,
/// O(d^3) for tied.
std::vector<double> mean_variances(const GaussianMixture& model);

/// A lower bound of all variances of a mixture and about the largest: for full
/// and tied the least variance of a dimension given the others, and the largest
/// eigenvalue by a few power iterations. O(k d^2), O(d^2) for tied.
struct VarianceRange {
    double least, largest;
};
VarianceRange variance_range(const GaussianMixture& model);

/// log det Sigma_c = -2 sum_j log U_jj of an upper triangular U, size d * d.
double log_determinant(size_t d, const float* precision_cholesky);

/// The precision factor of component c, size d * d; full and tied only.
const float* precision_factor(const GaussianMixture& model, size_t c);

/** The second half of m_step for `full` and `tied`, whose means are those of
 * the model: fits precisions_cholesky,
 *
 *    full  Sigma_k = sum_i w_i r_ik (y_i - mu_k)(y_i - mu_k)^T / n_k + R_k
 *    tied  the same sum over all components, over all of n_k, + R
 *
 * (Bishop, PRML, eq. 9.25), R_k = diag(floors_k floor_shape_j + reg_covar).
 * Components with n_k < min_count keep what they have. Throws InvalidArgument
 * if a matrix is not positive definite: R is too small for the data.
 *
 * @param floors       size k; tied: their weighted_median()
 * @param floor_shape  size d; empty: 1 */
void fit_matrices(
        const SufficientStats& stats,
        const std::vector<double>& floors,
        const std::vector<double>& floor_shape,
        double reg_covar,
        double min_count,
        GaussianMixture& model);

} // namespace gmm
