#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/CellRanker.h"
#include "faiss_ext/impl/SearchPlan.h"

namespace faiss_ext {

/// Called between rounds of a query: (query, progress, runs scanned in the
/// round, k-th distance so far, infinite while fewer are found); true stops
/// the query. Calibration watches a search through it.
using Checkpoint = std::function<bool(
        size_t, const Progress&, const std::vector<Run>&, float)>;

/** k nearest neighbours under a plan; labels are (list, offset) pairs if
 * store_pairs. Updates faiss::indexIVF_stats. */
void gmm_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        float* distances,
        idx_t* labels,
        bool store_pairs = false,
        const Checkpoint* checkpoint = nullptr);

void gmm_range_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result);

} // namespace faiss_ext
