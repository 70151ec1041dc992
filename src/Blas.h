#pragma once

#include <cstddef>

namespace gmm {

/// c = a b, column-major: a is m x k ("T": its transpose is given),
/// b is k x n, c is m x n.
void sgemm(
        const char* transpose_a,
        size_t m,
        size_t n,
        size_t k,
        const float* a,
        size_t lda,
        const float* b,
        size_t ldb,
        float* c,
        size_t ldc);

/// c = a b + beta c in double, with a as it stands.
void dgemm(
        size_t m,
        size_t n,
        size_t k,
        const double* a,
        size_t lda,
        const double* b,
        size_t ldb,
        double beta,
        double* c,
        size_t ldc);

/// c += a^T a for a row-major n x d matrix a: the lower triangle of the
/// row-major c, size d * d.
void add_outer_products(size_t n, size_t d, const double* a, double* c);

/** While one exists, OpenBLAS computes in the thread that calls it.
 *
 * Our own threads work on blocks of rows side by side; OpenBLAS's pool would
 * make them wait for each other. The setting is the process's own, so the last
 * guard to go restores it. Nothing changes where OpenBLAS uses OpenMP's
 * threads.
 */
struct SerialBlas {
    SerialBlas();
    ~SerialBlas();
    SerialBlas(const SerialBlas&) = delete;
};

} // namespace gmm
