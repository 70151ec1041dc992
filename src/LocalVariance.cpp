#include "LocalVariance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <unordered_set>

#include "ParallelFor.h"
#include "Split.h"
#include "cpu/Kernels.h"

namespace gmm {

// Where each different mean is first.
static std::vector<size_t> different_means(
        size_t k, size_t d, const std::vector<float>& means) {
    std::unordered_set<std::string_view> seen;
    std::vector<size_t> out;
    for (size_t c = 0; c < k; c++) {
        const auto* bytes = reinterpret_cast<const char*>(&means[c * d]);
        if (seen.emplace(bytes, d * sizeof(float)).second) {
            out.push_back(c);
        }
    }
    return out;
}

std::vector<double> local_variances(
        const SufficientStats& nearest,
        const std::vector<float>& means,
        double otherwise,
        const NearestMeans& nearest_means) {
    const size_t k = nearest.k, d = nearest.d;
    std::vector<double> out = component_scatter(nearest);
    std::vector<size_t> without;
    for (size_t c = 0; c < k; c++) {
        if (out[c] > 0) {
            out[c] /= nearest.n_k[c] * d;
        } else {
            without.push_back(c);
        }
    }
    if (without.empty()) {
        return out;
    }
    const Kernels& kernel = best_kernels();
    // The least distance to one of them that is another.
    const auto least_distance = [&](size_t of, const auto& others) {
        const float* mean = &means[of * d];
        // Closer ones are the same but for rounding.
        const double equal = 1e-12 * kernel.norm(d, mean);
        double least = std::numeric_limits<double>::infinity();
        for (size_t c : others) {
            if (c >= k) {
                continue; // a backend knows none
            }
            const double square =
                    kernel.distance(d, mean, &means[c * d], nullptr);
            least = square > equal && square < least ? square : least;
        }
        return least;
    };
    const auto set = [&](size_t c, double least) {
        out[c] = std::isinf(least) ? otherwise : least / (4 * d);
    };
    if (nearest_means) {
        // Itself, its equals, and one more.
        const size_t m = std::min<size_t>(4, k);
        std::vector<int64_t> near(without.size() * m);
        nearest_means(without, m, near.data());
        std::vector<size_t> left;
        for (size_t i = 0; i < without.size(); i++) {
            const double least = least_distance(
                    without[i], std::span(near).subspan(i * m, m));
            set(without[i], least);
            if (std::isinf(least)) {
                left.push_back(without[i]);
            }
        }
        without = std::move(left);
    }
    if (without.empty()) {
        return out;
    }
    const std::vector<size_t> others = different_means(k, d, means);
    parallel_for(without.size(), [&](size_t i) {
        set(without[i], least_distance(without[i], others));
    });
    return out;
}

} // namespace gmm
