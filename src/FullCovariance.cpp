#include "FullCovariance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "Error.h"
#include "ParallelFor.h"

namespace gmm {

bool cholesky(size_t d, double* a) {
    for (size_t i = 0; i < d; i++) {
        double* row = a + i * d;
        for (size_t j = 0; j <= i; j++) {
            const double* other = a + j * d;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size_t l = 0; l < j; l++) {
                sum += row[l] * other[l];
            }
            const double rest = row[j] - sum;
            if (i == j && !(rest > 0)) {
                return false;
            }
            row[j] = i == j ? std::sqrt(rest) : rest / other[j];
        }
        std::fill(row + i + 1, row + d, 0.0);
    }
    return true;
}

void invert_lower(size_t d, const double* l, double* out) {
    std::fill_n(out, d * d, 0.0);
    for (size_t i = 0; i < d; i++) {
        double* row = out + i * d;
        for (size_t j = 0; j < i; j++) {
            const double factor = l[i * d + j];
            const double* earlier = out + j * d;
#pragma omp simd
            for (size_t m = 0; m <= j; m++) {
                row[m] -= factor * earlier[m];
            }
        }
        const double scale = 1 / l[i * d + i];
        for (size_t m = 0; m < i; m++) {
            row[m] *= scale;
        }
        row[i] = scale;
    }
}

bool precision_cholesky(size_t d, double* covariance, float* out) {
    if (!cholesky(d, covariance)) {
        return false;
    }
    std::vector<double> inverse(d * d);
    invert_lower(d, covariance, inverse.data());
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < d; j++) {
            out[i * d + j] = inverse[j * d + i];
        }
    }
    return true;
}

const float* precision_factor(const GaussianMixture& model, size_t c) {
    const bool one = model.covariance == Covariance::tied;
    return model.precisions_cholesky.data() + (one ? 0 : c * model.d * model.d);
}

std::vector<double> covariance_factor(const GaussianMixture& model, size_t c) {
    const size_t d = model.d;
    std::vector<double> out(d * d);
    if (!has_matrices(model.covariance)) {
        for (size_t j = 0; j < d; j++) {
            out[j * d + j] = std::sqrt(double(model.variance(c, j)));
        }
        return out;
    }
    const float* factor = precision_factor(model, c);
    std::vector<double> transposed(d * d);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = i; j < d; j++) {
            transposed[j * d + i] = factor[i * d + j];
        }
    }
    invert_lower(d, transposed.data(), out.data()); // L = U^-T
    return out;
}

/// x with U^T x = the x before.
static void solve_transposed(size_t d, const float* factor, double* x) {
    for (size_t i = 0; i < d; i++) {
        x[i] /= factor[i * d + i];
        for (size_t j = i + 1; j < d; j++) {
            x[j] -= factor[i * d + j] * x[i];
        }
    }
}

void times_factor(const GaussianMixture& model, size_t c, double* z) {
    if (has_matrices(model.covariance)) {
        solve_transposed(model.d, precision_factor(model, c), z);
        return;
    }
    for (size_t j = 0; j < model.d; j++) {
        z[j] *= std::sqrt(double(model.variance(c, j)));
    }
}

std::vector<double> covariance_matrix(const GaussianMixture& model, size_t c) {
    const size_t d = model.d;
    std::vector<double> out(d * d);
    const std::vector<double> factor = covariance_factor(model, c);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = 0;
            for (size_t l = 0; l <= j; l++) {
                sum += factor[i * d + l] * factor[j * d + l];
            }
            out[i * d + j] = out[j * d + i] = sum;
        }
    }
    return out;
}

std::vector<double> component_variances(
        const GaussianMixture& model, size_t c) {
    const size_t d = model.d;
    std::vector<double> out(d);
    if (!has_matrices(model.covariance)) {
        for (size_t j = 0; j < d; j++) {
            out[j] = model.variance(c, j);
        }
        return out;
    }
    const std::vector<double> factor = covariance_factor(model, c);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            out[i] += factor[i * d + j] * factor[i * d + j];
        }
    }
    return out;
}

std::vector<double> mean_variances(const GaussianMixture& model) {
    const size_t k = model.k, d = model.d;
    std::vector<double> out(k);
    const auto fill = [&](size_t c) {
        const std::vector<double> own = component_variances(model, c);
        out[c] = std::accumulate(own.begin(), own.end(), 0.0) / double(d);
    };
    if (model.covariance == Covariance::tied) {
        fill(0);
        std::fill(out.begin(), out.end(), out[0]);
    } else {
        parallel_for(k, fill, worth_threads(double(k) * d * d * d));
    }
    return out;
}

