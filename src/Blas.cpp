#include "Blas.h"

#include <mutex>

extern "C" {
void sgemm_(
        const char* transa,
        const char* transb,
        const int* m,
        const int* n,
        const int* k,
        const float* alpha,
        const float* a,
        const int* lda,
        const float* b,
        const int* ldb,
        const float* beta,
        float* c,
        const int* ldc);
void dgemm_(
        const char* transa,
        const char* transb,
        const int* m,
        const int* n,
        const int* k,
        const double* alpha,
        const double* a,
        const int* lda,
        const double* b,
        const int* ldb,
        const double* beta,
        double* c,
        const int* ldc);
void dsyrk_(
        const char* uplo,
        const char* trans,
        const int* n,
        const int* k,
        const double* alpha,
        const double* a,
        const int* lda,
        const double* beta,
        double* c,
        const int* ldc);
// Absent from every other BLAS.
__attribute__((weak)) void openblas_set_num_threads(int);
__attribute__((weak)) int openblas_get_num_threads();
__attribute__((weak)) int openblas_get_parallel();
}

namespace gmm {

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
        size_t ldc) {
    const int sizes[] = {int(m), int(n), int(k), int(lda), int(ldb), int(ldc)};
    const float one = 1, zero = 0;
    sgemm_(transpose_a,
           "N",
           &sizes[0],
           &sizes[1],
           &sizes[2],
           &one,
           a,
           &sizes[3],
           b,
           &sizes[4],
           &zero,
           c,
           &sizes[5]);
}

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
        size_t ldc) {
    const int sizes[] = {int(m), int(n), int(k), int(lda), int(ldb), int(ldc)};
    const double one = 1;
    dgemm_("N",
           "N",
           &sizes[0],
           &sizes[1],
           &sizes[2],
           &one,
           a,
           &sizes[3],
           b,
           &sizes[4],
           &beta,
           c,
           &sizes[5]);
}

void add_outer_products(size_t n, size_t d, const double* a, double* c) {
    const int rows = int(n), columns = int(d);
    const double one = 1;
    // The row-major lower triangle is column-major the upper one.
    dsyrk_("U", "N", &columns, &rows, &one, a, &columns, &one, c, &columns);
}

/// Whether OpenBLAS has threads of its own. One that uses OpenMP's has none in
/// a parallel region, and its setting is OpenMP's: not ours to change.
static bool has_own_threads() {
    constexpr int kOpenMP = 2;
    return openblas_set_num_threads && openblas_get_num_threads &&
            !(openblas_get_parallel && openblas_get_parallel() == kOpenMP);
}

static std::mutex guard_mutex;
static int guards = 0;
static int threads_before = 1;

SerialBlas::SerialBlas() {
    if (has_own_threads()) {
        std::lock_guard<std::mutex> lock(guard_mutex);
        if (guards++ == 0) {
            threads_before = openblas_get_num_threads();
            openblas_set_num_threads(1);
        }
    }
}

SerialBlas::~SerialBlas() {
    if (has_own_threads()) {
        std::lock_guard<std::mutex> lock(guard_mutex);
        if (--guards == 0) {
            openblas_set_num_threads(threads_before);
        }
    }
}

} // namespace gmm
