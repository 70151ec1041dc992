#pragma once

#include <cstddef>

#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

/** The lists of each query by the plan's order of whole lists, and what FAISS's
 * scanners want to know of them: squared distances, or inner products.
 *
 * @param coarse  size n * plan.nprobe
 * @param keys    the same size; -1 where there are no more
 */
void probe(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float* coarse,
        idx_t* keys);

} // namespace faiss_ext
