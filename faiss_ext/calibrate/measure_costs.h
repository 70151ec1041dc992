#pragma once

#include <cstddef>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// What codes, distances and queries take, from searches of some of the queries
/// at settings of different proportions, in one thread.
Calibration::Costs measure_costs(GMMIndexRef index, size_t nq, const float* xq);

} // namespace faiss_ext
