#include "faiss_ext/calibrate/calibrate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/ground_truth.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/gmm_search.h"

namespace faiss_ext {

namespace {

constexpr size_t kMinQueries = 20;
/// Calibrating again without the user's queries takes so many vectors.
constexpr size_t kMinCalibrationQueries = 100;
constexpr size_t kMaxCalibrationQueries = 400;
/// As many as take so many multiplications to find the neighbours of.
constexpr double kCalibrationProducts = 5e9;
/// Numbers of neighbours for which curves are made, beside the one asked for.
constexpr size_t kNeighbours[] = {1, 10, 100};
/// Bounds, and the recall from which on each is tried: of few codes a sure
/// comparison is never the cheapest setting.
constexpr struct {
    float bound, from;
} kBounds[] = {{0.75f, 0}, {1.5f, 0.6f}, {2.5f, 0.85f}, {4, 0.95f}};
/// A curve ends once it has reached that.
constexpr float kSureRecall = 0.998f;
constexpr double kBudgetStep = 1.4;

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
        const size_t n_hidden =
                truth.hidden.empty() ? 0 : truth.hidden[0].size();
        const size_t n = k + (plan.by_codes ? 0 : n_hidden);
        distances.resize(nq * n);
        labels.resize(nq * n);
        const SearchCounts counts = gmm_search(
                index.ivf,
                index.gmm,
                plan,
                nq,
                xq,
                n,
                distances.data(),
                labels.data(),
                true);
        size_t found = 0;
        for (size_t q = 0; q < nq; q++) {
            found += truth.found(q, k, n, &labels[q * n]);
        }
        Point p = {};
        p.recall = float(double(found) / (nq * k));
        p.codes = float(double(counts.codes) / nq);
        p.distances = float(double(counts.distances) / nq);
        return p;
    }

private:
    GMMIndexRef index;
    size_t nq;
    const float* xq;
    const GroundTruth& truth;
    std::vector<float> distances;
    std::vector<idx_t> labels;
};

/// Keeps what nothing cheaper has found, and adds a search of everything.
void finish(Calibration::Curve& curve, const Point& everything) {
    std::stable_sort(
            curve.points.begin(),
            curve.points.end(),
            [](const Point& p, const Point& q) { return p.cost < q.cost; });
    std::vector<Point> kept;
    for (const Point& p : curve.points) {
        if (kept.empty() || p.recall > kept.back().recall) {
            kept.push_back(p);
        }
    }
    kept.push_back(everything);
    curve.points = std::move(kept);
}

/** One thread's searches of a few queries, one by one: nanoseconds and counts a
 * query, the best of three times. */
struct Timing {
    double time = HUGE_VAL, codes = 0, distances = 0;

    Timing(GMMIndexRef index,
           const SearchPlan& plan,
           size_t n,
           const float* xq,
           size_t k) {
        using Clock = std::chrono::steady_clock;
        std::vector<float> dis(k);
        std::vector<idx_t> ids(k);
        for (int repeat = 0; repeat < 3; repeat++) {
            codes = distances = 0;
            const auto t0 = Clock::now();
            for (size_t q = 0; q < n; q++) {
                const SearchCounts counts = gmm_search(
                        index.ivf,
                        index.gmm,
                        plan,
                        1,
                        xq + q * index.ivf.d,
                        k,
                        dis.data(),
                        ids.data());
                codes += double(counts.codes) / n;
                distances += double(counts.distances) / n;
            }
            const std::chrono::duration<double, std::nano> t =
                    Clock::now() - t0;
            time = std::min(time, t.count() / n);
        }
    }
};

