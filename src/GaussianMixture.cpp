#include "GaussianMixture.h"

namespace gmm {

size_t num_variances(Covariance covariance, size_t k, size_t d) {
    switch (covariance) {
        case Covariance::isotropic:
            return k;
        case Covariance::diagonal:
            return k * d;
        case Covariance::tied:
            break;
    }
    return 1;
}

} // namespace gmm
