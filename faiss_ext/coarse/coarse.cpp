#include "faiss_ext/coarse/coarse.h"

#include <algorithm>
#include <vector>

#include <faiss/IndexHNSW.h>
#include <faiss/utils/distances.h>

#include "InnerProducts.h"
#include "ParallelFor.h"
#include "faiss_ext/PairCells.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {

namespace {

/// Fewer vectors are not worth the packing of the means; from so many on FAISS
/// computes |x|^2 - 2 x.m + |m|^2, which rounds relative to the norms.
constexpr size_t kPackedFrom = 20;
/// Vectors that a thread compares with the means at once.
constexpr size_t kBlock = 64;

const faiss::IndexFlat* behind_graph(const faiss::Index& quantizer) {
    auto hnsw = dynamic_cast<const faiss::IndexHNSWFlat*>(&quantizer);
    return hnsw ? dynamic_cast<const faiss::IndexFlat*>(hnsw->storage)
                : nullptr;
}

} // namespace

const faiss::IndexFlat* hnsw_of(const faiss::IndexIVF& ivf) {
    return behind_graph(*ivf.quantizer);
}

const float* means_in_memory(const faiss::Index& quantizer) {
    auto flat = dynamic_cast<const faiss::IndexFlat*>(&quantizer);
    flat = flat ? flat : behind_graph(quantizer);
    return flat ? flat->get_xb() : nullptr;
}

const float* means_in_memory(const faiss::IndexIVF& ivf) {
    return means_in_memory(*ivf.quantizer);
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

namespace {

bool has_packed_means(const faiss::Index& quantizer, size_t n) {
    return n >= kPackedFrom && means_in_memory(quantizer) &&
            dynamic_cast<const faiss::IndexFlat*>(&quantizer);
}

/** |x - m|^2 = |x|^2 - 2 (x.m - |m|^2 / 2), about the centre of the means: the
 * rounding is relative to their spread.
 *
 * The cell of x is that of the least |x - m_l|^2 = (1 - a) |x - mu_i|^2 + a
 * (|x - mu_j|^2 - (1 - a) |mu_i - mu_j|^2), by the same products; for inner
 * products that of its direction.
 */
struct NearestPacked {
    const gmm::PackedMeans& packed;
    const float* centre;
    const float* half_norms; ///< of the means, or zeros for inner products
    size_t n;
    const float* x;
    idx_t* lists;
    // what more is wanted, or nullptr
    const PairCells* cells = nullptr;
    const float* half_norms_of_cells = nullptr;
    KnownCells* known = nullptr;
    // of a worker
    std::vector<float> block = {}, products = {}, norms = {};
    std::vector<CellCodes::About> about = {};
    float norm2 = 0;

    void operator()(size_t b) {
        const CodeKernels& kernels = best_code_kernels();
        const size_t begin = b * kBlock, rows = std::min(kBlock, n - begin);
        const size_t d = packed.d, k = packed.k;
        block.resize(rows * d);
        products.resize(rows * k);
        subtract(rows, d, x + begin * d, centre, block.data());
        gmm::inner_products(packed, rows, block.data(), products.data(), k);
        for (size_t i = 0; i < rows; i++) {
            lists[begin + i] =
                    kernels.largest_difference(k, &products[i * k], half_norms);
        }
        if (cells) {
            find_cells(begin, rows);
        }
    }

    void find_cells(size_t begin, size_t rows) {
        const size_t d = packed.d, k = packed.k;
        const bool directions = cells->codes.similarity;
        about.resize(rows);
        norms.resize(rows);
        if (directions) {
            norm2 = std::max(
                    norm2, to_directions(rows, d, block.data(), norms.data()));
        }
        for (size_t i = 0; i < rows; i++) {
            const size_t list = lists[begin + i];
            const float a = cells->a[list];
            const int32_t* const partners = cells->partners(list);
            const size_t cell = !(a > 0)
                    ? 0 // they are alike
                    : best_code_kernels().nearest_cell(
                              cells->cells_per_list,
                              &products[i * k],
                              norms[i] > 0 ? 1 / norms[i] : 1,
                              half_norms_of_cells,
                              partners,
                              cells->gaps(list),
                              0.5f * (1 - a));
            known->cell[begin + i] = uint16_t(cell);
            about[i] = {list, size_t(partners[cell]), a};
        }
        const CellCodes& codes = cells->codes;
        codes.encode_centred(
                rows,
                block.data(),
                directions ? norms.data() : nullptr,
                about.data(),
                &known->records[begin * codes.shape.entry_bytes()]);
    }

    void run() const {
        gmm::parallel_workers(
                (n + kBlock - 1) / kBlock,
                n > kBlock,
                [&] { return *this; },
                [&](const NearestPacked& worker) {
                    if (known) {
                        known->norm2 = std::max(known->norm2, worker.norm2);
                    }
                });
    }
};

} // namespace

void nearest_lists(
        const faiss::Index& quantizer, size_t n, const float* x, idx_t* lists) {
    if (!has_packed_means(quantizer, n)) {
        quantizer.assign(n, x, lists);
        return;
    }
    const float* means = means_in_memory(quantizer);
    const size_t d = quantizer.d, nlist = quantizer.ntotal;
    const bool l2 = quantizer.metric_type != faiss::METRIC_INNER_PRODUCT;
    std::vector<float> centre(d), half_norms(nlist);
    if (l2) {
        centre = centre_of_means(nlist, d, means);
    }
    const std::vector<float> centred = about(nlist, d, means, centre);
    if (l2) {
        faiss::fvec_norms_L2sqr(half_norms.data(), centred.data(), d, nlist);
        for (float& h : half_norms) {
            h *= 0.5f;
        }
    }
    const gmm::PackedMeans packed(nlist, d, centred.data());
    const NearestPacked nearest{
            packed, centre.data(), half_norms.data(), n, x, lists};
    nearest.run();
}

void nearest_lists(
        const faiss::IndexIVF& ivf,
        const PairCells& cells,
        size_t n,
        const float* x,
        idx_t* lists,
        KnownCells& known) {
    known = {};
    const CellCodes& codes = cells.codes;
    const bool ip = ivf.quantizer->metric_type == faiss::METRIC_INNER_PRODUCT;
    if (codes.empty() || codes.similarity != ip ||
        !has_packed_means(*ivf.quantizer, n)) {
        return nearest_lists(*ivf.quantizer, n, x, lists);
    }
    std::vector<float> half_norms = codes.mean_norms;
    for (float& h : half_norms) {
        h *= 0.5f;
    }
    NearestPacked nearest{
            *codes.packed_means,
            codes.centre.data(),
            half_norms.data(),
            n,
            x,
            lists};
    std::vector<float> half_norms_of_ip; // whose lists are not chosen by norms
    if (!cells.empty()) {
        known.cell.resize(n);
        known.records.resize(n * codes.shape.entry_bytes());
        nearest.half_norms_of_cells = half_norms.data();
        if (ip) {
            const size_t d = ivf.d, nlist = half_norms.size();
            const float* means = means_in_memory(ivf);
            half_norms_of_ip.resize(nlist);
            for (size_t i = 0; i < nlist; i++) {
                const float* mean = means + i * d;
                half_norms_of_ip[i] =
                        0.5f * best_code_kernels().inner_product(mean, mean, d);
            }
            nearest.half_norms_of_cells = half_norms_of_ip.data();
        }
        nearest.cells = &cells;
        nearest.known = &known;
    }
    nearest.run();
}

} // namespace faiss_ext
