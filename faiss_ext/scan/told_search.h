#pragma once

#include <cstddef>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/told.h"

namespace faiss_ext {

/// A search of an index whose codes and vectors others have.
struct ToldSearch {
    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const SearchPlan& plan;
    size_t n;
    const float* x; ///< size n * d
    size_t k;
    std::vector<Conversation>& conversations; ///< size n, of each query
    float* distances;                         ///< size n * k
    idx_t* labels;                            ///< size n * k
};

/// As far as what was told goes: conversations of queries that cannot go on
/// have asked something, and these have no results yet.
void search_told(const ToldSearch& search);

/// What a shard is asked, all of one kind for one query.
struct AskedShard {
    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const faiss::IDSelector* sel; ///< or nullptr
    const float* x;               ///< all queries
    size_t k;
    const std::vector<AskedEntries>& request; ///< in the order of queries
};

/// In the order of queries, and of what was asked of each.
std::vector<ToldEntry> answer_asked(const AskedShard& asked);

} // namespace faiss_ext
