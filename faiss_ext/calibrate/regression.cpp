#include "faiss_ext/calibrate/regression.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace faiss_ext {

namespace {

/// Solves A w = b for a symmetric positive definite A (row-major), in place.
void solve_spd(size_t n, std::vector<double>& A, std::vector<double>& b) {
    for (size_t i = 0; i < n; i++) { // Cholesky
        for (size_t j = 0; j <= i; j++) {
            double s = A[i * n + j];
            for (size_t l = 0; l < j; l++) {
                s -= A[i * n + l] * A[j * n + l];
            }
            A[i * n + j] =
                    i == j ? std::sqrt(std::max(s, 1e-300)) : s / A[j * n + j];
        }
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t l = 0; l < i; l++) {
            b[i] -= A[i * n + l] * b[l];
        }
        b[i] /= A[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t l = i + 1; l < n; l++) {
            b[i] -= A[l * n + i] * b[l];
        }
        b[i] /= A[i * n + i];
    }
}

} // namespace

void fit_linear(
        size_t n,
        size_t width,
        const float* rows,
        const float* target,
        float* w) {
    std::vector<double> A(width * width), b(width);
    for (size_t i = 0; i < n; i++) {
        const float* r = rows + i * width;
        for (size_t p = 0; p < width; p++) {
            b[p] += double(r[p]) * target[i];
            for (size_t q = 0; q < width; q++) {
                A[p * width + q] += double(r[p]) * r[q];
            }
        }
    }
    for (size_t p = 0; p < width; p++) {
        A[p * width + p] += 1e-6 * (A[p * width + p] + 1);
    }
    solve_spd(width, A, b);
    std::copy(b.begin(), b.end(), w);
}

void fit_logistic(
        size_t n,
        size_t width,
        const float* rows,
        const float* target,
        float* w) {
    std::fill(w, w + width, 0.0f);
    const double ridge = 1e-4 * n + 1e-3;
    for (int step = 0; step < 25; step++) {
        std::vector<double> H(width * width), g(width);
        for (size_t i = 0; i < n; i++) {
            const float* r = rows + i * width;
            double logit = 0;
            for (size_t p = 0; p < width; p++) {
                logit += double(w[p]) * r[p];
            }
            const double y = 1 / (1 + std::exp(-logit));
            for (size_t p = 0; p < width; p++) {
                g[p] += (target[i] - y) * r[p];
                for (size_t q = 0; q < width; q++) {
                    H[p * width + q] += y * (1 - y) * r[p] * r[q];
                }
            }
        }
        for (size_t p = 0; p < width; p++) {
            g[p] -= ridge * w[p];
            H[p * width + p] += ridge;
        }
        solve_spd(width, H, g);
        double change = 0, norm = 0;
        for (size_t p = 0; p < width; p++) {
            change += g[p] * g[p];
        }
        // Newton can overshoot where classes are nearly separable
        const double scale = std::min(1.0, 4.0 / std::sqrt(change + 1e-30));
        for (size_t p = 0; p < width; p++) {
            w[p] += float(scale * g[p]);
            norm += double(w[p]) * w[p];
        }
        if (change < 1e-10 * (norm + 1)) {
            break;
        }
    }
}

} // namespace faiss_ext
