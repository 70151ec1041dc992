#include "faiss_ext/impl/errors.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <limits>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/invlists/BlockInvertedLists.h>
#include <faiss/invlists/OnDiskInvertedLists.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {

/// Of vectors that are stored.
static constexpr float kMaxNorm2 = 1e37f;

std::string without_place(const std::string& message) {
    const std::string failed = "' failed: ";
    if (const size_t at = message.find(failed); at != std::string::npos) {
        return message.substr(at + failed.size());
    }
    if (message.rfind("Error in ", 0) == 0) {
        // behind "file.cpp:123: "
        const size_t at = message.find(": ", message.find(" at "));
        return at == std::string::npos ? message : message.substr(at + 2);
    }
    return message;
}

void check_count(const char* argument, int64_t n) {
    FAISS_THROW_IF_NOT_FMT(
            n >= 0, "%s = %" PRId64 ", expected at least 0", argument, n);
}

void check_rows(const char* argument, int64_t n, size_t d, const void* rows) {
    constexpr size_t kMost = size_t(1) << 45; // 128 TB: a process's addresses
    FAISS_THROW_IF_NOT_FMT(
            n >= 0 && size_t(n) <= kMost / std::max<size_t>(d, 1),
            "%s: n = %" PRId64 " rows of %zu values, expected 0 to %zu rows",
            argument,
            n,
            d,
            kMost / std::max<size_t>(d, 1));
    FAISS_THROW_IF_NOT_FMT(
            n == 0 || d == 0 || rows,
            "%s = nullptr, expected n = %" PRId64 " rows of %zu values",
            argument,
            n,
            d);
}

void check_finite(const char* argument, size_t n, size_t d, const float* x) {
    check_rows(argument, n, d, x);
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
    std::atomic<bool> all_are = true;
    const CodeKernels& kernels = best_code_kernels();
#pragma omp parallel for if (n * d > 100000)
    for (size_t i = 0; i < n; i++) {
        const float* row = x + i * d;
        // not so for a NaN either
        if (!(kernels.inner_product(row, row, d) <= kMaxNorm2)) {
            all_are = false;
        }
    }
    if (all_are) {
        return;
    }
    check_finite(argument, n, d, x);
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

void check_storable(
        const gmm::VectorSource& source,
        size_t begin,
        size_t n,
        const float* x) {
    const size_t d = source.d;
    for (size_t i = 0; i < n; i++) {
        const float norm2 = faiss::fvec_norm_L2sqr(x + i * d, d);
        FAISS_THROW_IF_NOT_FMT(
                norm2 <= kMaxNorm2, // not so for a NaN either
                "source: row %zu has the squared norm %g, expected finite "
                "values and at most %g",
                source.given_row(begin + i),
                norm2,
                kMaxNorm2);
    }
}

void check_interrupt() {
    FAISS_THROW_IF_NOT_MSG(
            !faiss::InterruptCallback::is_interrupted(),
            "computation interrupted");
}

void check_metric(faiss::MetricType metric) {
    FAISS_THROW_IF_NOT_FMT(
            metric == faiss::METRIC_L2 || metric == faiss::METRIC_INNER_PRODUCT,
            "metric = %d, expected METRIC_L2 or METRIC_INNER_PRODUCT",
            int(metric));
}

static void check_lists(const faiss::IndexIVF& index) {
    FAISS_THROW_IF_NOT_MSG(
            index.invlists, "invlists = nullptr, expected inverted lists");
    FAISS_THROW_IF_NOT_FMT(
            index.invlists->nlist >= index.nlist,
            "invlists: %zu lists, expected one for each of nlist = %zu",
            index.invlists->nlist,
            index.nlist);
}

void check_neighbours(int64_t k) {
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && k <= std::numeric_limits<int64_t>::max() / 16,
            "k = %zd, expected at least 1, and what memory can hold",
            ssize_t(k));
}

void check_shares(float probe_mass, float target_recall) {
    FAISS_THROW_IF_NOT_FMT(
            probe_mass > 0 && probe_mass <= 1,
            "probe_mass = %g, expected in (0, 1]",
            probe_mass);
    FAISS_THROW_IF_NOT_FMT(
            target_recall >= 0 && target_recall < 1,
            "target_recall = %g, expected in [0, 1); for 1 set nprobe = nlist",
            target_recall);
}

void check_trained(const faiss::IndexIVF& index) {
    FAISS_THROW_IF_NOT_MSG(index.is_trained, "the index is not trained");
    const size_t means = index.quantizer ? size_t(index.quantizer->ntotal) : 0;
    FAISS_THROW_IF_NOT_FMT(
            means == index.nlist,
            "quantizer: %zu means, expected one for each of nlist = %zu",
            means,
            index.nlist);
    check_lists(index);
}

bool is_writable(const faiss::IndexIVF& index) {
    const auto* disk =
            dynamic_cast<const faiss::OnDiskInvertedLists*>(index.invlists);
    return (!disk || !disk->read_only) &&
            !dynamic_cast<const faiss::ReadOnlyInvertedLists*>(index.invlists);
}

void check_writable(const faiss::IndexIVF& index) {
    check_lists(index);
    FAISS_THROW_IF_NOT_MSG(
            !dynamic_cast<const faiss::ReadOnlyInvertedLists*>(index.invlists),
            "the inverted lists are of a read-only kind (stacks, slices or "
            "masks of others); an index that is to change needs its own");
    FAISS_THROW_IF_NOT_MSG(
            !dynamic_cast<const faiss::BlockInvertedLists*>(index.invlists),
            "the inverted lists are BlockInvertedLists, expected "
            "ArrayInvertedLists or OnDiskInvertedLists: entries move one by "
            "one");
    FAISS_THROW_IF_NOT_MSG(
            is_writable(index),
            "the inverted lists are mapped read-only; an index that is to "
            "change must be read without IO_FLAG_MMAP");
}

namespace {

/// FAISS's lists in memory can be views of a mapped file since 1.11.
template <class Lists>
bool is_view(const Lists& lists, size_t list) {
    if constexpr (requires { lists.codes[list].is_owned; }) {
        return !lists.codes[list].is_owned || !lists.ids[list].is_owned;
    } else {
        return false;
    }
}

} // namespace

void check_writable(const faiss::IndexIVF& index, size_t list) {
    const auto* memory =
            dynamic_cast<const faiss::ArrayInvertedLists*>(index.invlists);
    FAISS_THROW_IF_NOT_FMT(
            !memory || !is_view(*memory, list),
            "inverted list %zu is mapped; an index that is to change must be "
            "read without IO_FLAG_MMAP_IFC",
            list);
}

} // namespace faiss_ext
