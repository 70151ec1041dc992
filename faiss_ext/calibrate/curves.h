#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/calibrate/ground_truth.h"

namespace faiss_ext {

/// A calibration takes so many queries at least.
constexpr size_t kMinQueries = 20;

/** Searches for all queries at one setting after the other: for each number of
 * neighbours the settings that nothing cheaper beats, cheapest first, the last
 * of which searches everything.
 *
 * @param truths  what the queries are asked for; where there is a second, half
 *                of them are asked for that, too, and a setting counts for the
 *                less that it finds
 * @param ks      numbers of neighbours, ascending
 */
std::vector<Calibration::Curve> measure_curves(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        const std::vector<GroundTruth>& truths,
        const Calibration::Costs& costs,
        const std::vector<size_t>& ks);

} // namespace faiss_ext
