#pragma once

#include "../FullCovariance.h"
#include "Blas.h"
#include "CpuBackend.h"

namespace gmm {

/// Beyond this many nats below the best, all k components together have less
/// than the least responsibility.
double matrix_reach(size_t k, float least_responsibility);

/** The mixture of kind `tied` in coordinates z = U^T y in which its covariance
 * is the identity: as tied_spherical, but for what the volumes differ by, which
 * is in the log-weights. */
GaussianMixture whitened(const GaussianMixture& model);

/// z = U^T y of n rows and their squared norms.
void whiten(
        size_t n,
        size_t d,
        const float* factor,
        const float* y,
        float* z,
        double* norm);

struct CpuBackend::MatrixScratch : Scratch {
    std::vector<float> z;
    std::vector<double> norm, top, sum;
    std::vector<double> rows; ///< of an outer product
    std::vector<int32_t> index;
    FullScorer::Scratch full;
    FullScorer::SmallScratch small;

    using Scratch::Scratch;
};

} // namespace gmm
