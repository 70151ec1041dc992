#include "faiss_ext/impl/errors.h"

#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdint>

#include <faiss/invlists/OnDiskInvertedLists.h>
#include <faiss/utils/distances.h>

namespace faiss_ext {

void check_count(const char* argument, int64_t n) {
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "%s = %" PRId64 ", expected at least 0", argument, n);
}

void check_finite(const char* argument, size_t n, size_t d, const float* x) {
    // v * 0 is 0 for finite values and NaN for all others, so that a row is
    // checked by a sum without branches.
    std::atomic<int64_t> first_bad{-1};
#pragma omp parallel for if (n * d > 100000)
    for (int64_t i = 0; i < static_cast<int64_t>(n); i++) {
        const float* row = x + i * d;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < d; j++) {
            sum += row[j] * 0.0f;
        }
        if (sum == 0) {
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
    while (std::isfinite(row[j])) {
        j++;
    }
    FAISS_THROW_FMT(
            "%s: row %" PRId64
            " has the value %g in dimension %zu, "
            "expected finite values",
            argument,
            i,
            row[j],
            j);
}

void check_storable(const char* argument, size_t n, size_t d, const float* x) {
    check_finite(argument, n, d, x);
    constexpr float kMaxNorm2 = 1e37f;
    for (size_t i = 0; i < n; i++) {
        const float norm2 = faiss::fvec_norm_L2sqr(x + i * d, d);
        FAISS_THROW_IF_NOT_FMT(
                norm2 <= kMaxNorm2,
                "%s: row %zu has the squared norm %g, expected at most %g",
                argument,
                i,
                norm2,
                kMaxNorm2);
    }
}

void check_metric(faiss::MetricType metric) {
    FAISS_THROW_IF_NOT_FMT(
            metric == faiss::METRIC_L2 || metric == faiss::METRIC_INNER_PRODUCT,
            "metric = %d, expected METRIC_L2 or METRIC_INNER_PRODUCT",
            int(metric));
}

void check_writable(const faiss::IndexIVF& index) {
    const auto* disk =
            dynamic_cast<const faiss::OnDiskInvertedLists*>(index.invlists);
    FAISS_THROW_IF_NOT_MSG(
            !disk || !disk->read_only,
            "the inverted lists are mapped read-only; an index that is to "
            "change must be read without IO_FLAG_MMAP");
}

} // namespace faiss_ext
