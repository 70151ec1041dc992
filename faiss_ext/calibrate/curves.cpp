#include "faiss_ext/calibrate/curves.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "faiss_ext/rank/CellSelector.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/gmm_search.h"

namespace faiss_ext {

namespace {

/// Bounds, and the recall from which on each is tried: of few codes a sure
/// comparison is never the cheapest setting.
constexpr struct {
    float bound, from;
} kBounds[] = {{0.75f, 0}, {1.5f, 0.6f}, {2.5f, 0.85f}, {4, 0.95f}};
/// Less is not measured in other views.
constexpr float kLeastRecall = 0.5f;
/// A curve ends once it has reached that.
constexpr float kSureRecall = 0.998f;
/// And is made longer until it has reached that in all views.
constexpr float kNearlySureRecall = 0.99f;
constexpr double kBudgetStep = 1.4;
/// Of so many queries one may have looked less far than Point::reach says.
constexpr size_t kNearlyAll = 25;
/// Cells so many times as far as a neighbour seldom hold a nearer one.
constexpr float kMostReach = 1.5f;

using Point = Calibration::Point;

/// One setting's searches of all queries.
class Trial {
public:
    Trial(GMMIndexRef index_in,
          size_t nq_in,
          const float* xq_in,
          const GroundTruth& truth_in)
            : index(index_in), nq(nq_in), xq(xq_in), truth(truth_in) {}

    /// Codes and distances a query, and recall at k.
    Point operator()(const SearchPlan& plan, size_t k) {
        // Whole lists show what is hidden, too: nearest of all.
        size_t n_hidden = 0;
        for (const std::vector<idx_t>& of_query : truth.hidden) {
            n_hidden = std::max(n_hidden, of_query.size());
        }
        const size_t n = k + (plan.by_codes ? 0 : n_hidden);
        distances.resize(nq * n);
        labels.resize(nq * n);
        beyond.assign(nq, 0);
        SearchPlan asked = plan;
        asked.beyond = &beyond;
        const SearchCounts counts = gmm_search(
                index.ivf,
                index.gmm,
                asked,
                nq,
                xq,
                n,
                distances.data(),
                labels.data(),
                true);
        if (k != wanted_k) {
            find_wanted(k);
        }
        size_t found = 0, there = 0;
        std::vector<idx_t> right;
        for (size_t q = 0; q < nq; q++) {
            const std::vector<idx_t>& w = wanted[q];
            there += std::min(k, w.size());
            const auto begin = labels.begin() + q * n;
            if (copies) { // ids may come several times
                to_ids(begin, begin + n);
                std::sort(begin, begin + n);
                right.clear();
                std::set_intersection(
                        begin,
                        begin + n,
                        w.begin(),
                        w.end(),
                        std::back_inserter(right));
                found += std::min(k, right.size());
                continue;
            }
            found += std::min(
                    k, size_t(std::count_if(begin, begin + n, [&](idx_t l) {
                        return std::binary_search(w.begin(), w.end(), l);
                    })));
        }
        Point p = {};
        p.recall = there > 0 ? float(double(found) / there) : 1;
        p.codes = float(double(counts.codes) / nq);
        p.distances = float(double(counts.distances) / nq);
        p.reach = plan.reach;
        find_reach(plan, k);
        return p;
    }

    /// Calibration::Point::reach by what the last searches had looked at
    /// when they had spent their budget.
    float reach = 0;

private:
    void find_reach(const SearchPlan& plan, size_t k) {
        if (copies) { // each is known several times
            return;
        }
        for (size_t q = 0; q < nq; q++) {
            const auto& near = truth.near[q];
            if (near.size() < k) {
                beyond[q] = 0;
                continue;
            }
            const float nearer = plan.nearer->empty() ? 1 : (*plan.nearer)[q];
            const float kth = nearer * near[k - 1].distance;
            beyond[q] = kth > 0 ? beyond[q] / kth : kMostReach;
        }
        const auto at = beyond.begin() + nq / kNearlyAll;
        std::nth_element(beyond.begin(), at, beyond.end());
        reach = std::clamp(*at, 0.0f, kMostReach);
    }

    /// Of queries that more vectors are as near to than are known, nothing: of
    /// those any k will do. But of all where too few are left.
    void find_wanted(size_t k) {
        wanted.resize(nq);
        size_t left = 0;
        const auto is_cut = [&](size_t q) {
            const size_t known = truth.near[q].size();
            return known > k && wanted[q].size() == known;
        };
        for (size_t q = 0; q < nq; q++) {
            wanted[q] = truth.wanted(q, k);
            left += !is_cut(q);
        }
        for (size_t q = 0; q < nq; q++) {
            if (left >= kMinQueries && is_cut(q)) {
                wanted[q].clear();
            } else if (copies) {
                to_ids(wanted[q].begin(), wanted[q].end());
                std::sort(wanted[q].begin(), wanted[q].end());
            }
        }
        wanted_k = k;
    }

