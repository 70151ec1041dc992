#pragma once

#include <cstddef>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

/// What a search has done, summed over queries.
struct SearchCounts {
    size_t distances = 0, lists = 0, updates = 0, cells = 0, codes = 0;

    void operator+=(const SearchCounts& o) {
        distances += o.distances;
        lists += o.lists;
        updates += o.updates;
        cells += o.cells;
        codes += o.codes;
    }
};

/** k nearest neighbours under a plan; labels are (list, offset) pairs if
 * store_pairs. Updates faiss::indexIVF_stats. */
SearchCounts gmm_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        float* distances,
        idx_t* labels,
        bool store_pairs = false);

void gmm_range_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result);

} // namespace faiss_ext
