#pragma once

#include <cstddef>

#include "faiss_ext/Calibration.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// An index of fewer vectors is not worth calibrating.
constexpr size_t kMinCalibrationVectors = 1000;

/// See IVFGMM::calibrate; the result is left to the caller to keep.
Calibration calibrate_index(
        GMMIndexRef index, size_t nq, const float* xq, size_t k);

/// For the k of the last calibration, and on its queries if it was given any;
/// else on 100 to 400 vectors of the index, as time allows.
void calibrate_again(GMMIndexRef index);

} // namespace faiss_ext
