#pragma once

#include "cuda/operands/Data.h"
#include "cuda/operands/Model.h"

namespace gmm::cuda {

/// Longest list that is sorted on the device; longer ones come unsorted.
constexpr int kMaxSorted = 4096;

struct TopArgs {
    int rows;
    int m;
    bool by_distance;
    PreparedRows prepared; ///< hi + lo
    float fp16_scale;
    /// scores [rows][padded_k], or nullptr: `components` holds the choice (m=1)
    const float* scores;

    uint32_t* components; ///< [rows][m]
    double* log_joint;    ///< [rows][m], log2, frame's units
    float* distances;     ///< [rows][m], frame's units
};

/// Chooses by scores, evaluates the chosen in fp64, puts the best first.
void choose_top(const TopArgs&, const Model&, cudaStream_t);

/// components[row] from select's lists (bound 0).
void unpack_best(
        const uint32_t* keys,
        const uint16_t* row_ranges,
        int rows,
        uint32_t* components,
        cudaStream_t);

} // namespace gmm::cuda
