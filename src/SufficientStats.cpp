#include "SufficientStats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "Error.h"
#include "FullCovariance.h"

namespace gmm {

size_t num_moments(Covariance covariance, size_t k, size_t d) {
    switch (covariance) {
        case Covariance::diagonal:
            return k * d;
        case Covariance::full:
            return k * (d * (d + 1) / 2);
        case Covariance::tied:
            return k + d * (d + 1) / 2;
        case Covariance::isotropic:
        case Covariance::tied_spherical:
            break;
    }
    return k;
}

SufficientStats::SufficientStats(Covariance covariance, size_t k, size_t d)
        : covariance(covariance), d(d), k(k), n_k(k), sum_x(k * d),
          sum_x2(num_moments(covariance, k, d)) {}

void SufficientStats::clear() {
    std::fill(n_k.begin(), n_k.end(), 0.0);
    std::fill(sum_x.begin(), sum_x.end(), 0.0);
    std::fill(sum_x2.begin(), sum_x2.end(), 0.0);
    weight = objective = dropped_mass = 0;
}

static void add(std::vector<double>& to, const std::vector<double>& from) {
    for (size_t i = 0; i < to.size(); i++) {
        to[i] += from[i];
    }
}

void SufficientStats::merge(const SufficientStats& other) {
    if (other.covariance != covariance || other.k != k || other.d != d) {
        throw_invalid(
                "other: k = %zu, d = %zu, expected k = %zu, d = %zu and the "
                "same covariance kind",
                other.k,
                other.d,
                k,
                d);
    }
    add(n_k, other.n_k);
    add(sum_x, other.sum_x);
    add(sum_x2, other.sum_x2);
    weight += other.weight;
    objective += other.objective;
    dropped_mass += other.dropped_mass;
}

static bool is_dead(double n, double min_count) {
    return n < min_count || n <= 0;
}

// sum_i w_i r_ik |y_i - mean|^2, from the sums alone.
static double scatter(
        const SufficientStats& stats, size_t c, const float* mean) {
    double out = stats.sum_x2[c];
    for (size_t j = 0; j < stats.d; j++) {
        const double mu = mean[j];
        out += mu * (stats.n_k[c] * mu - 2 * stats.sum_x[c * stats.d + j]);
    }
    return std::max(out, 0.0);
}

static void fit_diagonal(
        const SufficientStats& stats,
        size_t c,
        double variance_floor,
        const std::vector<double>& floor_shape,
        double reg_covar,
        GaussianMixture& model) {
    for (size_t j = 0; j < stats.d; j++) {
        const size_t i = c * stats.d + j;
        const double mu = model.means[i];
        const double scatter =
                stats.sum_x2[i] + mu * (stats.n_k[c] * mu - 2 * stats.sum_x[i]);
        model.variances[i] = std::max(
                std::max(scatter, 0.0) / stats.n_k[c] + reg_covar,
                variance_floor * (floor_shape.empty() ? 1 : floor_shape[j]));
    }
}

static void fit_weights(
        const SufficientStats& stats,
        double min_count,
        GaussianMixture& model) {
    // A weight of 0 has no logarithm.
    const double least =
            std::max(min_count, 1e-6 * std::max(stats.weight, 1e-30));
    const auto count_of = [&](double n) {
        return is_dead(n, min_count) ? least : n;
    };
    double total = 0;
    for (double n : stats.n_k) {
        total += count_of(n);
    }
    for (size_t c = 0; c < stats.k; c++) {
        model.log_weights[c] = std::log(count_of(stats.n_k[c]) / total);
    }
}

double weighted_median(
        const std::vector<double>& values, const std::vector<double>& weights) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return values[a] < values[b];
    });
    const double half =
            std::accumulate(weights.begin(), weights.end(), 0.0) / 2;
    double below = 0;
    for (size_t i : order) {
        below += weights[i];
        if (below >= half && weights[i] > 0) {
            return values[i];
        }
    }
    return values[order.back()];
}

static void check_m_step(
        const SufficientStats& stats,
        const std::vector<double>& variance_floor,
        const GaussianMixture& model,
        double reg_covar,
        const std::vector<double>& floor_shape) {
    if (model.covariance != stats.covariance || model.k != stats.k ||
        model.d != stats.d) {
        throw_invalid(
                "model: k = %zu, d = %zu, expected k = %zu, d = %zu and the "
                "covariance kind of stats",
                model.k,
                model.d,
                stats.k,
                stats.d);
    }
    if (variance_floor.size() != 1 && variance_floor.size() != stats.k) {
        throw_invalid(
                "variance_floor: %zu values, expected 1 or k = %zu",
                variance_floor.size(),
                stats.k);
    }
    for (double floor : variance_floor) {
        if (!(floor > 0)) {
            throw_invalid(
                    "variance_floor = %g, expected a positive value", floor);
        }
    }
    if (!floor_shape.empty() && floor_shape.size() != stats.d) {
        throw_invalid(
                "floor_shape: %zu values, expected 0 or d = %zu",
                floor_shape.size(),
                stats.d);
    }
    if (!(reg_covar >= 0)) {
        throw_invalid("reg_covar = %g, expected at least 0", reg_covar);
    }
}

void m_step(
        const SufficientStats& stats,
        const std::vector<double>& variance_floor,
        double min_count,
        bool update_means,
        GaussianMixture& model,
        double reg_covar,
        const std::vector<double>& floor_shape) {
    check_m_step(stats, variance_floor, model, reg_covar, floor_shape);
    std::vector<double> floors = variance_floor;
    if (floors.size() == 1) {
        floors.assign(stats.k, variance_floor[0]);
    }
    const bool tied = stats.covariance == Covariance::tied_spherical;
    std::vector<double> scatters(tied ? stats.k : 0);
#pragma omp parallel for schedule(static) if (stats.k * stats.d > 100000)
    for (int64_t i = 0; i < int64_t(stats.k); i++) {
        const size_t c = i;
        const double n = stats.n_k[c];
        if (is_dead(n, min_count)) {
            continue;
        }
        float* mean = model.means.data() + c * stats.d;
        if (update_means) {
            for (size_t j = 0; j < stats.d; j++) {
                mean[j] = stats.sum_x[c * stats.d + j] / n;
            }
        }
        switch (stats.covariance) {
            case Covariance::isotropic:
                model.variances[c] = std::max(
                        scatter(stats, c, mean) / (n * stats.d) + reg_covar,
                        floors[c]);
                break;
            case Covariance::diagonal:
                fit_diagonal(
                        stats, c, floors[c], floor_shape, reg_covar, model);
                break;
            case Covariance::tied_spherical:
                scatters[c] = scatter(stats, c, mean);
                break;
            case Covariance::full:
            case Covariance::tied:
                break; // all of them below
        }
    }
    if (tied) {
        double sum = 0, count = 0;
        for (size_t c = 0; c < stats.k; c++) {
            sum += scatters[c]; // of dead ones 0
            count += is_dead(stats.n_k[c], min_count) ? 0 : stats.n_k[c];
        }
        if (count > 0) {
            model.variances[0] = std::max(
                    sum / (count * stats.d) + reg_covar,
                    weighted_median(floors, stats.n_k));
        }
    }
    if (has_matrices(stats.covariance)) {
        fit_matrices(stats, floors, floor_shape, reg_covar, min_count, model);
    }
    fit_weights(stats, min_count, model);
}

} // namespace gmm