    /// A vector may be found by its copy in another list.
    template <class Iterator>
    void to_ids(Iterator begin, Iterator end) const {
        std::transform(begin, end, begin, [&](idx_t location) {
            return location < 0 ? location
                                : index.ivf.invlists->get_single_id(
                                          faiss::lo_listno(location),
                                          faiss::lo_offset(location));
        });
    }

    GMMIndexRef index;
    size_t nq;
    const float* xq;
    const GroundTruth& truth;
    const bool copies = index.gmm.max_assign > 1;
    size_t wanted_k = 0;
    std::vector<std::vector<idx_t>> wanted; ///< of each query
    std::vector<float> distances;
    std::vector<idx_t> labels;
    std::vector<float> beyond; ///< SearchPlan::beyond
};

/// Keeps what nothing cheaper has found.
void keep_cheapest(std::vector<Point>& points) {
    std::stable_sort(
            points.begin(), points.end(), [](const Point& p, const Point& q) {
                return p.cost < q.cost;
            });
    std::vector<Point> kept;
    for (const Point& p : points) {
        if (kept.empty() || p.recall > kept.back().recall) {
            kept.push_back(p);
        }
    }
    points = std::move(kept);
}

/// What was measured with all queries at one setting after the other.
class Curves {
public:
    Curves(GMMIndexRef index,
           size_t nq,
           const float* xq,
           const std::vector<GroundTruth>& truths,
           const Calibration::Costs& costs)
            : index(index), costs(costs) {
        for (const GroundTruth& truth : truths) {
            // Half of the queries are enough to tell whether others find less.
            const size_t n = views.empty() ? nq : (nq + 1) / 2;
            views.push_back({truth, Trial(index, n, xq, truth), {}});
        }
    }

    void add(size_t k) {
        curve = {k, {}};
        for (View& view : views) {
            view.nearer = view.truth.nearer(k);
        }
        dearest = 0;
        const float all = float(index.ivf.ntotal);
        if (!has_vectors(index.ivf)) {
            try_codes_alone();
            finish({true, all, 0, 1, all, 0, costs.query + costs.code * all});
            return;
        }
        if (!index.gmm.cells.codes.empty()) {
            try_codes();
        }
        try_lists();
        finish({false,
                float(index.ivf.nlist),
                0,
                1,
                0,
                all,
                costs.query + costs.scan * all});
    }

    std::vector<Calibration::Curve> done;

private:
    /// What the queries are asked for.
    struct View {
        const GroundTruth& truth;
        Trial trial;
        std::vector<float> nearer;
    };

    void finish(const Point& everything) {
        keep_cheapest(curve.points);
        if (views.size() > 1 && !curve.points.empty()) {
            look_at_others(everything);
            keep_cheapest(curve.points);
        }
        curve.points.push_back(everything);
        done.push_back(std::move(curve));
    }

    /// A setting counts for the least that it finds in any view; where that is
    /// not enough, larger ones do.
    void look_at_others(const Point& everything) {
        for (Point& p : curve.points) {
            if (p.recall >= kLeastRecall) {
                p.recall = std::min(p.recall, measure(p, views[1]).recall);
            }
        }
        Point p = curve.points.back();
        p.bound = p.by_codes ? std::end(kBounds)[-1].bound : 0;
        const float most = p.by_codes == everything.by_codes
                ? everything.budget
                : float(CellSelector::kAllByEffort) * float(index.ivf.ntotal);
        while (p.recall < kNearlySureRecall && p.cost < everything.cost) {
            p.budget = std::max(
                    p.budget + 1, std::floor(p.budget * float(kBudgetStep)));
            if (p.budget >= most) {
                break;
            }
            const Point other = measure(p, views[1]);
            p = measure(p, views[0]);
            p.recall = std::min(p.recall, other.recall);
            curve.points.push_back(p);
        }
    }

    Point measure(const Point& setting, View& view) {
        plan.by_codes = plan.by_effort = setting.by_codes;
        plan.bound = has_vectors(index.ivf) ? setting.bound : kSureBound;
        plan.nprobe = setting.by_codes ? 0 : size_t(setting.budget);
        plan.budget = setting.budget;
        plan.reach = setting.reach;
        return measure(setting.budget, view);
    }

    /// The plan as it is, but for the reach, which is that of the one before:
    /// of nearly the same budget.
    Point measure(float budget) {
        plan.reach = views[0].trial.reach;
        curve.points.push_back(measure(budget, views[0]));
        return curve.points.back();
    }

    /// For the first setting, which is the plan.
    void find_first_reach() {
        plan.reach = 0;
        measure(0, views[0]);
    }