/// From searches at settings of different proportions.
Calibration::Costs measure_costs(
        GMMIndexRef index, size_t nq, const float* xq) {
    const size_t n = std::min<size_t>(nq, 50), ntotal = index.ivf.ntotal;
    const size_t nlist = index.ivf.nlist;
    const auto by_codes = [&](double budget, size_t k) {
        SearchPlan plan;
        plan.by_codes = true;
        plan.budget = budget;
        return Timing(index, plan, n, xq, k);
    };
    const auto by_lists = [&](size_t nprobe) {
        SearchPlan plan;
        plan.nprobe = nprobe;
        return Timing(index, plan, n, xq, 1);
    };
    const auto slope = [](double time, double count, double least) {
        return float(std::max(least, time / std::max(1.0, count)));
    };
    Calibration::Costs costs;
    if (!has_vectors(index.ivf)) {
        const Timing few = by_codes(200, 1);
        const Timing many = by_codes(std::min(8000.0, ntotal / 2.0), 1);
        costs.code = slope(many.time - few.time, many.codes - few.codes, 0.1);
        costs.distance = costs.scan = costs.code;
        costs.query = slope(few.time - costs.code * few.codes, 1, 1);
        return costs;
    }
    const Timing one = by_lists(1),
                 eight = by_lists(std::min<size_t>(8, nlist));
    costs.scan =
            slope(eight.time - one.time, eight.distances - one.distances, 0.1);
    costs.query = slope(one.time - costs.scan * one.distances, 1, 1);
    costs.code = costs.distance = costs.scan; // without codes
    if (!index.gmm.cells.codes.empty()) {
        const Timing few = by_codes(200, 1);
        const Timing many = by_codes(std::min(8000.0, ntotal / 2.0), 1);
        const Timing far = by_codes(200, std::min<size_t>(100, ntotal / 2));
        costs.code = slope(many.time - few.time, many.codes - few.codes, 0.1);
        costs.distance = slope(
                far.time - few.time - costs.code * (far.codes - few.codes),
                far.distances - few.distances,
                1);
        costs.query =
                slope(few.time - costs.code * few.codes -
                              costs.distance * few.distances,
                      1,
                      1);
    }
    return costs;
}

