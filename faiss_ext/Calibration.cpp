#include "faiss_ext/Calibration.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"

namespace faiss_ext {

float Calibration::predict_tau(float d1) const {
    return std::exp(tau_weights[0] + tau_weights[1] * log_distance(d1));
}

StopWeights stop_features(const Progress& progress, float kth_distance) {
    return {1,
            bounded_log(float(progress.entries)),
            bounded_log(progress.last_score / kth_distance),
            bounded_log(progress.first_score / kth_distance),
            bounded_log(progress.frontier / kth_distance)};
}

float missing_mass(const StopWeights& weights, const StopWeights& features) {
    float logit = 0;
    for (size_t j = 0; j < features.size(); j++) {
        logit += weights[j] * features[j];
    }
    return 1 / (1 + std::exp(-logit));
}

float Calibration::missing(
        ProbeOrder order,
        const Progress& progress,
        float kth_distance,
        size_t ntotal_now) const {
    if (!std::isfinite(kth_distance)) {
        return 1; // fewer than k found
    }
    if (kth_distance <= 0) {
        return 0; // k at distance 0: none can be nearer
    }
    auto f = stop_features(progress, kth_distance);
    if (ntotal > 0 && ntotal_now > 0) {
        f[1] -= std::log(float(ntotal_now) / float(ntotal));
    }
    return missing_mass(
            order == ProbeOrder::sketch ? sketch_stop_weights
                                        : cell_stop_weights,
            f);
}

Calibration::Choice Calibration::choose(
        float target_recall, bool by_mass_only) const {
    FAISS_THROW_IF_NOT_MSG(
            fitted,
            "target_recall needs a calibration: calibrate() has not been "
            "called, and calibrate_on_add was off");
    FAISS_THROW_IF_NOT_FMT(
            target_recall > 0 && target_recall <= 1,
            "target_recall = %g, expected in (0, 1]",
            target_recall);
    Choice best{ProbeOrder::distance, false, 0, 0, HUGE_VALF, HUGE_VALF};
    for (const Candidate& c : candidates) {
        if (by_mass_only && !c.by_mass) {
            continue;
        }
        for (size_t p = 0; p < c.curve.size(); p++) {
            const Point& at = c.curve[p];
            if (at.recall < target_recall) {
                continue;
            }
            // between the last point below the target and the first above
            const Point& from = c.curve[p > 0 ? p - 1 : 0];
            const float t = at.recall > from.recall
                    ? (target_recall - from.recall) / (at.recall - from.recall)
                    : 1;
            auto between = [t](float low, float high) {
                return low + t * (high - low);
            };
            const float cost = between(from.cost, at.cost);
            if (cost < best.cost) {
                best = {c.order,
                        c.by_mass,
                        between(from.parameter, at.parameter),
                        between(from.recall, at.recall),
                        between(from.distances, at.distances),
                        cost};
            }
            break;
        }
    }
    return best;
}

ProbeOrder Calibration::best_order(float cost) const {
    ProbeOrder best = ProbeOrder::distance;
    float best_recall = -1;
    for (const Candidate& c : candidates) {
        if (c.by_mass || c.curve.empty()) {
            continue;
        }
        const auto above = std::find_if(
                c.curve.begin(), c.curve.end(), [&](const Point& p) {
                    return p.cost >= cost;
                });
        float recall = c.curve.back().recall;
        if (above == c.curve.begin()) {
            recall = above->recall * cost / above->cost;
        } else if (above != c.curve.end()) {
            const Point& from = above[-1];
            recall = from.recall +
                    (above->recall - from.recall) * (cost - from.cost) /
                            (above->cost - from.cost);
        }
        if (recall >= best_recall) { // of equals the finest, which is last
            best_recall = recall;
            best = c.order;
        }
    }
    return best;
}

std::string Calibration::report() const {
    if (!fitted) {
        return "not calibrated\n";
    }
    char line[200];
    snprintf(
            line,
            sizeof(line),
            "calibrated on %zu %s for recall@%zu of %zu vectors; cost a query "
            "in distances:\n",
            nq,
            own_queries ? "vectors of the index" : "queries given",
            k,
            ntotal);
    std::string out = line;
    const float targets[] = {0.5f, 0.8f, 0.9f, 0.95f, 0.99f};
    snprintf(line, sizeof(line), "%-24s", "recall");
    out += line;
    for (float target : targets) {
        snprintf(line, sizeof(line), "%10g", target);
        out += line;
    }
    out += "\n";
    Calibration one = *this;
    for (const Candidate& c : candidates) {
        snprintf(
                line,
                sizeof(line),
                "%-15s %-8s",
                to_string(c.order),
                c.by_mass ? "mass" : "fixed");
        out += line;
        one.candidates = {c};
        for (float target : targets) {
            const float cost = one.choose(target).cost;
            if (std::isfinite(cost)) {
                snprintf(line, sizeof(line), "%10.0f", cost);
            } else {
                snprintf(line, sizeof(line), "%10s", "-");
            }
            out += line;
        }
        out += "\n";
    }
    out += "chosen                  ";
    for (float target : targets) {
        const Choice c = choose(target);
        snprintf(line, sizeof(line), "%10.0f", c.cost);
        out += line;
    }
    return out + "\n";
}

} // namespace faiss_ext