    Point measure(float budget, View& view) {
        plan.hidden = view.truth.hidden.empty() ? nullptr : &view.truth.hidden;
        plan.nearer = &view.nearer;
        Point p = view.trial(plan, curve.k);
        p.by_codes = plan.by_codes;
        p.budget = budget;
        p.bound = plan.by_codes ? plan.bound : 0;
        if (!has_vectors(index.ivf)) {
            p.distances = 0; // the codes', which are counted
        }
        p.cost = costs.query + costs.code * p.codes +
                (plan.by_codes ? costs.distance : costs.scan) * p.distances;
        return p;
    }

    double least_budget() const {
        return 40 + 4.0 * curve.k;
    }

    void try_codes_alone() {
        plan.by_codes = plan.by_effort = true;
        plan.bound = kSureBound;
        plan.budget = least_budget();
        find_first_reach();
        for (double budget = least_budget(); budget < double(index.ivf.ntotal);
             budget *= kBudgetStep) {
            plan.budget = budget;
            if (measure(float(budget)).recall >= kSureRecall) {
                return;
            }
        }
    }

    /// Whether one of them finds as much as p for no more than that.
    static bool any_beats(
            const std::vector<Point>& points, const Point& p, float cost) {
        return std::any_of(points.begin(), points.end(), [&](const Point& q) {
            return q.recall >= p.recall && q.cost <= cost;
        });
    }

    /** Budget by budget with the bounds that are worth it. A larger one is
     * tried once the one before has found enough or finds no more; one is given
     * up where a larger has found as much for less, or all lists would be
     * compared in less time. */
    void try_codes() {
        const float all_lists =
                costs.query + costs.scan * float(index.ivf.ntotal);
        plan.by_codes = plan.by_effort = true;
        plan.nprobe = 0;
        constexpr size_t n_bounds = std::size(kBounds);
        struct {
            std::vector<Point> points;
            int stalled = 0;
            bool over = false;
        } tried[n_bounds];
        size_t begun = 1, end = n_bounds;
        bool over = false;
        plan.budget = least_budget();
        plan.bound = kBounds[0].bound;
        find_first_reach();
        for (double budget = least_budget();
             budget < CellSelector::kAllByEffort * double(index.ivf.ntotal) &&
             !over;
             budget *= kBudgetStep) {
            over = true;
            plan.budget = budget;
            for (size_t b = 0; b < std::min(begun, end); b++) {
                auto& t = tried[b];
                if (t.over) {
                    continue;
                }
                plan.bound = kBounds[b].bound;
                const Point p = measure(float(budget));
                if (p.recall >= kSureRecall) {
                    dearest = std::max(dearest, p.cost);
                    end = b; // a larger bound finds no more
                    break;
                }
                const float before =
                        t.points.empty() ? -1 : t.points.back().recall;
                t.stalled = p.recall > before + 5e-4f ? 0 : t.stalled + 1;
                t.over = t.stalled == 3 || p.cost > all_lists;
                for (size_t larger = b + 1; larger < begun; larger++) {
                    t.over |= any_beats(tried[larger].points, p, p.cost);
                }
                t.points.push_back(p);
                over &= t.over;
                if (b + 1 == begun && begun < n_bounds &&
                    (p.recall >= kBounds[begun].from || t.stalled > 0)) {
                    begun++;
                }
            }
        }
    }

    /// While lists are not dearer than codes that find everything; in larger
    /// steps while codes find as much for half.
    void try_lists() {
        plan.by_codes = plan.by_effort = false;
        const std::vector<Point> by_codes = curve.points;
        const size_t nlist = index.ivf.nlist;
        double step = kBudgetStep;
        float cost = 0; // of a list
        plan.nprobe = 1;
        find_first_reach();
        for (size_t nprobe = 1;
             nprobe < nlist && (dearest == 0 || cost * nprobe <= dearest);
             nprobe = std::max(nprobe + 1, size_t(nprobe * step))) {
            plan.nprobe = nprobe;
            const Point p = measure(float(nprobe));
            if (p.recall >= kSureRecall) {
                break;
            }
            cost = (p.cost - costs.query) / nprobe;
            step = any_beats(by_codes, p, 0.5f * p.cost) ? 2 : kBudgetStep;
        }
    }

    GMMIndexRef index;
    std::vector<View> views;
    const Calibration::Costs& costs;
    SearchPlan plan;
    Calibration::Curve curve;
    float dearest = 0; ///< cost of codes that found everything; 0: none did
};

} // namespace

std::vector<Calibration::Curve> measure_curves(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        const std::vector<GroundTruth>& truths,
        const Calibration::Costs& costs,
        const std::vector<size_t>& ks) {
    Curves curves(index, nq, xq, truths, costs);
    for (size_t k : ks) {
        curves.add(k);
    }
    return std::move(curves.done);
}

} // namespace faiss_ext
