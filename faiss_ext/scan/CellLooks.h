#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/CellSelector.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/CodeScan.h"
#include "faiss_ext/scan/EntryComparer.h"

namespace faiss_ext {

/// A search by codes where it looks at the codes of cells, in buckets of like
/// distance, and compares the candidates among their entries.
template <class Distances, class Scan>
class CellLooks : public EntryComparer<Distances> {
    using Base = EntryComparer<Distances>;

public:
    CellLooks(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in)
            : Base(ivf_in, gmm_in, plan_in), scan(gmm_in.cells.codes),
              selector(gmm_in.cells, *ivf_in.invlists) {}

    using Base::exact;
    using Base::nearer;

    size_t n_codes() const { ///< looked at, of this query
        return scan.n_codes;
    }
    /// As FAISS counts distances: exact ones, or codes where there are none.
    size_t n_compared() const {
        return Distances::of_codes ? scan.n_codes : n_distances;
    }
    Scan scan;
    float beyond = 0; ///< from which distance on the budget left cells out

protected:
    using Base::add_to_pool;
    using Base::compare_best_first;
    using Base::compare_some;
    using Base::compared;
    using Base::gmm;
    using Base::kNoLimit;
    using Base::limit;
    using Base::most_distances;
    using Base::n_asked;
    using Base::n_distances;
    using Base::n_passed;
    using Base::passing;
    using Base::plan;
    using Base::pool;

    static constexpr float kNone = CodeScan::kNone;
    static constexpr double kAnyTime = std::numeric_limits<double>::infinity();
    /// Of the lists whose cells are scored: entries that they hold, over those
    /// to be looked at.
    static constexpr double kListsFactor = 1.2;

    void begin(
            const float* q,
            const float* rotated,
            QueryCoarse& coarse,
            float norm,
            size_t wanted) {
        exact.set_query(q, rotated, coarse, norm);
        q_norm = norm;
        k = wanted;
        done = 0;
        n_distances = scan.n_codes = 0;
        wanted_share = 0;
        pool.clear();
        n_asked = n_passed = 0;
        compared.clear();
        selector.start(coarse, plan.nprobe);
        most_distances = plan.max_codes > 0 && !Distances::of_codes
                ? plan.max_codes
                : kNoLimit;
    }

    /// An entry of a list that is compared whole.
    double scan_time() const {
        return plan.sel ? plan.costs.test + passing() * plan.costs.scan
                        : plan.costs.scan;
    }

    /// Whether the time of nprobe lists is the limit.
    bool limited() const {
        return plan.nprobe > 0 && !plan.max_codes;
    }

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

    void choose(size_t first, size_t last) {
        selector.choose(first, last, q_norm, slack2, rounding2, segments);
    }

    /// The last bucket to look at for so many entries.
    template <class Collector>
    size_t last_bucket(double entries, const Collector& collector) const {
        const float t =
                scan.squared(collector.threshold(), q_norm, gmm.cells.norm2);
        return plan.by_effort && t < kNone
                ? selector.bucket_of_effort(entries, nearer * t)
                : selector.bucket_of_entries(size_t(entries));
    }

    /// Looks at the cells of buckets up to `last`, the first of the query, for
    /// a threshold.
    template <class Collector>
    void look_at_nearest(size_t last, Collector& collector) {
        choose(0, last);
        const size_t n = scan(segments, 0, segments.size(), limit(collector));
        add_to_pool(scan.candidates, n);
        compare_some(compared_first(k), collector);
        done = last + 1;
        if (passing_lie_elsewhere()) {
            set_slack(true);
        }
    }

