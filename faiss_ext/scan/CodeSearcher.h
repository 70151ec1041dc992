#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/scan/CellLooks.h"

namespace faiss_ext {

/** One thread's searches through codes, or of whole lists where codes tell too
 * little.
 *
 * The codes of the nearest cells come first; the exact distances of the best of
 * them (Distances: ExactDistances, or CodeDistances without vectors) give a
 * threshold. It says how many more cells are worth looking at, and
 * which of their entries: those whose lower bound is below it.
 *
 * A collector takes what was compared and says what is near enough:
 *
 *     float threshold() const;    // squared distance, or negated product
 *     void tighten();             // threshold() says the least it can
 *     void offer(float distance, idx_t location);
 *     static constexpr bool is_range;
 *
 * Codes and distances may come from elsewhere (scan/told.h).
 */
template <class Distances, class Scan = CodeScan>
class CodeSearcher : public CellLooks<Distances, Scan> {
    using Base = CellLooks<Distances, Scan>;

public:
    using Base::Base;
    using Base::beyond;
    using Base::scan;
    size_t n_cells = 0; ///< scored, of this query

    /** @param q        size d
     *  @param rotated  P (q - c)
     *  @param coarse   started for the query
     *  @param norm     |q|, read for METRIC_INNER_PRODUCT
     *  @param wanted   neighbours; for a range, 1
     */
    template <class Collector>
    void operator()(
            const float* q,
            const float* rotated,
            QueryCoarse& coarse,
            float norm,
            size_t wanted,
            Collector& collector) {
        begin(q, rotated, coarse, norm, wanted);
        if (plan.compare_lists) {
            compare_nearest_lists(collector);
            return;
        }
        size_t near = size_t(near_entries(k) / plan.share);
        if (Distances::of_codes) { // that is all that they cost
            near = std::min(near, size_t(plan.budget));
        }
        if (limited() && plan.sel && !hnsw_of(ivf) &&
            few_pass_in_nearest_lists(Collector::is_range)) {
            compare_lists_and_more(entries_for_saved(), collector);
            return;
        }
        // of a range, as far as there turns out to be time for
        selector.score(
                limited() && Collector::is_range
                        ? near
                        : std::max(near, size_t(kListsFactor * plan.budget)));
        const bool unlike = selector.nearest_filled() > plan.farthest;
        if (unlike) {
            selector.score(kNoLimit);
        }
        const size_t near_bucket = selector.bucket_of_entries(near);
        if (limited() && selector.entries_up_to(near_bucket) > kAlike * near) {
            compare_forced_lists(collector);
            compare_untracked(collector);
            return;
        }
        scan.start(rotated);
        set_slack(unlike);
        if (!Collector::is_range) {
            look_at_nearest(near_bucket, collector);
        } else if (limited() && plan.sel && n_asked == 0) {
            // of a small range few candidates would be asked about
            begin_forced_lists();
            ask_about_some(begins);
        }
        if (plan.nprobe > 0 && done < CellSelector::kBuckets) {
            look_at_forced(collector);
        }
        if (limited()) {
            look_at_more(collector);
        } else if (done < CellSelector::kBuckets) {
            look_at_budget(collector);
        }
        compare_best_first(collector);
        if constexpr (Collector::is_range) {
            look_for_all(collector);
        }
        beyond = selector.distance_from(done);
        if (unlike) {
            look_on(collector);
        } else if (plan.passing > 0) {
            look_for_passing(collector);
        } else if (plan.reach > 0) {
            look_within_reach(collector);
        }
        if (plan.all_if_few && !(collector.threshold() < kNone)) {
            compare_all_lists(collector);
        }
        compare_untracked(collector);
        n_cells = selector.n_cells_scored();
    }

private:
    using Base::ask_about_some;
    using Base::begin;
    using Base::begin_of_list;
    using Base::begins;
    using Base::choose;
    using Base::compare;
    using Base::compare_best_first;
    using Base::compare_lists;
    using Base::done;
    using Base::gmm;
    using Base::ivf;
    using Base::k;
    using Base::kAnyTime;
    using Base::kListsFactor;
    using Base::kNoLimit;
    using Base::kNone;
    using Base::limited;
    using Base::look_at;
    using Base::look_at_budget;
    using Base::look_at_more;
    using Base::look_at_nearest;
    using Base::look_for_all;
    using Base::look_for_passing;
    using Base::look_on;
    using Base::look_within_reach;
    using Base::n_asked;
    using Base::passing;
    using Base::plan;
    using Base::pool;
    using Base::scan_time;
    using Base::selector;
    using Base::set_slack;

