#include "GaussianMixture.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "Error.h"
#include "FullCovariance.h"
#include "ParallelFor.h"

namespace gmm {

const char* to_string(Covariance covariance) {
    switch (covariance) {
        case Covariance::isotropic:
            return "isotropic";
        case Covariance::diagonal:
            return "diagonal";
        case Covariance::tied_spherical:
            return "tied_spherical";
        case Covariance::full:
            return "full";
        case Covariance::tied:
            return "tied";
    }
    throw_invalid("covariance = %d, expected 0 to 4", int(covariance));
}

bool has_matrices(Covariance covariance) {
    return covariance == Covariance::full || covariance == Covariance::tied;
}

bool is_tied(Covariance covariance) {
    return covariance == Covariance::tied_spherical ||
            covariance == Covariance::tied;
}

void check_covariance(Covariance covariance) {
    if (int(covariance) < 0 || covariance > Covariance::tied) {
        throw_invalid(
                "covariance = %d, expected a value of the enumeration, 0 to %d",
                int(covariance),
                int(Covariance::tied));
    }
}

size_t num_variances(Covariance covariance, size_t k, size_t d) {
    switch (covariance) {
        case Covariance::isotropic:
            return k;
        case Covariance::diagonal:
            return k * d;
        case Covariance::tied_spherical:
            return 1;
        case Covariance::full:
        case Covariance::tied:
            break;
    }
    return 0;
}

size_t num_factors(Covariance covariance, size_t k, size_t d) {
    return covariance == Covariance::full    ? k * d * d
            : covariance == Covariance::tied ? d * d
                                             : 0;
}

float GaussianMixture::variance(size_t c, size_t j) const {
    switch (covariance) {
        case Covariance::isotropic:
            return variances[c];
        case Covariance::diagonal:
            return variances[c * d + j];
        case Covariance::tied_spherical:
            return variances[0];
        case Covariance::full:
        case Covariance::tied:
            break;
    }
    return component_variances(*this, c)[j];
}

static bool all_finite(const std::vector<float>& values) {
    const int64_t n = int64_t(values.size());
    int64_t others = 0;
#pragma omp parallel for reduction(+ : others) if (n > 1000000)
    for (int64_t i = 0; i < n; i++) {
        others += !std::isfinite(values[i]);
    }
    return others == 0;
}

static void check_size(
        const char* name,
        const std::vector<float>& values,
        size_t expected_size) {
    if (values.size() != expected_size) {
        throw_invalid(
                "%s.size() = %zu, expected %zu",
                name,
                values.size(),
                expected_size);
    }
}

static void check_sizes(const GaussianMixture& m) {
    check_covariance(m.covariance);
    if (m.d == 0) {
        throw_invalid("d = 0, expected at least 1");
    }
    if (m.k == 0) {
        throw_invalid("k = 0, expected at least 1");
    }
    check_size("means", m.means, m.k * m.d);
    check_size("variances", m.variances, num_variances(m.covariance, m.k, m.d));
    check_size("log_weights", m.log_weights, m.k);
    check_size(
            "precisions_cholesky",
            m.precisions_cholesky,
            num_factors(m.covariance, m.k, m.d));
}

static void check_values(const char* name, const std::vector<float>& values) {
    if (all_finite(values)) {
        return;
    }
    for (size_t i = 0; i < values.size(); i++) {
        if (!std::isfinite(values[i])) {
            throw_invalid(
                    "%s[%zu] = %g, expected a finite value",
                    name,
                    i,
                    values[i]);
        }
    }
}

void GaussianMixture::validate() const {
    check_sizes(*this);
    check_values("means", means);
    check_values("variances", variances);
    check_values("log_weights", log_weights);
    for (size_t i = 0; i < variances.size(); i++) {
        if (!(variances[i] > 0)) {
            throw_invalid(
                    "variances[%zu] = %g, expected a positive value",
                    i,
                    variances[i]);
        }
    }
    check_values("precisions_cholesky", precisions_cholesky);
    const int64_t rows = int64_t(precisions_cholesky.size() / d);
    // The first bad element of each row, or the end: none.
    auto bad_in_row = [&](size_t row) {
        const float* const values = precisions_cholesky.data() + row * d;
        const size_t i = row % d;
        size_t j = 0;
        while (j < i && values[j] == 0) {
            j++;
        }
        return j == i && values[i] > 0 ? d : j;
    };
    bool good = true;
#pragma omp parallel for reduction(&& : good) if (rows > 10000)
    for (int64_t row = 0; row < rows; row++) {
        good = good && bad_in_row(row) == d;
    }
    for (int64_t row = 0; !good && row < rows; row++) {
        if (const size_t j = bad_in_row(row); j < d) {
            throw_invalid(
                    "precisions_cholesky[%zu] = %g, expected upper triangular "
                    "matrices with positive diagonals",
                    row * d + j,
                    precisions_cholesky[row * d + j]);
        }
    }
    double sum = 0;
    for (float log_weight : log_weights) {
        sum += std::exp(double(log_weight));
    }
    if (!(std::abs(sum - 1) <= 1e-3)) {
        throw_invalid(
                "log_weights: the weights sum to %g, expected 1 within 1e-3",
                sum);
    }
}

// |(x - mean)^T U|^2 of an upper triangular U.
static double mahalanobis_full(
        size_t d,
        const float* x,
        const float* mean,
        const float* factor,
        std::vector<double>& y) {
    y.assign(d, 0.0);
    for (size_t i = 0; i < d; i++) {
        const double diff = double(x[i]) - mean[i];
        for (size_t j = i; j < d; j++) {
            y[j] += diff * factor[i * d + j];
        }
    }
    double sum = 0;
    for (double v : y) {
        sum += v * v;
    }
    return sum;
}

void GaussianMixture::log_joint(size_t n, const float* x, double* out) const {
    check_sizes(*this);
    check_array("x", x, n);
    check_array("out", out, n);
    // Bishop, PRML, eq. 2.43.
    const bool matrices = has_matrices(covariance);
    std::vector<double> at_mean(k);
    for (size_t c = 0; c < k; c++) {
        double log_det = 0;
        if (matrices) {
            log_det = log_determinant(d, precision_factor(*this, c));
        }
        for (size_t j = 0; !matrices && j < d; j++) {
            log_det += std::log(double(variance(c, j)));
        }
        at_mean[c] = log_weights[c] -
                0.5 * (d * std::log(2 * std::numbers::pi) + log_det);
    }
    const auto of_row = [&](size_t i, std::vector<double>& y) {
        for (size_t c = 0; c < k; c++) {
            double mahalanobis = 0;
            if (matrices) {
                mahalanobis = mahalanobis_full(
                        d,
                        x + i * d,
                        means.data() + c * d,
                        precision_factor(*this, c),
                        y);
            }
            for (size_t j = 0; !matrices && j < d; j++) {
                const double diff = double(x[i * d + j]) - means[c * d + j];
                mahalanobis += diff * diff / variance(c, j);
            }
            out[i * k + c] = at_mean[c] - 0.5 * mahalanobis;
        }
    };
    parallel_workers(
            n,
            worth_threads(double(n) * k * d),
            [&] {
                return [&, y = std::vector<double>()](size_t i) mutable {
                    of_row(i, y);
                };
            },
            [](const auto&) {});
}

void GaussianMixture::log_prob(size_t n, const float* x, double* out) const {
    check_array("x", x, n);
    check_array("out", out, n);
    // A few rows at a time: never n x k.
    const size_t step = 256;
    std::vector<double> joint(std::min(step, n) * k);
    for (size_t begin = 0; begin < n; begin += step) {
        const size_t count = std::min(step, n - begin);
        log_joint(count, x + begin * d, joint.data());
        for (size_t i = 0; i < count; i++) {
            const double* row = joint.data() + i * k;
            const double largest = *std::max_element(row, row + k);
            double sum = 0;
            for (size_t c = 0; c < k; c++) {
                sum += std::exp(row[c] - largest);
            }
            out[begin + i] = largest + std::log(sum);
        }
    }
}

static void check_frame(const Frame& frame, const GaussianMixture& model) {
    if (frame.center.size() != model.d) {
        throw_invalid(
                "frame.center.size() = %zu, expected the model's d = %zu",
                frame.center.size(),
                model.d);
    }
    if (!(frame.scale > 0) || !std::isfinite(frame.scale)) {
        throw_invalid(
                "frame.scale = %g, expected a positive value", frame.scale);
    }
}

GaussianMixture Frame::to_frame(const GaussianMixture& model) const {
    check_frame(*this, model);
    GaussianMixture out = model;
    for (size_t i = 0; i < out.means.size(); i++) {
        out.means[i] = (double(out.means[i]) - center[i % model.d]) * scale;
    }
    for (float& variance : out.variances) {
        variance = double(variance) * scale * scale;
    }
    for (float& factor : out.precisions_cholesky) {
        factor = double(factor) / scale;
    }
    return out;
}

GaussianMixture Frame::to_user(const GaussianMixture& model) const {
    check_frame(*this, model);
    GaussianMixture out = model;
    for (size_t i = 0; i < out.means.size(); i++) {
        out.means[i] = double(out.means[i]) / scale + center[i % model.d];
    }
    for (float& variance : out.variances) {
        variance = double(variance) / scale / scale;
    }
    for (float& factor : out.precisions_cholesky) {
        factor = double(factor) * scale;
    }
    return out;
}

} // namespace gmm
