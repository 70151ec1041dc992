#include "faiss_ext/coarse/coarse.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <omp.h>

#include <faiss/IndexHNSW.h>
#include <faiss/utils/distances.h>

#include "cpu/Blas.h"
#include "faiss_ext/impl/simd.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// From so many queries on, a matrix product beats plain dot products.
constexpr size_t kGemmQueries = 8;

FAISS_EXT_SIMD_CLONES
void inner_products(
        const float* __restrict q,
        const float* __restrict means,
        size_t d,
        size_t n,
        float* __restrict out) {
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < d; j++) {
            sum += q[j] * means[i * d + j];
        }
        out[i] = sum;
    }
}

FAISS_EXT_SIMD_CLONES
void squared_distances(
        const float* __restrict q,
        const float* __restrict means,
        size_t d,
        size_t n,
        float* __restrict out) {
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < d; j++) {
            const float t = q[j] - means[i * d + j];
            sum += t * t;
        }
        out[i] = sum;
    }
}

/// Vectors that a thread compares with the means at a time; FAISS takes as many
/// at most.
size_t block_of(size_t n) {
    return std::min<size_t>(n / size_t(omp_get_max_threads()) + 1, 4096);
}

} // namespace

const faiss::IndexFlat* hnsw_of(const faiss::IndexIVF& ivf) {
    auto hnsw = dynamic_cast<const faiss::IndexHNSWFlat*>(ivf.quantizer);
    return hnsw ? dynamic_cast<const faiss::IndexFlat*>(hnsw->storage)
                : nullptr;
}

const float* means_in_memory(const faiss::IndexIVF& ivf) {
    auto flat = dynamic_cast<const faiss::IndexFlat*>(ivf.quantizer);
    flat = flat ? flat : hnsw_of(ivf);
    return flat ? flat->get_xb() : nullptr;
}

std::unique_ptr<faiss::Index> empty_quantizer(const faiss::IndexIVF& ivf) {
    auto old = dynamic_cast<const faiss::IndexHNSWFlat*>(ivf.quantizer);
    if (!old) {
        return std::make_unique<faiss::IndexFlat>(ivf.d, ivf.metric_type);
    }
    auto out = std::make_unique<faiss::IndexHNSWFlat>(
            ivf.d, old->hnsw.nb_neighbors(1), ivf.metric_type);
    out->hnsw.efConstruction = old->hnsw.efConstruction;
    out->hnsw.efSearch = old->hnsw.efSearch;
    return out;
}

void nearest_lists(
        const faiss::IndexIVF& ivf, size_t n, const float* x, idx_t* lists) {
    // A small block is all packing of the means.
    const size_t block = std::max<size_t>(256, block_of(n));
    if (n <= block || !dynamic_cast<const faiss::IndexFlat*>(ivf.quantizer)) {
        ivf.quantizer->assign(n, x, lists);
        return;
    }
    const gmm::SerialBlas serial_blas;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n; i += block) {
        ivf.quantizer->assign(std::min(block, n - i), x + i * ivf.d, lists + i);
    }
}

void coarse_distances(
        const faiss::IndexIVF& ivf, size_t n, const float* x, float* out) {
    const size_t d = ivf.d, nlist = ivf.nlist;
    std::vector<float> copied;
    const float* means = means_in_memory(ivf);
    if (!means) {
        copied = quantizer_means(ivf);
        means = copied.data();
    }
    if (n < kGemmQueries && !is_ip(ivf)) {
        for (size_t i = 0; i < n; i++) {
            squared_distances(x + i * d, means, d, nlist, out + i * nlist);
        }
        return;
    }
    std::vector<float> norms;
    if (!is_ip(ivf)) {
        norms.resize(nlist);
        faiss::fvec_norms_L2sqr(norms.data(), means, d, nlist);
    }
    const size_t block = std::max(kGemmQueries, block_of(n));
    std::optional<gmm::SerialBlas> serial_blas;
    if (n >= kGemmQueries) { // it locks: not for single queries
        serial_blas.emplace();
    }
#pragma omp parallel for if (n * nlist > 65536)
    for (size_t b = 0; b < n; b += block) {
        const size_t end = std::min(n, b + block), nb = end - b;
        if (nb >= kGemmQueries) {
            const float* const xb = x + b * d;
            float* const ob = out + b * nlist;
            gmm::sgemm("T", nlist, nb, d, means, d, xb, d, 0, ob, nlist);
        } else {
            for (size_t i = b; i < end; i++) {
                inner_products(x + i * d, means, d, nlist, out + i * nlist);
            }
        }
        for (size_t i = b; i < end; i++) {
            const float qq = faiss::fvec_norm_L2sqr(x + i * d, d);
            const float scale = qq > 0 ? 2 / std::sqrt(qq) : 0;
            float* o = out + i * nlist;
            for (size_t j = 0; j < nlist; j++) {
                o[j] = std::max(
                        norms.empty() ? 2 - scale * o[j]
                                      : qq + norms[j] - 2 * o[j],
                        0.0f);
            }
        }
    }
}

} // namespace faiss_ext
