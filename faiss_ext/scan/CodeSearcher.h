#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/CodeScan.h"
#include "faiss_ext/scan/ListComparer.h"

namespace faiss_ext {

/** One thread's searches through codes.
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
class CodeSearcher : public ListComparer<Distances> {
    using Base = ListComparer<Distances>;

public:
    CodeSearcher(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in)
            : Base(ivf_in, gmm_in, plan_in), scan(gmm_in.cells.codes) {}

    using Base::exact;
    using Base::hidden;
    using Base::nearer;

    size_t n_codes() const { ///< looked at, of this query
        return scan.n_codes;
    }
    /// As FAISS counts distances: exact ones, or codes where there are none.
    size_t n_compared() const {
        return Distances::of_codes ? scan.n_codes : n_distances;
    }
    Scan scan;
    using Base::n_cells;

    /** @param q        size d
     *  @param rotated  P (q - c)
     *  @param coarse   started for the query
     *  @param q_norm   read for METRIC_INNER_PRODUCT
     *  @param k        neighbours wanted; for a range, 1
     */
    template <class Collector>
    void operator()(
            const float* q,
            const float* rotated,
            QueryCoarse& coarse,
            float q_norm,
            size_t k,
            Collector& collector) {
        exact.set_query(q, rotated, coarse, q_norm);
        n_distances = scan.n_codes = 0;
        wanted_share = 0;
        this->clear_pool();
        compared.clear();
        selector.start(coarse, plan.nprobe);
        most_distances = plan.max_codes > 0 && !Distances::of_codes
                ? plan.max_codes
                : kNoLimit;
        if (plan.compare_lists) {
            compare_nearest_lists(collector);
            return;
        }
        size_t near = size_t(near_entries(k) / plan.share);
        if (Distances::of_codes) { // that is all that they cost
            near = std::min(near, size_t(plan.budget));
        }
        const bool limited = plan.nprobe > 0 && !plan.max_codes;
        if (limited && plan.sel && !hnsw_of(ivf) &&
            few_pass_in_nearest_lists(Collector::is_range ? 0 : k)) {
            compare_lists_and_more(
                    kOfSaved * plan.costs.saved / scan_time(), collector);
            return;
        }
        // of a range, as far as there turns out to be time for
        selector.score(
                limited && Collector::is_range
                        ? near
                        : std::max(near, size_t(kListsFactor * plan.budget)));
        const bool unlike = coarse.least > plan.farthest;
        if (unlike) {
            selector.score(kNoLimit);
        }
        const size_t near_bucket = selector.bucket_of_entries(near);
        if (limited && selector.entries_up_to(near_bucket) > kAlike * near) {
            compare_forced_lists(collector);
            compare_untracked(collector);
            return;
        }
        scan.start(rotated);
        set_slack(unlike);
        size_t done = 0; // buckets
        if (!Collector::is_range) {
            selector.choose(
                    0, near_bucket, q_norm, slack2, rounding2, segments);
            const size_t n =
                    scan(segments, 0, segments.size(), limit(collector));
            add_to_pool(scan.candidates, n);
            compare_some(compared_first(k), collector);
            done = near_bucket + 1;
            if (passing_lie_elsewhere()) {
                set_slack(true);
            }
        }
        if (Collector::is_range && limited && plan.sel && n_asked == 0) {
            // of a small range few candidates would be asked about
            begin_forced_lists();
            ask_about_some(begins);
        }
        if (plan.nprobe > 0 && done < CellSelector::kBuckets) {
            done = look_at_forced(done, q_norm, k, collector);
        }
        if (limited) {
            look_at_more(done, q_norm, k, collector);
        } else if (done < CellSelector::kBuckets) {
            const float t = scan.squared(
                    collector.threshold(), q_norm, gmm.cells.norm2);
            const size_t last = plan.by_effort && t < kNone
                    ? selector.bucket_of_effort(plan.budget, nearer * t)
                    : selector.bucket_of_entries(size_t(plan.budget));
            if (last >= done) {
                selector.choose(
                        done, last, q_norm, slack2, rounding2, segments);
                look_at(k, kAnyTime, collector);
                done = last + 1;
            }
        }
        compare_best_first(collector);
        if constexpr (Collector::is_range) {
            look_for_all(done, q_norm, k, collector);
        }
        if (unlike) {
            look_on(done, q_norm, k, collector);
        } else if (plan.passing > 0) {
            look_for_passing(done, q_norm, k, collector);
            if (!Collector::is_range && passing_lie_elsewhere()) {
                set_slack(true);
                if (!selector.all_scored()) {
                    selector.score_beyond(kNoLimit, done);
                    done = 1;
                }
                look_on(done, q_norm, k, collector);
            }
        }
        if (plan.all_if_few && !(collector.threshold() < kNone)) {
            // Fewer than k that pass: whatever there is.
            begins.clear();
            for (size_t list = 0; list < gmm.cells.nlist; list++) {
                begin_of_list(uint32_t(list), kNoLimit);
            }
            compare_lists(collector);
        }
        compare_untracked(collector);
        n_cells = selector.n_cells_scored();
    }

private:
    using Base::add_to_pool;
    using Base::ask_about_some;
    using Base::begin_forced_lists;
    using Base::begin_of_list;
    using Base::begins;
    using Base::compare_best_first;
    using Base::compare_forced_lists;
    using Base::compare_lists;
    using Base::compare_lists_and_more;
    using Base::compare_nearest_lists;
    using Base::compare_some;
    using Base::compare_untracked;
    using Base::compared;
    using Base::few_pass_in_nearest_lists;
    using Base::gmm;
    using Base::ivf;
    using Base::kNoLimit;
    using Base::limit;
    using Base::most_distances;
    using Base::n_asked;
    using Base::n_distances;
    using Base::passing;
    using Base::plan;
    using Base::pool;
    using Base::scan_time;
    using Base::selector;

