#pragma once

#include <cstddef>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// A bound of so many standard deviations misses one in seven hundred.
constexpr float kSureBound = 3;

/// The settings of one call, with everything that was left open decided.
struct SearchPlan {
    bool by_codes = false; ///< else whole lists

    /// Whole lists: how many, in which order. By codes: so many nearest lists
    /// are looked at in any case.
    size_t nprobe = 0;
    ProbeOrder order = ProbeOrder::distance;
    float probe_mass = 1;

    /// By codes, unless 0: a query whose nearest cells, those that hold
    /// `entries`, are not spread so far, times its distance to the nearest
    /// mean, gets whole lists instead, for codes tell too little of it: nprobe
    /// of them, and the next ones until `entries` were compared.
    float spread = 0;
    double entries = 0;
    float usual_distance = 0; ///< squared, of vectors to their mean

    /// Lists that are looked at in any case are compared whole where so many of
    /// their entries, or more, would be compared for their codes: it is faster.
    double share_compared = 1;
    /// After these lists no more are compared than so many in all; 0: no limit.
    size_t most_compared = 0;

    /// By codes: how many are looked at, fewer where neighbours are near
    /// already if by_effort (CellSelector::bucket_of_effort).
    double budget = 0;
    bool by_effort = false;
    float bound = 0; ///< Calibration::Point::bound

    size_t max_codes = 0; ///< exact distances a query may compute; 0: no cap
    const faiss::IDSelector* sel = nullptr;
    /// Of the entries, those that the selector lets pass, about: with a target
    /// budgets grow by it, and where fewer than k are found all are looked at.
    double share = 1;
    const faiss::SearchParameters* quantizer_params = nullptr;

    /// Whether only some lists may be searched: whole ones then.
    bool selects_lists() const {
        return quantizer_params && quantizer_params->sel;
    }

    /// Of each query of the call, (list, offset) pairs that it must not see,
    /// ascending; or nullptr.
    const std::vector<std::vector<idx_t>>* hidden = nullptr;
};

/** Throws FaissException for parameters of a foreign type or out of range.
 *
 * @param k  0: a range search
 */
SearchPlan make_plan(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        size_t k);

} // namespace faiss_ext