static double norm(const std::vector<double>& x) {
    return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

VarianceRange variance_range(const GaussianMixture& model) {
    const size_t d = model.d;
    VarianceRange out = {HUGE_VAL, 0};
    for (float variance : model.variances) {
        out.least = std::min(out.least, double(variance));
        out.largest = std::max(out.largest, double(variance));
    }
    std::vector<double> x(d);
    for (size_t at = 0; at < model.precisions_cholesky.size(); at += d * d) {
        const float* factor = model.precisions_cholesky.data() + at;
        for (size_t i = 0; i < d; i++) {
            double precision = 0;
            for (size_t j = i; j < d; j++) {
                precision += double(factor[i * d + j]) * factor[i * d + j];
            }
            out.least = std::min(out.least, 1 / precision);
            x[i] = 1 + 0.5 * std::sin(double(i));
        }
        for (int iteration = 0; iteration < 3; iteration++) {
            const double before = norm(x);
            for (size_t i = d; i-- > 0;) { // U y = x
                for (size_t j = i + 1; j < d; j++) {
                    x[i] -= factor[i * d + j] * x[j];
                }
                x[i] /= factor[i * d + i];
            }
            solve_transposed(d, factor, x.data());
            const double after = norm(x);
            out.largest = std::max(out.largest, after / before);
            for (double& value : x) {
                value /= after;
            }
        }
    }
    return out;
}

double log_determinant(size_t d, const float* precision_cholesky) {
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        sum += std::log(double(precision_cholesky[j * d + j]));
    }
    return -2 * sum;
}

namespace {

struct MatrixFit {
    const SufficientStats& stats;
    const std::vector<double>& floor_shape;
    double reg_covar;
    double min_count;
    const GaussianMixture& model;

    bool alive(size_t c) const {
        return stats.n_k[c] >= min_count && stats.n_k[c] > 0;
    }

    /// Adds the lower triangle of what moves the moments of component c from
    /// the origin to its mean.
    void centre(size_t c, double* out) const {
        const size_t d = stats.d;
        const float* mean = model.means.data() + c * d;
        const double* sum = stats.sum_x.data() + c * d;
        const double n = stats.n_k[c];
        for (size_t i = 0; i < d; i++) {
            const double mu = mean[i], rest = n * mu - sum[i];
            for (size_t j = 0; j <= i; j++) {
                out[i * d + j] += rest * mean[j] - mu * sum[j];
            }
        }
    }

    void finish(double* scatter, double n, double floor, size_t c, float* out)
            const {
        const size_t d = stats.d;
        for (size_t i = 0; i < d; i++) {
            for (size_t j = 0; j <= i; j++) {
                scatter[i * d + j] /= n;
            }
            scatter[i * d + i] = std::max(scatter[i * d + i], 0.0) +
                    floor * (floor_shape.empty() ? 1 : floor_shape[i]) +
                    reg_covar;
        }
        if (!precision_cholesky(d, scatter, out)) {
            throw_invalid(
                    "variance_floor + reg_covar = %g (in units of the data's "
                    "spread): the covariance matrix of component %zu is not "
                    "positive definite, expected a larger value",
                    floor + reg_covar,
                    c);
        }
    }
};

} // namespace

void fit_matrices(
        const SufficientStats& stats,
        const std::vector<double>& floors,
        const std::vector<double>& floor_shape,
        double reg_covar,
        double min_count,
        GaussianMixture& model) {
    const size_t d = stats.d, each = d * (d + 1) / 2;
    const bool tied = stats.covariance == Covariance::tied;
    const MatrixFit fit{stats, floor_shape, reg_covar, min_count, model};
    std::vector<float> factors = model.precisions_cholesky;
    auto unpack = [&](size_t c, double* out) {
        const double* packed =
                stats.sum_x2.data() + (tied ? stats.k : c * each);
        for (size_t i = 0; i < d; i++) {
            std::copy_n(packed + i * (i + 1) / 2, i + 1, out + i * d);
        }
    };
    if (tied) {
        std::vector<double> scatter(d * d);
        unpack(0, scatter.data());
        double n = 0;
        for (size_t c = 0; c < stats.k; c++) {
            // Dead ones too: their vectors are in the sum.
            fit.centre(c, scatter.data());
            n += stats.n_k[c];
        }
        if (n > 0) {
            fit.finish(
                    scatter.data(),
                    n,
                    weighted_median(floors, stats.n_k),
                    0,
                    factors.data());
        }
    } else {
        const auto fit_one = [&](size_t c) {
            if (!fit.alive(c)) {
                return;
            }
            std::vector<double> scatter(d * d);
            unpack(c, scatter.data());
            fit.centre(c, scatter.data());
            fit.finish(
                    scatter.data(),
                    stats.n_k[c],
                    floors[c],
                    c,
                    factors.data() + c * d * d);
        };
        parallel_for(
                stats.k, fit_one, worth_threads(double(stats.k) * d * d * d));
    }
    model.precisions_cholesky = std::move(factors);
}

} // namespace gmm