    static constexpr float kNone = CodeScan::kNone;
    /// Of the lists whose cells are scored: entries that they hold, over those
    /// to be looked at.
    static constexpr double kListsFactor = 1.2;
    /// Segments between two looks at the threshold.
    static constexpr size_t kChunk = 48;
    /// Where so many times the entries wanted are in cells whose distances are
    /// alike, codes will be, too.
    static constexpr size_t kAlike = 4;
    /// Of the time of whole lists there must be something left, for costs are
    /// about what they are said to be.
    static constexpr double kOfTime = 0.85;
    /// Of a range so many times as many codes are looked at, while there is
    /// time: what is within a radius lies in more cells than the nearest k do.
    static constexpr double kMostOfRange = 2.5;
    /// What of the time that the products with the means save is spent on
    /// entries of the next lists, where few pass.
    static constexpr double kOfSaved = 0.3;
    /// Fewer more codes are not worth it.
    static constexpr double kFewCodes = 32;
    /// Candidates, and two for each neighbour wanted, after which some are
    /// compared for a lower threshold.
    static constexpr size_t kPool = 64;
    /// See look_on().
    static constexpr size_t kFurther = 4, kFew = 10;
    /// Of the entries near a query as few as so many deviations less than of
    /// all pass a selector that goes by what is near what.
    static constexpr double kUnlikely = 2;
    /// See look_for_passing(): less is not worth it.
    static constexpr double kMoreThanHeld = 1.25;
    static constexpr double kAnyTime = std::numeric_limits<double>::infinity();
    /// Of the candidates, those that are still near enough once their turn to
    /// be compared comes, about.
    static constexpr double kStillNear = 0.7;

    /// The code's error, unless it is what is asked for, and that of the
    /// tables, by the plan's bound or one that leaves out nothing.
    void set_slack(bool sure) {
        const float bound =
                sure ? std::max(plan.bound, kSureBound) : plan.bound;
        const float one =
                Distances::of_codes ? 0 : bound * gmm.cells.codes.error;
        slack2 = one * one;
        rounding2 = double(bound) * bound * scan.rounding2();
    }

