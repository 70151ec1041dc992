#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "faiss_ext/impl/truth.h"

namespace faiss_ext {

/// One look at a query between two rounds.
struct Look {
    float distances;
    float cost;    ///< with scores, in distances
    float missing; ///< share of the k neighbours not found yet
    bool full;     ///< k were found; else what follows says nothing
    std::array<float, 5> features;
    float predicted; ///< missing, by the weights in force
};

/** The looks of each query [q0, q1) while its cells or vectors are scanned in
 * an order: a search without distances, which the truth has.
 *
 * A query is followed to twice the distances that found everything, and on
 * while what is predicted to be missing is above kLeastMissing; through a
 * quarter of the index at most.
 */
std::vector<std::vector<Look>> trace_queries(
        GMMIndexRef index,
        ProbeOrder order,
        size_t q0,
        size_t q1,
        const float* xq,
        const Truth& truth);

constexpr float kLeastMissing = 1e-3f;

} // namespace faiss_ext
