#pragma once

#include "CudaProblem.h"
#include "FullCovariance.h"

/** Problems of full and tied covariances, their statistics in double and the
 * comparison with these. */
namespace cuda_test {

/// Clusters with matrices of their own (or one for all). ratio: of a matrix's
/// smallest axis to its largest.
inline Problem make_full_problem(
        size_t n,
        size_t d,
        size_t k,
        Covariance covariance,
        double ratio = 0.3,
        double apart = 0.9,
        unsigned seed = 1) {
    Problem p = make_problem(n, d, k, Covariance::isotropic, 1, seed);
    p.covariance = covariance;
    GaussianMixture& m = p.model;
    m.covariance = covariance;
    m.variances.clear();
    std::mt19937 random(seed + 7);
    std::normal_distribution<float> normal;
    for (float& v : m.means) {
        v *= float(apart / 0.9);
    }
    m.precisions_cholesky.assign(num_factors(covariance, k, d), 0);
    const size_t matrices = m.precisions_cholesky.size() / (d * d);
    for (size_t c = 0; c < matrices; c++) {
        // A diagonal of wide and narrow axes, and some of each in the others.
        float* const u = m.precisions_cholesky.data() + c * d * d;
        for (size_t j = 0; j < d; j++) {
            const double deviation = d == 1
                    ? 0.5
                    : 0.6 * std::pow(ratio, double((j * 7 + c) % d) / (d - 1));
            u[j * d + j] = float(1 / deviation);
            for (size_t i = 0; i < j; i++) {
                u[i * d + j] = 0.3f * normal(random) * u[j * d + j] /
                        std::sqrt(float(d));
            }
        }
    }
    std::vector<float> z(d);
    for (size_t c = 0; c < k; c++) {
        const std::vector<double> factor = covariance_factor(m, c);
        for (size_t i = c; i < n; i += k) {
            for (float& v : z) {
                v = normal(random);
            }
            for (size_t j = 0; j < d; j++) {
                double y = m.means[c * d + j];
                for (size_t l = 0; l <= j; l++) {
                    y += factor[j * d + l] * z[l];
                }
                place(p, i, j, float(y));
            }
        }
    }
    return p;
}

/// In double.
inline SufficientStats full_reference(
        const Problem& p, EStep step, const float* weights = nullptr) {
    SufficientStats s(p.covariance, p.k, p.d);
    const size_t d = p.d, triangle = d * (d + 1) / 2;
    const bool tied = p.covariance == Covariance::tied;
    std::vector<double> joint(p.n * p.k);
    p.model.log_joint(p.n, p.y.data(), joint.data());
    for (size_t i = 0; i < p.n; i++) {
        const float* const y = p.y.data() + i * d;
        double* const l = joint.data() + i * p.k;
        const double w = weights ? weights[i] : 1.;
        s.weight += w;
        for (size_t c = 0; step == EStep::hard && c < p.k; c++) {
            l[c] = 0;
            for (size_t j = 0; j < d; j++) {
                const double t = double(y[j]) - p.model.means[c * d + j];
                l[c] -= t * t;
            }
        }
        const size_t best = std::max_element(l, l + p.k) - l;
        const double top = l[best];
        double z = 0;
        for (size_t c = 0; c < p.k; c++) {
            z += std::exp(l[c] - top);
        }
        s.objective += w * (step == EStep::hard ? top : top + std::log(z));
        for (size_t c = 0; c < p.k; c++) {
            const double r = w *
                    (step == EStep::hard ? double(c == best)
                                         : std::exp(l[c] - top) / z);
            if (r == 0) {
                continue;
            }
            s.n_k[c] += r;
            for (size_t j = 0; j < d; j++) {
                s.sum_x[c * d + j] += r * y[j];
            }
            double* out = s.sum_x2.data() + (tied ? p.k : c * triangle);
            for (size_t j = 0; j < d; j++) {
                for (size_t m = 0; m <= j; m++) {
                    *out++ += r * y[j] * double(y[m]);
                }
                if (tied) {
                    s.sum_x2[c] += r * y[j] * double(y[j]);
                }
            }
        }
    }
    return s;
}

inline void expect_alike(
        const SufficientStats& found,
        const SufficientStats& expected,
        double near,
        double objective) {
    ASSERT_EQ(found.sum_x2.size(), expected.sum_x2.size());
    EXPECT_NEAR(found.weight, expected.weight, 1e-6 * expected.weight);
    EXPECT_NEAR(
            found.objective, expected.objective, objective * expected.weight);
    double n_k = 0, sum_x = 0, sum_x2 = 0;
    const size_t d = expected.d, k = expected.k;
    const size_t per = expected.sum_x2.size() / k;
    for (size_t c = 0; c < k; c++) {
        const double n = expected.n_k[c] + 1;
        n_k = std::max(n_k, std::fabs(found.n_k[c] - expected.n_k[c]) / n);
        for (size_t j = c * d; j < (c + 1) * d; j++) {
            sum_x = std::max(
                    sum_x, std::fabs(found.sum_x[j] - expected.sum_x[j]) / n);
        }
    }
    const bool tied = expected.covariance == Covariance::tied;
    for (size_t i = 0; i < expected.sum_x2.size(); i++) {
        const double n = tied
                ? (i < k ? (expected.n_k[i] + 1) * d : expected.weight)
                : expected.n_k[i / per] + 1;
        sum_x2 = std::max(
                sum_x2, std::fabs(found.sum_x2[i] - expected.sum_x2[i]) / n);
    }
    EXPECT_LE(n_k, near);
    EXPECT_LE(sum_x, 3 * near);
    EXPECT_LE(sum_x2, 9 * near);
}

} // namespace cuda_test
