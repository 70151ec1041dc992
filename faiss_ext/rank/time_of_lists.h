#pragma once

#include <cstddef>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

/** What the time of nprobe whole lists buys by codes: those of these lists,
 * which are looked at in any case since nobody knows the queries, and those of
 * the nearest cells elsewhere.
 *
 * Leaves the plan at whole lists where there is not time enough, unless
 * `always`.
 */
void plan_for_time_of_lists(
        SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k,
        bool always);

/// Whether all lists are compared whole in less time than codes take, where so
/// few entries pass the selector. The first threshold needs k that pass.
bool lists_are_quicker(
        const SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k);

} // namespace faiss_ext
