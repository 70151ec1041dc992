#include "faiss_ext/ProbePolicy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <faiss/impl/FaissAssert.h>

namespace faiss_ext {

namespace {

constexpr std::array<std::pair<ProbeOrder, const char*>, 5> kOrderNames = {{
        {ProbeOrder::calibrated, "calibrated"},
        {ProbeOrder::distance, "distance"},
        {ProbeOrder::log_likelihood, "log_likelihood"},
        {ProbeOrder::scale_free, "scale_free"},
        {ProbeOrder::codes, "codes"},
}};

/// A list and what it is ordered by: smaller is better, ties by number.
using Scored = std::pair<float, int32_t>;

/** The k best of n scores, best first; NaN scores are left out.
 *
 * Candidates below the k-th best so far are gathered until there are 2 k of
 * them, and then cut to the best k: O(n) comparisons, nearly all of them with
 * a constant, where k is small beside n.
 */
template <class Score>
std::vector<Scored> best_scores(size_t n, size_t k, Score score) {
    std::vector<Scored> best;
    best.reserve(std::min(n, 2 * k));
    float bound = std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < n; i++) {
        const float s = score(i);
        // Not "s >= bound": a NaN must be left out too. An equal score has a
        // larger number than the k-th best and loses the tie.
        if (!(s < bound)) {
            continue;
        }
        best.emplace_back(s, static_cast<int32_t>(i));
        if (best.size() == 2 * k) {
            std::nth_element(best.begin(), best.begin() + (k - 1), best.end());
            best.resize(k);
            bound = best.back().first;
        }
    }
    const size_t head = std::min(k, best.size());
    std::partial_sort(best.begin(), best.begin() + head, best.end());
    best.resize(head);
    return best;
}

/// How many of the best lists cover `mass`, each having share(list) of it.
template <class Share>
size_t lists_covering(
        const std::vector<Scored>& best,
        size_t nlist,
        float mass,
        Share share) {
    double total = 0;
    for (size_t i = 0; i < nlist; i++) {
        total += share(i);
    }
    double covered = 0;
    size_t count = 0;
    while (count < best.size() && covered < mass * total) {
        covered += share(best[count++].second);
    }
    return std::max(count, std::min<size_t>(1, best.size()));
}

} // namespace

const char* to_string(ProbeOrder order) {
    for (const auto& [value, name] : kOrderNames) {
        if (value == order) {
            return name;
        }
    }
    FAISS_THROW_FMT(
            "probe order %d is none of those that there are", int(order));
}

ProbeOrder probe_order_from_string(const std::string& name) {
    for (const auto& [value, its_name] : kOrderNames) {
        if (name == its_name) {
            return value;
        }
    }
    for (const char* former : {"sketch", "cell_distance", "cell_posterior"}) {
        if (name == former) {
            return ProbeOrder::codes;
        }
    }
    FAISS_THROW_FMT(
            "probe order \"%s\" is none of calibrated, distance, "
            "log_likelihood, scale_free, codes",
            name.c_str());
}

void ProbePolicy::validate() const {
    to_string(order);
    FAISS_THROW_IF_NOT_FMT(
            probe_mass > 0 && probe_mass <= 1,
            "probe_mass = %g, expected a value in (0, 1]",
            probe_mass);
    FAISS_THROW_IF_NOT_FMT(
            exponent > 0 && std::isfinite(exponent),
            "exponent = %g, expected a positive value",
            exponent);
}

void ProbePolicy::select(
        size_t nlist,
        const float* distances,
        const float* log_joint,
        bool similarity,
        size_t nprobe,
        idx_t* out_keys,
        float* out_dis) const {
    const size_t k = std::min(nprobe, nlist);
    std::vector<Scored> best;
    if (k == 0) {
        // nothing to choose from
    } else if (order == ProbeOrder::log_likelihood) {
        best = best_scores(nlist, k, [&](size_t i) { return -log_joint[i]; });
    } else if (similarity) {
        best = best_scores(nlist, k, [&](size_t i) { return -distances[i]; });
    } else {
        best = best_scores(nlist, k, [&](size_t i) { return distances[i]; });
    }

    size_t count = best.size();
    if (probe_mass < 1 && count > 0) {
        if (order == ProbeOrder::log_likelihood) {
            const float top = -best[0].first;
            count = lists_covering(best, nlist, probe_mass, [&](size_t i) {
                return std::exp(log_joint[i] - top);
            });
        } else if (order == ProbeOrder::scale_free) {
            auto squared = [&](size_t i) {
                const float l2 =
                        similarity ? 2 - 2 * distances[i] : distances[i];
                return std::max(l2, std::numeric_limits<float>::min());
            };
            // Relative to the nearest mean, so that no power overflows.
            const float nearest = squared(best[0].second);
            count = lists_covering(best, nlist, probe_mass, [&](size_t i) {
                return std::pow(nearest / squared(i), exponent);
            });
        }
    }

    for (size_t i = 0; i < count; i++) {
        out_keys[i] = best[i].second;
        out_dis[i] = distances[best[i].second];
    }
    const float worst = similarity ? std::numeric_limits<float>::lowest()
                                   : std::numeric_limits<float>::max();
    std::fill(out_keys + count, out_keys + nprobe, -1);
    std::fill(out_dis + count, out_dis + nprobe, worst);
}

} // namespace faiss_ext