    /// Looks at as many cells as the budget says.
    template <class Collector>
    void look_at_budget(Collector& collector) {
        const size_t last = last_bucket(plan.budget, collector);
        if (last >= done) {
            choose(done, last);
            look_at(kAnyTime, collector);
            done = last + 1;
        }
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
    bool look_at(double whole, Collector& collector) {
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

    /// Looks at as many cells as there is time for. All at once: a search of
    /// shards asks anew for each look.
    template <class Collector>
    void look_at_more(Collector& collector) {
        size_t first = done;
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
        choose(first, last);
        look_at(kAnyTime, collector);
    }

    /// Looks at cells up to last(), of lists that hold so many entries, and
    /// compares what is near enough; false if there are none.
    template <class Collector, class Last>
    bool look_further(double entries, Collector& collector, Last&& last) {
        const size_t scored = size_t(kListsFactor * entries);
        if (scored > selector.entries_scored() && !selector.all_scored()) {
            selector.score_beyond(scored, done);
            done = 1;
        }
        const size_t to = last();
        if (to < done) {
            return false;
        }
        choose(done, to);
        look_at(kAnyTime, collector);
        compare_best_first(collector);
        done = to + 1;
        return true;
    }

    /// Whether anything was looked at, and not everything.
    bool is_more() const {
        return done > 0 &&
                (done < CellSelector::kBuckets || !selector.all_scored());
    }

    double entries_held() const { ///< by the cells that were looked at
        return double(selector.entries_up_to(done - 1));
    }

    /// Looks on until kFurther times as many entries have changed nothing; of
    /// few neighbours, which seldom change, twice.
    template <class Collector>
    void look_on(Collector& collector) {
        constexpr size_t kEnd = CellSelector::kBuckets;
        size_t changeless = k < kFew && !Collector::is_range ? 2 : 1;
        while (done < kEnd) {
            collector.tighten();
            const float before = collector.threshold();
            look_further(0, collector, [&] {
                const size_t held =
                        done > 0 ? selector.entries_up_to(done - 1) : 1;
                return Collector::is_range
                        ? kEnd - 1
                        : std::max(
                                  done,
                                  selector.bucket_of_entries(kFurther * held));
            });
            collector.tighten();
            if (before < kNone && collector.threshold() == before &&
                --changeless == 0) {
                break;
            }
        }
    }

    /// Looks on while there are cells within plan.reach of the k-th neighbour.
    template <class Collector>
    void look_within_reach(Collector& collector) {
        while (is_more()) {
            collector.tighten();
            const float t = scan.squared(
                    collector.threshold(), q_norm, gmm.cells.norm2);
            const float within = t < kNone ? plan.reach * nearer * t : kNone;
            const bool lists_too = selector.distance_of_unscored() < within;
            if (!lists_too && !(selector.distance_from(done) < within)) {
                break;
            }
            const double scored = double(selector.entries_scored());
            if (!look_further(lists_too ? 2 * scored : 0, collector, [&] {
                    return selector.bucket_within(within);
                })) {
                break;
            }
        }
    }

    /// Of a range, whose results are as many as they are: looks on until that
    /// was enough for so many.
    template <class Collector>
    void look_for_all(Collector& collector) {
        RangeProgress progress(plan.range);
        while (is_more()) {
            const double held = entries_held();
            const double wanted =
                    progress.wanted(held, double(collector.n_found()));
            if (wanted <= held) {
                break;
            }
            look_further(wanted, collector, [&] {
                return std::max(
                        done, selector.bucket_of_entries(size_t(wanted)));
            });
        }
    }

    /** With a selector and a target: looks on until as many codes that pass
     * have been seen as a search of them alone would see, since near the query
     * far fewer can pass than everywhere, which the budget has grown by. Where
     * what passes lies elsewhere, farther still. */
    template <class Collector>
    void look_for_passing(Collector& collector) {
        while (is_more()) {
            const double held = entries_held();
            const double wanted =
                    std::min(plan.passing / passing(), kFurther * held);
            if (wanted <= kMoreThanHeld * held) {
                break;
            }
            collector.tighten();
            if (!look_further(wanted, collector, [&] {
                    return last_bucket(wanted, collector);
                })) {
                break;
            }
        }
        if (Collector::is_range || !passing_lie_elsewhere()) {
            return;
        }
        set_slack(true);
        if (!selector.all_scored()) {
            selector.score_beyond(kNoLimit, done);
            done = 1;
        }
        look_on(collector);
    }

    CellSelector selector;

    // of the query
    float q_norm = 0;
    size_t k = 0;
    size_t done = 0; ///< buckets before it have been looked at

private:
    /// Segments between two looks at the threshold.
    static constexpr size_t kChunk = 48;
    /// Of the time of whole lists there must be something left, for costs are
    /// about what they are said to be.
    static constexpr double kOfTime = 0.85;
    /// Of a range so many times as many codes are looked at, while there is
    /// time: what is within a radius lies in more cells than the nearest k do.
    static constexpr double kMostOfRange = 2.5;
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
    /// Of the candidates, those that are still near enough once their turn to
    /// be compared comes, about.
    static constexpr double kStillNear = 0.7;

    float slack2 = 0; ///< see CellSelector::choose, and rounding2
    double rounding2 = 0;
    double wanted_share = 0; ///< of the entries last looked at, the candidates
    std::vector<Segment> segments;
};

} // namespace faiss_ext