std::vector<size_t> neighbours(size_t k, size_t ntotal) {
    std::vector<size_t> out = {k};
    for (size_t other : kNeighbours) {
        if (other < ntotal / 10) {
            out.push_back(other);
        }
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

/// What was measured with all queries at one setting after the other.
class Curves {
public:
    Curves(GMMIndexRef index,
           Trial& trial,
           const GroundTruth& truth,
           Calibration& c)
            : index(index), trial(trial), c(c) {
        plan.hidden = truth.hidden.empty() ? nullptr : &truth.hidden;
    }

    void add(size_t k) {
        curve = {k, {}};
        dearest = 0;
        const float all = float(index.ivf.ntotal);
        if (!has_vectors(index.ivf)) {
            try_codes_alone();
            finish(curve,
                   {true,
                    all,
                    0,
                    1,
                    all,
                    0,
                    c.costs.query + c.costs.code * all});
            c.curves.push_back(std::move(curve));
            return;
        }
        if (!index.gmm.cells.codes.empty()) {
            try_codes();
        }
        try_lists();
        finish(curve,
               {false,
                float(index.ivf.nlist),
                0,
                1,
                0,
                all,
                c.costs.query + c.costs.scan * all});
        c.curves.push_back(std::move(curve));
    }

private:
    Point measure(float budget) {
        Point p = trial(plan, curve.k);
        p.by_codes = plan.by_codes;
        p.budget = budget;
        p.bound = plan.by_codes ? plan.bound : 0;
        if (!has_vectors(index.ivf)) {
            p.distances = 0; // the codes', which are counted
        }
        p.cost = c.costs.query + c.costs.code * p.codes +
                (plan.by_codes ? c.costs.distance : c.costs.scan) * p.distances;
        curve.points.push_back(p);
        return p;
    }

    void try_codes_alone() {
        plan.by_codes = plan.by_effort = true;
        plan.bound = kSureBound;
        for (double budget = 40 + 4.0 * curve.k;
             budget < double(index.ivf.ntotal);
             budget *= kBudgetStep) {
            plan.budget = budget;
            if (measure(float(budget)).recall >= kSureRecall) {
                return;
            }
        }
    }

    void try_codes() {
        plan.by_codes = plan.by_effort = true;
        plan.nprobe = 0;
        const double ntotal = double(index.ivf.ntotal);
        double first = 40 + 4.0 * curve.k; // budget that a bound begins with
        for (size_t b = 0; b < std::size(kBounds); b++) {
            plan.bound = kBounds[b].bound;
            const float enough =
                    b + 1 < std::size(kBounds) ? kBounds[b + 1].from : 1;
            double next = 0;
            float before = -1;
            int stalled = 0;
            for (double budget = first; budget < ntotal && stalled < 3;
                 budget *= kBudgetStep) {
                plan.budget = budget;
                const Point p = measure(float(budget));
                if (p.recall >= kSureRecall) {
                    dearest = std::max(dearest, p.cost);
                    return; // a larger bound finds no more
                }
                stalled = p.recall > before + 5e-4f ? 0 : stalled + 1;
                before = p.recall;
                if (next == 0 && (p.recall >= enough || stalled > 0)) {
                    next = budget;
                }
            }
            first = next > 0 ? next : first;
        }
    }

    /// While lists are not dearer than codes that find everything.
    void try_lists() {
        plan.by_codes = plan.by_effort = false;
        const size_t nlist = index.ivf.nlist;
        for (size_t nprobe = 1; nprobe < nlist;
             nprobe = std::max(nprobe + 1, size_t(nprobe * kBudgetStep))) {
            plan.nprobe = nprobe;
            const Point p = measure(float(nprobe));
            if (p.recall >= kSureRecall || (dearest > 0 && p.cost > dearest)) {
                break;
            }
        }
    }

    GMMIndexRef index;
    Trial& trial;
    Calibration& c;
    SearchPlan plan;
    Calibration::Curve curve;
    float dearest = 0; ///< cost of codes that found everything; 0: none did
};

/// Calibration::farthest
float farthest_from_means(GMMIndexRef index, size_t nq, const float* xq) {
    SearchPlan plan;
    plan.nprobe = 1;
    std::vector<float> coarse(nq);
    std::vector<idx_t> keys(nq);
    probe(index.ivf, index.gmm, plan, nq, xq, coarse.data(), keys.data());
    float out = 0;
    for (size_t q = 0; q < nq; q++) {
        const float* x = xq + q * index.ivf.d;
        out = std::max(out, distance_to_mean(index.ivf, x, coarse[q]));
    }
    return out;
}

} // namespace

Calibration calibrate_index(
        GMMIndexRef index, size_t nq, const float* xq, size_t k) {
    faiss::IndexIVF& ivf = index.ivf;
    FAISS_THROW_IF_NOT_FMT(
            nq >= kMinQueries,
            "nq = %zu, expected at least %zu",
            nq,
            kMinQueries);
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && size_t(ivf.ntotal) > k,
            "k = %zu, expected above 0 and below ntotal = %zd",
            k,
            size_t(ivf.ntotal));
    FAISS_THROW_IF_NOT_FMT(
            xq || nq <= size_t(ivf.ntotal),
            "nq = %zu, expected at most ntotal = %zd",
            nq,
            size_t(ivf.ntotal));
    std::vector<float> drawn;
    std::vector<idx_t> self(nq, -1);
    const bool own_queries = !xq;
    if (own_queries) {
        draw_queries(index, nq, drawn, self);
        xq = drawn.data();
    }
    check_storable("xq", nq, ivf.d, xq);

    Calibration c;
    c.costs = index.gmm.calibration.costs;
    c.k = k;
    c.nq = nq;
    c.ntotal = ivf.ntotal;
    c.own_queries = own_queries;
    c.norm2 = index.gmm.cells.norm2;
    if (!own_queries) {
        c.queries.assign(xq, xq + nq * ivf.d);
    }
    const auto find = has_vectors(ivf) ? exact_neighbours : code_neighbours;
    const GroundTruth truth =
            find(index, nq, xq, neighbours(k, ivf.ntotal).back(), k, self);
    Trial trial(index, nq, xq, truth);
    if (!c.costs.known()) {
        c.costs = measure_costs(index, nq, xq);
    }
    Curves curves(index, trial, truth, c);
    for (size_t each : neighbours(k, ivf.ntotal)) {
        curves.add(each);
    }
    c.farthest = farthest_from_means(index, nq, xq);
    c.fitted = true;
    return c;
}

void calibrate_again(GMMIndexRef index) {
    const size_t k = index.gmm.calibration.k;
    const std::vector<float> queries = index.gmm.calibration.queries;
    if (!queries.empty()) {
        index.gmm.calibrate(
                queries.size() / index.ivf.d,
                queries.data(),
                std::min(k, size_t(index.ivf.ntotal) - 1));
        return;
    }
    const double affordable =
            kCalibrationProducts / (double(index.ivf.ntotal) * index.ivf.d);
    const size_t stored = size_t(index.ivf.ntotal);
    index.gmm.calibrate(
            std::min(
                    stored / 4,
                    std::clamp(
                            std::max(index.ivf.nlist / 4, size_t(affordable)),
                            kMinCalibrationQueries,
                            kMaxCalibrationQueries)),
            nullptr,
            std::min(k > 0 ? k : 10, size_t(index.ivf.ntotal) - 1));
}

} // namespace faiss_ext
