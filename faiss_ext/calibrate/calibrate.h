#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "faiss_ext/rank/CellRanker.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// log clamped to +-bound. Ratios of distances can be 0 or infinite.
inline float bounded_log(float x, float bound = 20) {
    return x > 0 ? std::clamp(std::log(x), -bound, bound) : -bound;
}
/// Of a squared distance, whatever its unit: any float's is within.
inline float log_distance(float x) {
    return bounded_log(x, 100);
}

/// The terms of Calibration's missing mass, and their weights.
using StopWeights = std::array<float, 5>;
StopWeights stop_features(const Progress& progress, float kth_distance);
float missing_mass(const StopWeights& weights, const StopWeights& features);

/// An index of fewer vectors is not worth calibrating.
constexpr size_t kMinCalibrationVectors = 1000;

/// See IVFGMM::calibrate; the result is left to the caller to keep.
Calibration calibrate_index(
        GMMIndexRef index, size_t nq, const float* xq, size_t k);

/// For the k of the last calibration, and on its queries if it was given any;
/// else on as many as cost a quarter of what assigning to lists does.
void calibrate_again(GMMIndexRef index);

} // namespace faiss_ext
