#include "LocalVariance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <unordered_set>

#include "ParallelFor.h"
#include "Split.h"
#include "cpu/Kernels.h"

namespace gmm {

namespace {

/** The means that have vectors, where these have their centre: halves of a
 * component that EM has not parted yet have the same, or one has no vectors. */
struct Centres {
    size_t d;
    std::vector<float> x;        ///< size k * d; of the others, the mean
    std::vector<uint8_t> filled; ///< size k

    Centres(const SufficientStats& nearest, const std::vector<float>& means)
            : d(nearest.d), x(means), filled(nearest.k) {
        for (size_t c = 0; c < nearest.k; c++) {
            filled[c] = nearest.n_k[c] > 0;
            for (size_t j = 0; j < d && filled[c]; j++) {
                x[c * d + j] = float(nearest.sum_x[c * d + j] / nearest.n_k[c]);
            }
        }
    }

    /// Where each different one is first.
    std::vector<size_t> different() const {
        std::unordered_set<std::string_view> seen;
        std::vector<size_t> out;
        for (size_t c = 0; c < filled.size(); c++) {
            const auto* bytes = reinterpret_cast<const char*>(&x[c * d]);
            if (filled[c] && seen.emplace(bytes, d * sizeof(float)).second) {
                out.push_back(c);
            }
        }
        return out;
    }

    struct Nearest {
        size_t c = 0;
        double square = std::numeric_limits<double>::infinity();
    };
    /// Of those the nearest to that of c, but no equal one if `different`.
    template <class Others>
    Nearest nearest(size_t c, bool different, const Others& others) const {
        const Kernels& kernel = best_kernels();
        const float* own = &x[c * d];
        // Closer ones are the same but for rounding.
        const double equal = different ? 1e-12 * kernel.norm(d, own) : -1;
        Nearest out;
        for (size_t other : others) {
            // a backend may name none
            if (other >= filled.size() || !filled[other]) {
                continue;
            }
            const double square =
                    kernel.distance(d, own, &x[other * d], nullptr);
            if (square > equal && square < out.square) {
                out = {other, square};
            }
        }
        return out;
    }
};

} // namespace

std::vector<double> local_variances(
        const SufficientStats& nearest,
        const std::vector<float>& means,
        double otherwise,
        const NearestMeans& nearest_means,
        double row_weight) {
    const size_t k = nearest.k, d = nearest.d;
    std::vector<double> out = component_scatter(nearest, row_weight);
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
    const Centres centres(nearest, means);
    std::vector<Centres::Nearest> found(without.size());
    std::vector<size_t> left(without.size());
    std::iota(left.begin(), left.end(), size_t(0));
    const auto find = [&](size_t i, const auto& others) {
        const size_t c = without[i];
        found[i] = centres.nearest(c, centres.filled[c], others);
    };
    if (nearest_means) {
        // Itself, its equals, and one more.
        const size_t m = std::min<size_t>(4, k);
        std::vector<int64_t> near(without.size() * m);
        nearest_means(without, m, near.data());
        left.clear();
        for (size_t i = 0; i < without.size(); i++) {
            find(i, std::span(near).subspan(i * m, m));
            if (std::isinf(found[i].square)) {
                left.push_back(i);
            }
        }
    }
    if (!left.empty()) {
        const std::vector<size_t> others = centres.different();
        parallel_for(left.size(), [&](size_t i) { find(left[i], others); });
    }
    for (bool filled : {true, false}) { // the others have their values
        for (size_t i = 0; i < without.size(); i++) {
            const size_t c = without[i];
            if (bool(centres.filled[c]) != filled) {
                continue;
            }
            const auto [other, square] = found[i];
            out[c] = std::isinf(square) ? otherwise
                    : filled            ? square / (4 * d)
                                        : out[other];
        }
    }
    return out;
}

std::vector<double> local_shape(
        const SufficientStats& nearest, double row_weight) {
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
            const bool spread =
                    scatter[j] > sum_rounding(n / row_weight) * square(j);
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
