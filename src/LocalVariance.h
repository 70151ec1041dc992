#pragma once

#include <vector>

#include "SufficientStats.h"

namespace gmm {

/** How far apart vectors are around each mean: what a floor of its variance
 * is measured in. Neither vectors far away nor the distances between groups
 * of vectors have a say, as they have in the variance of all.
 *
 * For a mean with different vectors their variance about their own centre; for
 * one with a single vector, or equal ones, that of the sphere halfway to the
 * nearest different mean; if there is none, `otherwise`.
 *
 * O(k d), and O(k d) more for each mean of the second kind.
 *
 * @param nearest    statistics of EStep::hard
 * @param means      those it was for, size k * d
 * @param otherwise  positive
 * @return           a mean over dimensions, positive, size k */
std::vector<double> local_variances(
        const SufficientStats& nearest,
        const std::vector<float>& means,
        double otherwise);

} // namespace gmm
