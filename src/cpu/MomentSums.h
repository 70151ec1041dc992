#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "Blas.h"
#include "Kernels.h"

namespace gmm {

/// Adds sum_i r_i y_i y_i^T of some rows to a square matrix's lower triangle.
struct OuterProducts {
    static constexpr size_t kRows = 256;
    size_t d;
    std::vector<double>& rows;
    double* out;
    size_t n = 0;

    OuterProducts(size_t d, std::vector<double>& rows, double* out)
            : d(d), rows(rows), out(out) {
        rows.resize(kRows * d);
    }

    void add(double r, const float* y) {
        const double root = std::sqrt(r);
        double* row = rows.data() + n * d;
        for (size_t j = 0; j < d; j++) {
            row[j] = root * y[j];
        }
        if (++n == kRows) {
            flush();
        }
    }

    void flush() {
        if (n > 0) {
            add_outer_products(n, d, rows.data(), out);
        }
        n = 0;
    }
};

/** Sums of a component's rows of few dimensions. They are taken about the mean
 * of its first rows: the model's own can be so far away, where a component has
 * moved, that products of floats leave nothing of the variance. */
struct FewMoments {
    size_t d;
    std::vector<float> centre; ///< size d, after the first rows
    double total = 0;
    std::vector<double> first, second; ///< sizes d, d * d
    size_t n = 0;
    const float* rows[kMomentRows];
    float r[kMomentRows];

    explicit FewMoments(size_t d) : d(d), first(d), second(d * d) {}

    void add(float weight, const float* y) {
        rows[n] = y;
        r[n] = weight;
        total += weight;
        if (++n == kMomentRows) {
            flush();
        }
    }

    void flush() {
        if (n == 0) {
            return;
        }
        if (centre.empty()) {
            find_centre();
        }
        best_kernels().moments(
                n, d, rows, centre.data(), r, first.data(), second.data());
        n = 0;
    }

    /// Of one row, or of copies, it is that row.
    void find_centre() {
        centre.assign(rows[0], rows[0] + d);
        for (size_t i = 0; total > 0 && i < n; i++) {
            const float share = float(r[i] / total);
            for (size_t j = 0; j < d; j++) {
                centre[j] += share * (rows[i][j] - rows[0][j]);
            }
        }
    }

    /// Adds the sums about the origin, the second ones packed.
    void finish(double* n_k, double* sum_x, double* sum_x2) {
        flush();
        *n_k += total;
        for (size_t i = 0; i < d && !centre.empty(); i++) {
            sum_x[i] += total * centre[i] + first[i];
            for (size_t j = 0; j <= i; j++) {
                *sum_x2++ += second[i * d + j] + centre[i] * first[j] +
                        (total * centre[i] + first[i]) * centre[j];
            }
        }
    }
};

inline void add_packed(size_t d, const double* square, double* packed) {
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            *packed++ += square[i * d + j];
        }
    }
}

} // namespace gmm