    /// Whether what passes the selector lies elsewhere, farther away than what
    /// was calibrated on: nothing must be left out by its estimate then. The
    /// share of all that pass is known from a sample, too.
    bool passing_lie_elsewhere() const {
        const double variance = plan.share * (1 - plan.share) *
                (1 / (double(n_asked) + 1) + 1 / double(kAskedForShare));
        return plan.passing > 0 &&
                passing() < plan.share - kUnlikely * std::sqrt(variance);
    }

    /** Looks at the segments.
     *
     * @return  false as soon as it is about to take longer than so many entries
     *          of whole lists
     */
    template <class Collector>
    bool look_at(size_t k, double whole, Collector& collector) {
        const size_t full = kPool + 2 * k;
        const size_t codes_before = scan.n_codes;
        const size_t asked_before = n_asked;
        size_t wanted = 0; // for their codes
        size_t entries = 0;
        for (const Segment& segment : segments) {
            entries += segment.end - segment.begin;
        }
        for (size_t s = 0, end; s < segments.size(); s = end) {
            end = std::min(segments.size(), s + kChunk);
            if (s == 0 && whole < kAnyTime) {
                const size_t part = Collector::is_range ? 16 : 8;
                end = std::min(end, segments.size() / part + 1);
            }
            const size_t n = scan(segments, s, end, limit(collector));
            const size_t in_pool = pool.size();
            add_to_pool(scan.candidates, n);
            wanted += pool.size() - in_pool;
            const size_t seen = scan.n_codes - codes_before;
            wanted_share = double(wanted) / seen;
            const double left = double(entries - seen);
            const double compared = (Collector::is_range ? 1 : kStillNear) *
                    (double(pool.size()) + wanted_share * left);
            const double asked = double(n_asked - asked_before) / seen;
            if (whole < kAnyTime &&
                (plan.costs.code + plan.costs.test * asked) * left +
                                plan.costs.distance * compared >
                        scan_time() * whole) {
                return false;
            }
            if (!Collector::is_range && pool.size() >= full) {
                compare_some(full / 4, collector);
            } else if (
                    plan.sel && pool.size() >= compared_first(k) &&
                    !(collector.threshold() < kNone)) {
                compare_some(compared_first(k), collector);
            }
        }
        return true;
    }

    /// Looks at the cells that are wanted in any case, of buckets from `first`,
    /// and returns the bucket that is next.
    template <class Collector>
    size_t look_at_forced(
            size_t first, float q_norm, size_t k, Collector& collector) {
        selector.bring_forward_forced(first);
        selector.choose(first, first, q_norm, slack2, rounding2, segments);
        if (plan.max_codes > 0) {
            look_at(k, kAnyTime, collector);
            return first + 1;
        }
        if (!look_at(k, double(selector.forced_entries()), collector)) {
            compare_forced_lists(collector);
            return CellSelector::kBuckets;
        }
        return first + 1;
    }

    /// Looks at cells from that bucket on, as many as there is time for. All
    /// at once: a search of shards asks anew for each look.
    template <class Collector>
    void look_at_more(
            size_t first, float q_norm, size_t k, Collector& collector) {
        if (first >= CellSelector::kBuckets) {
            return;
        }
        const double time = kOfTime *
                (plan.costs.heap + plan.costs.saved +
                 scan_time() * double(selector.forced_entries()));
        const double left = time - kChoosing -
                plan.costs.code * double(scan.n_codes) -
                plan.costs.test * double(n_asked) -
                plan.costs.distance * double(n_distances + pool.size());
        const double asked = double(n_asked) / double(scan.n_codes + 1);
        const double each = plan.costs.code + plan.costs.test * asked +
                plan.costs.distance * wanted_share;
        double most = plan.budget - double(scan.n_codes);
        if (Collector::is_range) { // what the means save is not spent on that
            most = std::max(
                    most,
                    std::min(
                            (left - kOfTime * plan.costs.saved) / each,
                            kMostOfRange * plan.budget - double(scan.n_codes)));
        }
        const double codes = std::min(left / each, most);
        if (codes < kFewCodes) {
            return;
        }
        const size_t held = selector.entries_up_to(first - 1);
        const double wanted = double(held) + codes;
        if (Collector::is_range && wanted > double(selector.entries_scored()) &&
            !selector.all_scored()) {
            selector.score_beyond(size_t(kListsFactor * wanted), first);
            first = 1;
        }
        const size_t last = selector.bucket_of_entries(held + size_t(codes));
        if (last < first ||
            double(selector.entries_up_to(last) - held) > 2 * codes) {
            return;
        }
        selector.choose(first, last, q_norm, slack2, rounding2, segments);
        look_at(k, kAnyTime, collector);
    }

