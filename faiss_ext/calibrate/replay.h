#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/calibrate/ground_truth.h"

namespace faiss_ext {

/// One look at a query between two rounds.
struct Look {
    float distances;
    float cost;    ///< with scores, in distances
    float missing; ///< share of the k neighbours not found yet
    bool full;     ///< k were found; else the features say nothing
    StopWeights features;
};
using Looks = std::vector<std::vector<Look>>;

/** The looks of each query while its cells or vectors are scanned in
 * an order: a search without distances, which the truth has.
 *
 * A query is followed to three times the distances that found everything,
 * where nearly every stop has come, and through a quarter of the index at most.
 */
Looks trace_queries(
        GMMIndexRef index,
        ProbeOrder order,
        size_t nq,
        const float* xq,
        const Truth& truth);

} // namespace faiss_ext
