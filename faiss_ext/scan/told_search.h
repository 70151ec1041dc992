#pragma once

#include <cstddef>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/told.h"

namespace faiss_ext {

/** A search as far as what was told goes: conversations of queries that cannot
 * go on have asked something, and these have no results yet.
 *
 * @param conversations  size n, of each query
 */
void search_told(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        std::vector<Conversation>& conversations,
        float* distances,
        idx_t* labels);

/// What is asked, in the order of queries.
std::vector<ToldEntry> answer_asked(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* x,
        size_t k,
        const std::vector<AskedEntries>& request);

} // namespace faiss_ext