    /// Looks at the cells that are wanted in any case.
    template <class Collector>
    void look_at_forced(Collector& collector) {
        selector.bring_forward_forced(done);
        choose(done, done);
        const double whole = plan.max_codes > 0
                ? kAnyTime
                : double(selector.forced_entries());
        if (look_at(whole, collector)) {
            done++;
        } else {
            compare_forced_lists(collector);
            done = CellSelector::kBuckets;
        }
    }

    /// As an IVF does it, and more.
    template <class Collector>
    void compare_nearest_lists(Collector& collector) {
        begin_nearest_lists(2);
        if (plan.sel) {
            ask_about_some(begins);
        }
        const double entries = double(entries_begun());
        const double more = plan.more_entries * entries + entries_for_saved();
        compare_lists_and_more(
                plan.sel ? more : std::min(more, kMostMore * entries),
                collector);
    }

    size_t entries_begun() const {
        size_t entries = 0;
        for (const Run& run : begins) {
            entries += run.end;
        }
        return entries;
    }

    /// The first nprobe of so many times as many `lists`.
    void begin_nearest_lists(size_t times) {
        selector.nearest_lists(times * plan.nprobe, lists);
        begins.clear();
        for (size_t p = 0; p < plan.nprobe && p < lists.size(); p++) {
            begin_of_list(lists[p], kNoLimit);
        }
    }

    /// More entries than those of the lists that are begun, for a part of the
    /// time that the products with the means save, and that a selector does
    /// which is asked about many at once.
    double entries_for_saved() const {
        const double asking = plan.sel && asks_quickly(*plan.sel)
                ? plan.costs.test * double(entries_begun())
                : 0;
        return (kOfSaved * plan.costs.saved + kOfAsking * asking) / scan_time();
    }

    /// Compares the lists that are begun, and so many entries of the next ones.
    template <class Collector>
    void compare_lists_and_more(double entries, Collector& collector) {
        size_t more = size_t(entries);
        for (size_t p = plan.nprobe; p < lists.size() && more > 0; p++) {
            begin_of_list(lists[p], more);
            more -= begins.back().end;
        }
        compare_lists(collector);
        compare_untracked(collector);
        n_cells = 0;
    }

    /// Whether so few entries of the nearest lists, which are begun, pass that
    /// codes take longer: without k that pass there is no threshold. In a range
    /// there is one, but more codes are looked at.
    bool few_pass_in_nearest_lists(bool is_range) {
        begin_nearest_lists(2);
        const double entries = double(entries_begun());
        ask_about_some(begins);
        const UsualCosts& c = plan.costs;
        if (is_range) {
            return kCodesOfRange * passing() * c.scan < c.code;
        }
        const double first = std::min(near_entries(k) / passing(), entries);
        const double by_codes = kChoosing + c.code * entries + c.test * first +
                c.distance * double(compared_first(k));
        return scan_time() * entries < kCandidatesToo * by_codes;
    }

    /// Fewer than k that pass: whatever there is.
    template <class Collector>
    void compare_all_lists(Collector& collector) {
        begins.clear();
        for (size_t list = 0; list < gmm.cells.nlist; list++) {
            begin_of_list(uint32_t(list), kNoLimit);
        }
        compare_lists(collector);
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

    /// Where so many times the entries wanted are in cells whose distances are
    /// alike, codes will be, too.
    static constexpr size_t kAlike = 4;
    /// Where all pass, of the entries of nprobe lists, as many more at most.
    static constexpr double kMostMore = 0.3;
    /// See entries_for_saved().
    static constexpr double kOfSaved = 0.3, kOfAsking = 0.5;
    /// See few_pass_in_nearest_lists().
    static constexpr double kCodesOfRange = 3;
    /// What codes take altogether, over what is known of before there are any
    /// candidates.
    static constexpr double kCandidatesToo = 1.3;

    std::vector<uint32_t> lists; ///< the nearest ones
};

} // namespace faiss_ext
