#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "SufficientStats.h"

namespace gmm {

/// The m means nearest to each of the means with these numbers, nearest first:
/// size wanted.size() * m.
using NearestMeans = std::function<void(
        const std::vector<size_t>& wanted, size_t m, int64_t* out)>;

/** How far apart vectors are around each mean: what a floor of its variance
 * is measured in. Neither vectors far away nor the distances between groups
 * of vectors have a say, as they have in the variance of all.
 *
 * For a mean with different vectors their variance about their own centre; for
 * one with a single vector, or equal ones, that of the sphere halfway to the
 * nearest centre of another mean's vectors; if there is none, `otherwise`. A
 * mean without vectors has the value of the nearest mean that has some.
 *
 * O(k d), and O(k d) more for each mean of the second kind: by a backend,
 * which is quick at it, where there is nearest_means.
 *
 * @param nearest    statistics of EStep::hard
 * @param means      those it was for, size k * d
 * @param otherwise  positive
 * @param nearest_means  may err by rounding; the nearest centre is that of one
 *                   of the four nearest means then; empty: distances to all
 * means are computed here
 * @param row_weight  as in component_scatter (Split.h)
 * @return           a mean over dimensions, positive, size k */
std::vector<double> local_variances(
        const SufficientStats& nearest,
        const std::vector<float>& means,
        double otherwise,
        const NearestMeans& nearest_means = {},
        double row_weight = 1);

/** How the variances around means are shared by dimensions whose units differ:
 * of each mean the variance in a dimension over the mean of all, averaged over
 * means by n_k, so that a vector far away has its own mean's say only; tied: of
 * all means together. At least 1e-20, and 1 where all vectors are equal.
 *
 * @param nearest     statistics of EStep::hard
 * @param row_weight  as in component_scatter (Split.h)
 * @return            size d; empty for the kinds with one variance for all
 *                 dimensions */
std::vector<double> local_shape(
        const SufficientStats& nearest, double row_weight = 1);

} // namespace gmm
