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

std::vector<double> local_shape(const SufficientStats& nearest) {
    const size_t k = nearest.k, d = nearest.d;
    const Covariance kind = nearest.covariance;
    if (kind != Covariance::diagonal && !has_matrices(kind)) {
        return {};
    }
    // Components whose moments are summed together, and where those are.
    const size_t together = kind == Covariance::tied ? k : 1;
    const double* moments = nearest.sum_x2.data();
    const size_t stride = num_moments(kind, 1, d);
    if (kind == Covariance::tied) {
        moments += k;
    }
    const auto square = [&](size_t j) {
        return moments[kind == Covariance::diagonal ? j : j * (j + 3) / 2];
    };
    std::vector<double> out(d), scatter(d);
    double weight = 0;
    for (size_t first = 0; first < k; first += together, moments += stride) {
        double n = 0;
        for (size_t j = 0; j < d; j++) {
            scatter[j] = square(j);
        }
        for (size_t c = first; c < first + together; c++) {
            const double* sum = nearest.sum_x.data() + c * d;
            for (size_t j = 0; j < d && nearest.n_k[c] > 0; j++) {
                scatter[j] -= sum[j] * sum[j] / nearest.n_k[c];
            }
            n += nearest.n_k[c];
        }
        double total = 0;
        for (size_t j = 0; j < d; j++) {
            const bool spread = scatter[j] > sum_rounding(n) * square(j);
            total += scatter[j] = spread ? scatter[j] : 0;
        }
        for (size_t j = 0; j < d && total > 0; j++) {
            out[j] += n * d * scatter[j] / total;
        }
        weight += total > 0 ? n : 0;
    }
    for (double& share : out) {
        share = share > 0 ? std::max(share / weight, 1e-20) : 1;
    }
    return out;
}

} // namespace gmm
