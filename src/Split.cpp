#include "Split.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <string>
#include <unordered_set>

#include "FullCovariance.h"
#include "Initialise.h"

namespace gmm {

/// As faiss::Clustering splits clusters, for k-means and EM to part.
static constexpr double kReseedStep = 0.1;

double sum_of_squares(const SufficientStats& stats, size_t c) {
    const size_t d = stats.d;
    double sum = 0;
    switch (stats.covariance) {
        case Covariance::isotropic:
        case Covariance::tied_spherical:
        case Covariance::tied:
            return stats.sum_x2[c];
        case Covariance::diagonal:
            for (size_t j = 0; j < d; j++) {
                sum += stats.sum_x2[c * d + j];
            }
            return sum;
        case Covariance::full:
            break;
    }
    const double* packed =
            stats.sum_x2.data() + c * num_moments(Covariance::full, 1, d);
    for (size_t j = 0; j < d; j++) {
        sum += packed[j * (j + 3) / 2];
    }
    return sum;
}

double sum_rounding(double n) {
    // Equal rows' products are all rounded in one direction; and clusters may
    // be 1e5 deviations apart.
    return std::min(1e-9, 1e-12 + 1e-16 * n);
}

std::vector<double> component_scatter(
        const SufficientStats& stats, double row_weight) {
    const size_t d = stats.d;
    std::vector<double> out(stats.k);
    for (size_t c = 0; c < stats.k; c++) {
        const double* sum = stats.sum_x.data() + c * d;
        const double squares = sum_of_squares(stats, c);
        const double n = stats.n_k[c];
        if (!(n > 0)) {
            continue;
        }
        const double scatter =
                squares - std::inner_product(sum, sum + d, sum, 0.0) / n;
        out[c] = scatter > sum_rounding(n / row_weight) * squares ? scatter : 0;
    }
    return out;
}

void split_component(
        GaussianMixture& model,
        size_t from,
        size_t to,
        double step,
        std::mt19937_64& random) {
    const size_t d = model.d;
    std::vector<double> moved(d);
    for (double& s : moved) { // by equal steps, halves of halves would meet
        const double signed_step = random() & 1 ? step : -step;
        s = signed_step * (0.75 + 0.5 * uniform(random));
    }
    times_factor(model, from, moved.data());
    for (size_t j = 0; j < d; j++) {
        model.means[to * d + j] = model.means[from * d + j] + float(moved[j]);
        model.means[from * d + j] -= float(moved[j]);
    }
    auto copy = [&](std::vector<float>& of_all) {
        const size_t each = of_all.size() / model.k;
        std::copy_n(
                of_all.begin() + from * each, each, of_all.begin() + to * each);
    };
    if (!is_tied(model.covariance)) {
        copy(model.variances);
        copy(model.precisions_cholesky);
    }
    model.log_weights[from] -= std::log(2.0f);
    model.log_weights[to] = model.log_weights[from];
}

std::vector<std::pair<size_t, size_t>> split_for_dead(
        const SufficientStats& stats,
        double min_count,
        GaussianMixture& model,
        std::mt19937_64& random,
        double row_weight) {
    auto is_dead = [&](size_t c) {
        return stats.n_k[c] < min_count || stats.n_k[c] <= 0;
    };
    std::vector<std::pair<size_t, size_t>> splits;
    std::vector<size_t> dead;
    for (size_t c = 0; c < model.k; c++) {
        if (is_dead(c)) {
            dead.push_back(c);
        }
    }
    if (dead.empty()) {
        return splits;
    }
    struct Candidate {
        double scatter;
        double n;
        size_t c;

        bool operator<(const Candidate& other) const {
            return scatter != other.scatter ? scatter < other.scatter
                                            : c < other.c;
        }
    };
    const std::vector<double> scatter = component_scatter(stats, row_weight);
    std::priority_queue<Candidate> queue;
    auto push = [&](double scatter_c, double n, size_t c) {
        if (scatter_c > 0 && n >= 2 * min_count) {
            queue.push({scatter_c, n, c});
        }
    };
    for (size_t c = 0; c < model.k; c++) {
        if (!is_dead(c)) {
            push(scatter[c], stats.n_k[c], c);
        }
    }
    for (size_t c : dead) {
        if (queue.empty()) {
            break;
        }
        const Candidate best = queue.top();
        queue.pop();
        split_component(model, best.c, c, kReseedStep, random);
        push(best.scatter / 2, best.n / 2, best.c);
        push(best.scatter / 2, best.n / 2, c);
        splits.emplace_back(best.c, c);
    }
    if (!splits.empty()) {
        normalise_weights(model);
    }
    return splits;
}

void normalise_weights(GaussianMixture& model) {
    double sum = 0;
    for (float log_weight : model.log_weights) {
        sum += std::exp(double(log_weight));
    }
    for (float& log_weight : model.log_weights) {
        log_weight -= std::log(sum);
    }
}

void make_distinct(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        size_t k,
        std::vector<float>& means,
        std::mt19937_64& random) {
    const size_t d = source.d, n = source.n;
    std::unordered_set<std::string> seen;
    auto is_new = [&](float* y) {
        for (size_t j = 0; j < d; j++) {
            y[j] += 0.0f; // -0 and 0 are equal
        }
        return seen.emplace(reinterpret_cast<const char*>(y), d * sizeof(float))
                .second;
    };
    std::vector<size_t> copies;
    for (size_t c = 0; c < k; c++) {
        if (!is_new(means.data() + c * d)) {
            copies.push_back(c);
        }
    }
    if (copies.empty()) {
        return;
    }
    // Every row once, in an order that has nothing to do with that of the data.
    size_t step = n > 1 ? random() % (n - 1) + 1 : 1;
    while (std::gcd(step, n) != 1) {
        step++;
    }
    size_t at = random() % n;
    std::vector<float> y(d);
    size_t replaced = 0;
    for (size_t i = 0; i < n && replaced < copies.size(); i++) {
        at = (at + step) % n;
        if (weights && !(weights[at] > 0)) {
            continue;
        }
        gather(source, {at}, y.data());
        for (size_t j = 0; j < d; j++) {
            y[j] = (y[j] - frame.center[j]) * frame.scale;
        }
        if (is_new(y.data())) {
            std::copy(
                    y.begin(), y.end(), means.begin() + copies[replaced++] * d);
        }
    }
}

} // namespace gmm