    /// Looks at cells from that bucket on up to last(), of lists that hold so
    /// many entries, and compares what is near enough; false if there are none.
    template <class Collector, class Last>
    bool look_further(
            size_t& first,
            double entries,
            float q_norm,
            size_t k,
            Collector& collector,
            Last&& last) {
        const size_t scored = size_t(kListsFactor * entries);
        if (scored > selector.entries_scored() && !selector.all_scored()) {
            selector.score_beyond(scored, first);
            first = 1;
        }
        const size_t to = last();
        if (to < first) {
            return false;
        }
        selector.choose(first, to, q_norm, slack2, rounding2, segments);
        look_at(k, kAnyTime, collector);
        compare_best_first(collector);
        first = to + 1;
        return true;
    }

    bool is_more(size_t first) const {
        return first < CellSelector::kBuckets || !selector.all_scored();
    }

    /// Looks at cells from that bucket on, until kFurther times as many entries
    /// have changed nothing; of few neighbours, which seldom change, twice.
    template <class Collector>
    void look_on(size_t first, float q_norm, size_t k, Collector& collector) {
        constexpr size_t kEnd = CellSelector::kBuckets;
        size_t changeless = k < kFew && !Collector::is_range ? 2 : 1;
        while (first < kEnd) {
            collector.tighten();
            const float before = collector.threshold();
            look_further(first, 0, q_norm, k, collector, [&] {
                const size_t held =
                        first > 0 ? selector.entries_up_to(first - 1) : 1;
                return Collector::is_range
                        ? kEnd - 1
                        : std::max(
                                  first,
                                  selector.bucket_of_entries(kFurther * held));
            });
            collector.tighten();
            if (before < kNone && collector.threshold() == before &&
                --changeless == 0) {
                break;
            }
        }
    }

    /// Of a range, whose results are as many as they are: looks at cells from
    /// that bucket on until that was enough for so many.
    template <class Collector>
    void look_for_all(
            size_t& first, float q_norm, size_t k, Collector& collector) {
        RangeProgress progress(plan.range);
        while (first > 0 && is_more(first)) {
            const double held = double(selector.entries_up_to(first - 1));
            const double wanted =
                    progress.wanted(held, double(collector.n_found()));
            if (wanted <= held) {
                break;
            }
            look_further(first, wanted, q_norm, k, collector, [&] {
                return std::max(
                        first, selector.bucket_of_entries(size_t(wanted)));
            });
        }
    }

    /** With a selector and a target: looks at cells from that bucket on until
     * as many codes that pass have been seen as a search of them alone would
     * see. Budgets have grown by the share of all entries that pass, and near
     * the query it can be far less. */
    template <class Collector>
    void look_for_passing(
            size_t& first, float q_norm, size_t k, Collector& collector) {
        while (first > 0 && is_more(first)) {
            const double held = double(selector.entries_up_to(first - 1));
            const double wanted =
                    std::min(plan.passing / passing(), kFurther * held);
            if (wanted <= kMoreThanHeld * held) {
                break;
            }
            collector.tighten();
            const float t = scan.squared(
                    collector.threshold(), q_norm, gmm.cells.norm2);
            if (!look_further(first, wanted, q_norm, k, collector, [&] {
                    return plan.by_effort && t < kNone
                            ? selector.bucket_of_effort(wanted, t)
                            : selector.bucket_of_entries(size_t(wanted));
                })) {
                break;
            }
        }
    }

    float slack2 = 0; ///< see CellSelector::choose, and rounding2
    double rounding2 = 0;
    double wanted_share = 0; ///< of the entries last looked at, the candidates
    std::vector<Segment> segments;
};

} // namespace faiss_ext
