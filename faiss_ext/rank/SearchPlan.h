#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/RangeBudget.h"

namespace faiss_ext {

/// A bound of so many standard deviations misses one in seven hundred.
constexpr float kSureBound = 3;

/// A query by codes begins with so many of the nearest cells' entries, and
/// compares so many of these for a first threshold.
constexpr size_t near_entries(size_t k) {
    return 80 + 2 * k;
}
constexpr size_t compared_first(size_t k) {
    return k + k / 4 + 2;
}

/// Cells are chosen in about so many nanoseconds.
constexpr double kChoosing = 1500;

/// Entries that a selector is asked about to learn how many of all pass.
constexpr size_t kAskedForShare = 1000;

/// What a search takes, in nanoseconds.
struct UsualCosts {
    double scan = 0;     ///< an entry of a list that is compared whole
    double code = 0;     ///< a look at a code
    double distance = 0; ///< an entry that is compared for its code
    double test = 0;     ///< asking a selector about an entry
    double heap = 0;     ///< an IVF's, for one query
    double saved = 0;    ///< of the products with the means, for one query
};

/// The settings of one call, with everything that was left open decided.
struct SearchPlan {
    bool by_codes = false; ///< else whole lists

    /// Whole lists: how many, in which order. By codes: so many nearest lists
    /// are looked at in any case.
    size_t nprobe = 0;
    ProbeOrder order = ProbeOrder::distance;
    float probe_mass = 1;

    /// By codes: they are compared as an IVF does it, and more of the next
    /// ones: for the time that is saved, and as large a share.
    bool compare_lists = false;
    double more_entries = 0;

    /** By codes with nprobe > 0: what is about to take longer than comparing
     * the entries of these lists is not done, and they are compared. */
    UsualCosts costs;
    /// By codes: how many are looked at (at most, with nprobe > 0), fewer where
    /// neighbours are near already if by_effort
    /// (CellSelector::bucket_of_effort).
    double budget = 0;
    bool by_effort = false;
    RangeBudget range = {}; ///< of codes, or of lists
    float bound = 0;        ///< Calibration::Point::bound
    /// A query farther from its nearest mean than that, squared (see
    /// distance_to_filled()), is unlike those that the setting was chosen for:
    /// it looks on, four times as far each time, until it finds nothing new.
    float farthest = std::numeric_limits<float>::infinity();

    /// Calibration::Point::reach: a query looks on while there is more that is
    /// less than so many times as far (squared) as its k-th neighbour.
    float reach = 0;
    /// Output, or nullptr: of each query of the call the squared distance to
    /// the nearest cell, or list, that the budget, or nprobe, left out.
    std::vector<float>* beyond = nullptr;

    size_t max_codes = 0; ///< exact distances a query may compute; 0: no cap
    const faiss::IDSelector* sel = nullptr;
    /// Of the entries, those that the selector lets pass, about: with a target
    /// budgets grow by it,
    double share = 1;
    /// by codes until so many that pass have been looked at (0: as many as
    /// are),
    double passing = 0;
    /// and where fewer than k are found all are looked at; of whole lists four
    /// times as many until there are k.
    bool all_if_few = false;
    /// Whole lists: how many a query wants that has searched so many, which
    /// held fewer than k, or beyond which there are more within reach.
    size_t lists_wanted(size_t lists, bool few, bool within) const {
        return all_if_few && few ? 4 * lists : within ? 2 * lists : lists;
    }
    const faiss::SearchParameters* quantizer_params = nullptr;

    /// Whether only some lists may be searched: whole ones then.
    bool selects_lists() const {
        return quantizer_params && quantizer_params->sel;
    }

    /// Of each query of the call, (list, offset) pairs that it must not see,
    /// ascending; or nullptr,
    const std::vector<std::vector<idx_t>>* hidden = nullptr;
    /// and what its k-th distance would be if it saw them, over what it is:
    /// effort goes by that one, as without anything hidden.
    const std::vector<float>* nearer = nullptr;
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
