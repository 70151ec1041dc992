#include "faiss_ext/impl/check_calls.h"

#include <algorithm>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

void check_ids(const char* argument, idx_t n, size_t k, const idx_t* ids) {
    // In values of four bytes.
    check_rows(argument, n, k * (sizeof(idx_t) / sizeof(float)), ids);
}

void check_labels(idx_t n, idx_t k, const idx_t* labels) {
    check_neighbours(k);
    check_ids("labels", n, k, labels);
}

void check_answers(
        idx_t n, idx_t k, const float* distances, const idx_t* labels) {
    check_neighbours(k);
    check_rows("distances", n, k, distances);
    check_labels(n, k, labels);
}

void check_bytes(
        const char* argument, idx_t n, size_t size, const uint8_t* bytes) {
    check_rows(argument, n, (size + 3) / 4, bytes);
}

void check_lists_of_codes(
        const faiss::IndexIVF& index, idx_t n, const uint8_t* bytes) {
    const size_t coarse = index.coarse_code_size();
    const size_t size = coarse + index.code_size;
    for (size_t i = 0; i < size_t(n); i++) {
        size_t list = 0; // little-endian
        for (size_t j = coarse; j > 0; j--) {
            list = list << 8 | bytes[i * size + j - 1];
        }
        // FAISS throws in a parallel region, which ends the process.
        FAISS_THROW_IF_NOT_FMT(
                list < index.nlist,
                "bytes: code %zu is of list %zu, expected below nlist = %zu",
                i,
                list,
                index.nlist);
    }
}

void check_result(idx_t n, const faiss::RangeSearchResult* result) {
    FAISS_THROW_IF_NOT_MSG(result, "result = nullptr, expected a result");
    FAISS_THROW_IF_NOT_FMT(
            result->nq == size_t(n),
            "result->nq = %zu, expected n = %zu",
            result->nq,
            size_t(n));
    // FAISS throws in a parallel region, which ends the process.
    FAISS_THROW_IF_NOT_MSG(
            !result->labels && !result->distances,
            "result: it holds those of another search, expected an empty one");
}

void check_search(
        const faiss::IndexIVF& index,
        idx_t n,
        const float* x,
        idx_t k,
        const float* distances,
        const idx_t* labels) {
    check_rows("x", n, index.d, x);
    FAISS_THROW_IF_NOT_MSG(
            (index.parallel_mode & index.PARALLEL_MODE_NO_HEAP_INIT) == 0,
            "parallel_mode: PARALLEL_MODE_NO_HEAP_INIT, expected none in a "
            "search, which begins its heaps; search_preassigned takes it");
    check_answers(n, k, distances, labels);
}

void check_preassigned(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const char* call,
        idx_t n,
        const float* x,
        const idx_t* assign,
        const float* centroid_dis,
        const faiss::IVFSearchParameters* params) {
    FAISS_THROW_IF_NOT_FMT(
            has_vectors(ivf),
            "%s: codes about the means of cells want the distances to all "
            "means; use search() or range_search()",
            call);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == 1,
            "%s: max_assign = %zu, expected 1: copies would be found twice",
            call,
            gmm.max_assign);
    if (auto own = dynamic_cast<const SearchParametersIVFGMM*>(params)) {
        FAISS_THROW_IF_NOT_FMT(
                own->target_recall == 0,
                "%s: target_recall = %g, expected 0 where lists are given",
                call,
                own->target_recall);
    }
    const size_t nprobe =
            std::min<size_t>(params ? params->nprobe : ivf.nprobe, ivf.nlist);
    check_rows("x", n, ivf.d, x);
    check_ids("assign", n, nprobe, assign);
    check_rows("centroid_dis", n, nprobe, centroid_dis);
    // FAISS throws in a parallel region, which ends the process.
    const size_t n_lists = size_t(n) * nprobe;
    for (size_t i = 0; i < n_lists; i++) {
        FAISS_THROW_IF_NOT_FMT(
                assign[i] < idx_t(ivf.nlist),
                "%s: assign[%zu] = %zd, expected below nlist = %zu",
                call,
                i,
                ssize_t(assign[i]),
                ivf.nlist);
    }
}

} // namespace faiss_ext
