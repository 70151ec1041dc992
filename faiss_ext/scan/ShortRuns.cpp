#include "faiss_ext/scan/ShortRuns.h"

#include <cstring>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

namespace {

/// Runs below this length are taken.
constexpr size_t kFlatRun = 8;
constexpr size_t kPQRun = 24;

} // namespace

ShortRuns::ShortRuns(const faiss::IndexIVF& ivf)
        : d(ivf.d), flat(dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)),
          pq(dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
    if (pq) {
        means = means_in_memory(ivf);
        // polysemous codes are filtered before they are compared
        if (pq->polysemous_ht != 0 || (pq->by_residual && !means)) {
            pq = nullptr;
        }
    }
    if (flat || pq) {
        vectors_index.d = ivf.d;
        vectors_index.metric_type = ivf.metric_type;
        vectors_index.code_size = d * sizeof(float);
        scanner.reset(make_scanner(vectors_index, false, nullptr, nullptr));
    }
}

bool ShortRuns::take(
        size_t list, size_t n, const uint8_t* codes, const idx_t* code_ids) {
    if (n >= (flat ? kFlatRun : pq ? kPQRun : 0)) {
        return false;
    }
    float* x = vectors.grow(n * d);
    if (flat) {
        memcpy(x, codes, n * d * sizeof(float));
    } else {
        for (size_t j = 0; j < n; j++) {
            pq->pq.decode(codes + j * pq->code_size, x + j * d);
            for (size_t l = 0; pq->by_residual && l < d; l++) {
                x[j * d + l] += means[list * d + l];
            }
        }
    }
    ids.insert(ids.end(), code_ids, code_ids + n);
    return true;
}

} // namespace faiss_ext
