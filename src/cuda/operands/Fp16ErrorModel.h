#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace gmm::cuda {

/** How much larger than their estimate errors of fp16 are, for dimensions are
 * not alike.
 *
 * A score's error is sum_j delta_j (m_j - y_j) / v, delta what rounding moves a
 * coordinate by. From lengths alone its variance is |delta|^2 |m - y|^2 / (d
 * v^2); but delta_j^2 is in proportion to y_j^2, and where y_j is large, m_j -
 * y_j is as well. With T_j the data's variance and W_j that about their
 * components' means, it is larger by the factor d sum_j T_j W_j / (sum_j T_j
 * sum_j W_j), whose square root this is.
 *
 * @param variances  the data's, as in Frame; where they are not known, 1
 * @param explained  sum_k pi_k m_kj^2 (ModelSurvey.h): W_j = T_j - explained_j
 */
inline double fp16_error_factor(
        const std::vector<float>& variances,
        const std::vector<double>& explained) {
    const size_t d = explained.size();
    if (variances.size() != d) {
        return 1;
    }
    double product = 0, t = 0, w = 0;
    for (size_t j = 0; j < d; j++) {
        const double within = std::max(0., variances[j] - explained[j]);
        product += variances[j] * within;
        t += variances[j];
        w += within;
    }
    return w > 0 ? std::max(1., std::sqrt(d * product / (t * w))) : 1;
}

} // namespace gmm::cuda
