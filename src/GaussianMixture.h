#pragma once

#include <cstddef>
#include <vector>

namespace gmm {

/// The shape of a component's covariance matrix. Files hold these numbers.
enum class Covariance {
    isotropic = 0,      ///< sigma_k^2 I, one variance a component
    diagonal = 1,       ///< diag(sigma_kj^2), one a component and dimension
    tied_spherical = 2, ///< sigma^2 I, one variance for all components
    full = 3,           ///< Sigma_k, one matrix a component
    tied = 4,           ///< Sigma, one matrix for all components
};

/// Throws InvalidArgument for a number that is none of these.
void check_covariance(Covariance covariance);

/// "isotropic", "diagonal", "tied_spherical", "full", "tied".
const char* to_string(Covariance covariance);

/// Whether precisions_cholesky holds the covariances: full and tied.
bool has_matrices(Covariance covariance);

/// Whether all components share one covariance: tied_spherical and tied.
bool is_tied(Covariance covariance);

/// Number of variances of a mixture: k, k * d or 1; 0 for full and tied.
size_t num_variances(Covariance covariance, size_t k, size_t d);

/// Size of precisions_cholesky: k * d * d (full), d * d (tied) or 0.
size_t num_factors(Covariance covariance, size_t k, size_t d);

/** The parameters of a Gaussian mixture
 *
 *    p(x) = sum_k pi_k N(x; mu_k, Sigma_k)
 *
 * and their evaluation in double, slow and obvious: the reference that every
 * backend is tested against.
 */
struct GaussianMixture {
    Covariance covariance = Covariance::isotropic;
    size_t d = 0; ///< dimension of the vectors
    size_t k = 0; ///< number of components

    std::vector<float> means;       ///< size k * d
    std::vector<float> variances;   ///< size num_variances(covariance, k, d)
    std::vector<float> log_weights; ///< log pi_k, size k
    /** For full and tied: the U_k with U_k U_k^T = Sigma_k^-1, upper triangular
     * with a positive diagonal, row-major, so that |(x - mu_k)^T U_k|^2 is the
     * squared Mahalanobis distance. The same as scikit-learn's
     * precisions_cholesky_. Size num_factors(covariance, k, d). */
    std::vector<float> precisions_cholesky;

    /// Variance of component c in dimension j, for every covariance kind. Takes
    /// O(d^3) for full and tied: component_variances() in FullCovariance.h has
    /// all dimensions at once.
    float variance(size_t c, size_t j) const;

    /** Throws InvalidArgument, naming the field and the first bad value, if
     * d or k is 0, a size does not fit, a value is not finite, a variance or a
     * diagonal element of a factor is not positive, a factor is not upper
     * triangular, or the weights do not sum to 1 (within 1e-3). */
    void validate() const;

    /** log pi_k + log N(x_i; mu_k, Sigma_k). Throws InvalidArgument for k = 0.
     *
     * @param n    number of vectors
     * @param x    vectors, size n * d
     * @param out  size n * k
     */
    void log_joint(size_t n, const float* x, double* out) const;

    /** log p(x_i) = logsumexp_k of log_joint. Throws as that. MixtureTools.h
     * has a faster one, by a backend.
     *
     * @param out  size n
     */
    void log_prob(size_t n, const float* x, double* out) const;
};

/** The affine map y = (x - center) * scale that training works in.
 *
 * Squared norms of uncentred data dwarf the variances (SIFT: |x| = 512), so
 * that differences of them, which a log-likelihood is made of, drown in
 * rounding. Backends receive vectors in the user's units and models in the
 * frame's units, and convert vectors as they load them.
 */
struct Frame {
    std::vector<float> center; ///< size d
    float scale = 1;           ///< positive
    /// Variance of the data in each dimension, in the frame's units; empty: not
    /// known. Read by estimates of rounding errors alone.
    std::vector<float> variances;

    /// Converts a mixture from the user's units to the frame's; log_weights
    /// stay (a log-density in the frame is the user's minus d * log(scale)).
    /// Throws InvalidArgument if `center` or `scale` is not as above.
    GaussianMixture to_frame(const GaussianMixture& model) const;
    /// Converts a mixture from the frame's units to the user's. Throws as that.
    GaussianMixture to_user(const GaussianMixture& model) const;
};

} // namespace gmm
