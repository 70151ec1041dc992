#include "faiss_ext/impl/errors.h"

#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdint>

namespace faiss_ext {

namespace {

/// Squared distances between vectors of at most this squared norm are finite.
constexpr float kMaxNorm2 = 1e37f;

} // namespace

void check_finite(const char* argument, size_t n, size_t d, const float* x) {
    // Squares are summed, so that a row is checked without branches.
    std::atomic<int64_t> first_bad{-1};
#pragma omp parallel for if (n * d > 100000)
    for (int64_t i = 0; i < static_cast<int64_t>(n); i++) {
        const float* row = x + i * d;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < d; j++) {
            sum += row[j] * row[j];
        }
        if (sum <= kMaxNorm2) {
            continue;
        }
        int64_t seen = first_bad.load();
        while ((seen < 0 || i < seen) &&
               !first_bad.compare_exchange_weak(seen, i)) {
        }
    }
    const int64_t i = first_bad.load();
    if (i < 0) {
        return;
    }
    const float* row = x + i * d;
    size_t j = 0;
    while (j < d && std::isfinite(row[j])) {
        j++;
    }
    FAISS_THROW_IF_NOT_FMT(
            j < d,
            "%s: row %" PRId64
            " has a squared norm above %g: its distances "
            "may overflow",
            argument,
            i,
            kMaxNorm2);
    FAISS_THROW_FMT(
            "%s: row %" PRId64
            " has the value %g in dimension %zu, "
            "expected finite values",
            argument,
            i,
            row[j],
            j);
}

} // namespace faiss_ext
