#include "faiss_ext/Calibration.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

namespace {

void check(const Calibration& calibration, float target) {
    FAISS_THROW_IF_NOT_MSG(
            calibration.fitted && !calibration.curves.empty(),
            "target_recall needs a calibration: calibrate() has not been "
            "called, and calibrate_on_add was off");
    FAISS_THROW_IF_NOT_FMT(
            target > 0 && target <= 1,
            "target_recall = %g, expected in (0, 1]",
            target);
}

/// Half a standard error above the target: what few queries found is not what
/// others will. A query's neighbours are found together, so that k of them say
/// no more than a few.
float wanted_recall(size_t nq, size_t k, float target) {
    const double independent = double(nq) * std::min<size_t>(k, 5);
    return nq == 0
            ? target
            : float(target +
                    0.5 * std::sqrt(target * (1 - target) / independent));
}

Calibration::Point cheapest(
        const Calibration::Curve& curve, size_t nq, float target) {
    const float wanted = wanted_recall(nq, curve.k, target);
    for (const Calibration::Point& p : curve.points) {
        if (p.recall >= wanted) {
            return p;
        }
    }
    return curve.points.back();
}

/// The last point is all lists, or all codes where there is nothing else.
float entries_per_list(const Calibration& c) {
    const Calibration::Point& everything = c.curves.back().points.back();
    return everything.by_codes ? 1 : float(c.ntotal) / everything.budget;
}

Calibration::Choice choice(const Calibration::Point& p) {
    return {p, p.by_codes ? ProbeOrder::codes : ProbeOrder::distance, p.budget};
}

/// What finds what either finds; of lists and codes that is codes, as many as
/// the lists hold, by a bound that leaves out nothing.
Calibration::Choice both(
        const Calibration::Choice& p,
        const Calibration::Point& q,
        float per_list) {
    Calibration::Point out = p;
    out.bound = std::max(p.bound, q.bound);
    out.reach = p.by_codes == q.by_codes ? std::min(p.reach, q.reach) : 0;
    if (p.by_codes == q.by_codes) {
        out.budget = std::max(p.budget, q.budget);
    } else {
        out.by_codes = true;
        out.bound = std::max(out.bound, kSureBound);
        out.budget =
                float(std::max(p.in_codes(per_list), q.in_codes(per_list)));
    }
    Calibration::Choice found = choice(out);
    found.mixed = p.mixed || p.by_codes != q.by_codes;
    return found;
}

} // namespace

Calibration::Choice Calibration::choose(
        float target_recall, size_t k_in) const {
    check(*this, target_recall);
    const size_t wanted = k_in > 0 ? k_in : k;
    auto at = std::find_if(curves.begin(), curves.end(), [&](const Curve& c) {
        return c.k >= wanted;
    });
    if (at != curves.end()) {
        const Point p = cheapest(*at, nq, target_recall);
        if (at->k == wanted || at == curves.begin()) {
            return choice(p);
        }
        // what many need less of few may need more: a bound that is sure
        const Point fewer = cheapest(*(at - 1), nq, target_recall);
        return both(choice(p), fewer, entries_per_list(*this));
    }
    Point p = cheapest(curves.back(), nq, target_recall);
    p.budget *= float(wanted) / curves.back().k;
    return choice(p);
}

Calibration::Choice Calibration::choose_for_range(float target_recall) const {
    check(*this, target_recall);
    Choice most = choice(cheapest(curves[0], nq, target_recall));
    for (size_t i = 1; i < curves.size(); i++) {
        most =
                both(most,
                     cheapest(curves[i], nq, target_recall),
                     entries_per_list(*this));
    }
    return most;
}

std::string Calibration::report() const {
    if (!fitted) {
        return "not calibrated\n";
    }
    char line[200];
    snprintf(
            line,
            sizeof(line),
            "calibrated on %zu %s of %zu vectors; a query takes %.0f ns, %.2f "
            "a code, %.1f a distance and %.1f one of a whole list\n",
            nq,
            own_queries ? "vectors of the index" : "queries given",
            ntotal,
            costs.query,
            costs.code,
            costs.distance,
            costs.scan);
    std::string out = line;
    for (const Curve& curve : curves) {
        snprintf(
                line,
                sizeof(line),
                "recall@%-6zu %-5s %10s %8s %10s %10s %12s\n",
                curve.k,
                "of",
                "budget",
                "bound",
                "codes",
                "distances",
                "microseconds");
        out += line;
        for (float target : {0.5f, 0.8f, 0.9f, 0.95f, 0.99f}) {
            const Point p = cheapest(curve, nq, target);
            snprintf(
                    line,
                    sizeof(line),
                    "  %-11g %-5s %10.0f %8.2g %10.0f %10.0f %12.1f\n",
                    target,
                    p.by_codes ? "codes" : "lists",
                    p.budget,
                    p.bound,
                    p.codes,
                    p.distances,
                    p.cost * 1e-3f);
            out += line;
        }
    }
    return out;
}

} // namespace faiss_ext
