#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "GaussianMixture.h"

namespace gmm::cuda {

/** How much larger than their estimate errors of fp16 are, for dimensions are
 * not alike.
 *
 * A score's error is sum_j delta_j (m_j - y_j) / v, delta what rounding moves a
 * coordinate by. From lengths alone its variance is |delta|^2 |m - y|^2 / (d
 * v^2); but delta_j^2 is in proportion to y_j^2, and where y_j is large, m_j -
 * y_j is as well. With T_j the data's variance and W_j that about their
 * components' means, T_j - sum_k pi_k m_kj^2, it is larger by the factor d
 * sum_j T_j W_j / (sum_j T_j sum_j W_j), whose square root this is.
 *
 * 1 for the diagonal kind, whose estimate goes by dimension, and where the
 * variances are not known. Cost: O(k d).
 *
 * @param variances  the data's, as in Frame
 */
inline double unevenness(
        const GaussianMixture& model, const std::vector<float>& variances) {
    if (variances.empty() || model.covariance == Covariance::diagonal) {
        return 1;
    }
    const size_t d = model.d;
    std::vector<double> within(variances.begin(), variances.end());
    for (size_t c = 0; c < model.k; c++) {
        const double weight = std::exp(double(model.log_weights[c]));
        const float* const mean = model.means.data() + c * d;
        for (size_t j = 0; j < d; j++) {
            within[j] -= weight * (double(mean[j]) * mean[j]);
        }
    }
    double product = 0, t = 0, w = 0;
    for (size_t j = 0; j < d; j++) {
        const double positive = std::max(0., within[j]);
        product += variances[j] * positive;
        t += variances[j];
        w += positive;
    }
    return w > 0 ? std::max(1., std::sqrt(d * product / (t * w))) : 1;
}

} // namespace gmm::cuda
