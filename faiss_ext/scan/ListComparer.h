#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/CellSelector.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/CandidatePool.h"

namespace faiss_ext {

/// A search by codes where it compares whole lists, as an IVF does: from the
/// start, or since codes tell a query too little.
template <class Distances>
class ListComparer : public CandidatePool<Distances> {
    using Base = CandidatePool<Distances>;

public:
    ListComparer(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in)
            : Base(ivf_in, gmm_in, plan_in),
              selector(gmm_in.cells, *ivf_in.invlists) {}

    size_t n_cells = 0; ///< scored

protected:
    using Base::ask_about_some;
    using Base::begin_of_list;
    using Base::begins;
    using Base::compare;
    using Base::compare_lists;
    using Base::kNoLimit;
    using Base::passing;
    using Base::plan;
    using Base::pool;

    /// An entry of a list that is compared whole.
    double scan_time() const {
        return plan.sel ? plan.costs.test + passing() * plan.costs.scan
                        : plan.costs.scan;
    }

    /// As an IVF does it, and more.
    template <class Collector>
    void compare_nearest_lists(Collector& collector) {
        begin_nearest_lists(plan.more_entries > 0 ? 2 : 1);
        size_t entries = 0;
        for (const Run& run : begins) {
            entries += run.end;
        }
        compare_lists_and_more(plan.more_entries * double(entries), collector);
    }

    /// The first nprobe of so many times as many `lists`.
    void begin_nearest_lists(size_t times) {
        selector.nearest_lists(times * plan.nprobe, lists);
        begins.clear();
        for (size_t p = 0; p < plan.nprobe && p < lists.size(); p++) {
            begin_of_list(lists[p], kNoLimit);
        }
    }

    /// Compares the lists that are begun, and so many entries of the next ones.
    template <class Collector>
    void compare_lists_and_more(double more, Collector& collector) {
        begin_more(more);
        compare_lists(collector);
        compare_untracked(collector);
        n_cells = 0;
    }

    /// Whether so few entries of the nearest lists, which are begun, pass that
    /// codes take longer: without k that pass there is no threshold. In a range
    /// (k = 0) there is one, but more codes are looked at.
    bool few_pass_in_nearest_lists(size_t k) {
        begin_nearest_lists(2);
        double entries = 0;
        for (const Run& run : begins) {
            entries += run.end;
        }
        ask_about_some(begins);
        const UsualCosts& c = plan.costs;
        if (k == 0) {
            return kCodesOfRange * passing() * c.scan < c.code;
        }
        const double first = std::min(near_entries(k) / passing(), entries);
        const double by_codes = kChoosing + c.code * entries + c.test * first +
                c.distance * double(compared_first(k));
        return scan_time() * entries < kCandidatesToo * by_codes;
    }

    /// Of `lists`, those behind the first nprobe, so many entries.
    void begin_more(double entries) {
        size_t more = size_t(entries);
        for (size_t p = plan.nprobe; p < lists.size() && more > 0; p++) {
            begin_of_list(lists[p], more);
            more -= begins.back().end;
        }
    }

    /// Codes tell this query too little: as an IVF does it.
    template <class Collector>
    void compare_forced_lists(Collector& collector) {
        pool.clear();
        begin_forced_lists();
        compare_lists(collector);
        n_cells = selector.n_cells_scored();
    }

    void begin_forced_lists() {
        begins.clear();
        for (uint32_t list : selector.forced_lists()) {
            begin_of_list(list, kNoLimit);
        }
    }

    /// Entries that have no code.
    template <class Collector>
    void compare_untracked(Collector& collector) {
        if (Distances::of_codes) {
            return;
        }
        for (const CellSelector::Untracked& u : selector.untracked) {
            for (uint32_t entry = u.begin; entry < u.end; entry++) {
                compare({0, u.list, entry}, collector);
            }
        }
    }

    CellSelector selector;

private:
    /// See few_pass_in_nearest_lists().
    static constexpr double kCodesOfRange = 3;
    /// What codes take altogether, over what is known of before there are any
    /// candidates.
    static constexpr double kCandidatesToo = 1.3;

    std::vector<uint32_t> lists; ///< the nearest ones
};

} // namespace faiss_ext
