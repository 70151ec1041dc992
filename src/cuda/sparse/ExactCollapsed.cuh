#pragma once

#include "cuda/sparse/Evaluate.cuh"

namespace gmm::cuda {

/** Puts exact scores in the place of those of components that have collapsed,
 * which are differences of numbers so large that fp32 has no bits of them.
 * Not for diagonal covariances.
 *
 * @param numbers  of the rows, in the block; nullptr: 0, 1, ...
 * @param scores   [rows][padded_k]
 */
void exact_collapsed(
        const ExactArgs&,
        const Model&,
        const uint32_t* numbers,
        int rows,
        float* scores,
        cudaStream_t);

} // namespace gmm::cuda
