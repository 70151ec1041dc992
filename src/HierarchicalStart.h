#pragma once

#include <functional>
#include <random>
#include <vector>

#include "GaussianMixture.h"
#include "SufficientStats.h"
#include "VectorSource.h"

namespace gmm {

/// Means, and the statistics of the vectors nearest to each of them.
struct HierarchicalStart {
    std::vector<float> means; ///< size k * d, in the frame's units
    SufficientStats stats;    ///< what an M-step makes a model of
};

/** A start for k means at the price of 2 sqrt(k) means: about sqrt(k) groups
 * by k-means, then in each group as many means as its share of the weight, by
 * k-means of its own.
 *
 * A sample of at most 128 vectors for a mean takes part; vectors are gathered
 * one group at a time. The same seed and data give the same bits whatever the
 * number of threads.
 *
 * @param k           at most the number of vectors of positive weight
 * @param iterations  of k-means in each group, at least 1
 * @param check       called before each group, in any thread; may throw
 */
HierarchicalStart hierarchical_start(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        Covariance covariance,
        size_t k,
        int iterations,
        std::mt19937_64& random,
        const std::function<void()>& check = [] {});

} // namespace gmm
