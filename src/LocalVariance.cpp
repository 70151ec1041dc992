#include "LocalVariance.h"

#include <cmath>
#include <limits>
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
        double otherwise) {
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
    const std::vector<size_t> others = different_means(k, d, means);
    parallel_for(without.size(), [&](size_t i) {
        const float* mean = &means[without[i] * d];
        // Closer ones are the same but for rounding.
        const double equal = 1e-12 * kernel.norm(d, mean);
        double least = std::numeric_limits<double>::infinity();
        for (size_t c : others) {
            const double square =
                    kernel.distance(d, mean, &means[c * d], nullptr);
            least = square > equal && square < least ? square : least;
        }
        out[without[i]] = std::isinf(least) ? otherwise : least / (4 * d);
    });
    return out;
}

} // namespace gmm
