#include "faiss_ext/ivflib.h"

#include <algorithm>
#include <cinttypes>
#include <numeric>
#include <vector>

#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/impl/ThreadedIndex.h>
#include <faiss/impl/io.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/GpuGMMClustering.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// Vectors that are decoded and added at once.
constexpr size_t kBlock = 32768;

size_t count_entries(const faiss::IndexIVF& ivf) {
    size_t n = 0;
    for (size_t i = 0; i < ivf.nlist; i++) {
        n += ivf.invlists->list_size(i);
    }
    return n;
}

/// At most that many vectors, evenly drawn from all lists.
std::vector<float> sample(const faiss::IndexIVF& ivf, size_t most) {
    const size_t d = ivf.d;
    const size_t n = count_entries(ivf);
    const size_t wanted = std::min(n, most);
    std::vector<float> out, list;
    out.reserve(wanted * d);
    size_t seen = 0;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t size = ivf.invlists->list_size(i);
        decode_list(ivf, i, list);
        for (size_t j = 0; j < size; j++, seen++) {
            // Entry `seen` is taken if the scaled count steps there.
            if ((seen + 1) * wanted / n > seen * wanted / n) {
                out.insert(
                        out.end(),
                        list.begin() + j * d,
                        list.begin() + (j + 1) * d);
            }
        }
    }
    return out;
}

/// All vectors with their ids, in blocks of whole lists.
void add_all(const faiss::IndexIVF& from, faiss::IndexIVF& to) {
    std::vector<float> x, list;
    std::vector<idx_t> ids;
    auto flush = [&] {
        if (!ids.empty()) {
            to.add_with_ids(ids.size(), x.data(), ids.data());
        }
        x.clear();
        ids.clear();
    };
    for (size_t i = 0; i < from.nlist; i++) {
        const size_t size = from.invlists->list_size(i);
        decode_list(from, i, list);
        x.insert(x.end(), list.begin(), list.begin() + size * from.d);
        faiss::InvertedLists::ScopedIds list_ids(from.invlists, i);
        for (size_t j = 0; j < size; j++) {
            ids.push_back(list_ids[j]);
        }
        if (ids.size() >= kBlock) {
            flush();
        }
    }
    flush();
}

} // namespace

std::unique_ptr<faiss::IndexIVF> swap_to_gmm(
        const faiss::IndexIVF& index, gmm::Covariance covariance) {
    check_metric(index.metric_type);
    FAISS_THROW_IF_NOT_MSG(
            index.is_trained && index.quantizer &&
                    size_t(index.quantizer->ntotal) == index.nlist,
            "swap_to_gmm: the index is not trained");
    FAISS_THROW_IF_NOT_FMT(
            index.ntotal >= idx_t(index.nlist),
            "swap_to_gmm: ntotal = %" PRId64
            ", expected at least nlist = %zu vectors to fit the mixture to",
            index.ntotal,
            index.nlist);
    std::unique_ptr<faiss::IndexIVF> out = copy_settings_as_gmm(index);
    FAISS_THROW_IF_NOT_MSG(
            out,
            "swap_to_gmm: expected an IndexIVFFlat, IndexIVFPQ or "
            "IndexIVFScalarQuantizer of FAISS's own");
    auto& part = dynamic_cast<IVFGMM&>(*out);

    FAISS_THROW_IF_NOT_FMT(
            !gmm::has_matrices(covariance),
            "swap_to_gmm: covariance = %s, expected isotropic, diagonal or "
            "tied_spherical",
            gmm::to_string(covariance));
    GpuGMMClustering clustering(index.d, index.nlist, index.cp);
    clustering.covariance = covariance;
    clustering.centroids = quantizer_means(index);
    clustering.hard_niter = 0; // the centroids are k-means' already
    clustering.verbose |= index.verbose;
    std::vector<float> x =
            sample(index, index.nlist * index.cp.max_points_per_centroid);
    if (index.metric_type == faiss::METRIC_INNER_PRODUCT) {
        // the mixture lives on the unit sphere
        faiss::fvec_renorm_L2(index.d, x.size() / index.d, x.data());
    }
    std::unique_ptr<faiss::Index> means = empty_quantizer(index);
    clustering.train(x.size() / index.d, x.data(), *means);

    out->quantizer = means.release();
    out->own_fields = true;
    part.covariance = covariance;
    part.variances = clustering.variances;
    part.log_weights = clustering.log_weights;
    part.backend = clustering.backend;
    out->replace_invlists(
            new faiss::ArrayInvertedLists(out->nlist, out->code_size), true);
    if (auto pq = dynamic_cast<faiss::IndexIVFPQ*>(out.get())) {
        pq->precompute_table();
    }

    // Cells and calibration once, at the end, and not with each doubling.
    part.cells_per_list = 1;
    part.calibrate_on_add = false;
    add_all(index, *out);
    part.cells_per_list = 0;
    part.calibrate_on_add = true;
    part.optimize();
    out->set_direct_map_type(index.direct_map.type);
    return out;
}

void calibrate(faiss::Index* index, size_t nq, const float* xq, size_t k) {
    const size_t gmms = extract_gmms(index).size();
    FAISS_THROW_IF_NOT_MSG(
            gmms > 0 && gmms == innermost(index).size(),
            "calibrate: the index holds no GMM index, or parts without one");
    check_rows("calibrate: xq", nq, index->d, xq);
    std::vector<float> x(xq, xq + nq * index->d);
    for (faiss::Index** inner; (inner = inside(index)); index = *inner) {
        if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(index)) {
            const float* y = pre->apply_chain(nq, x.data());
            if (y != x.data()) { // it is if the chain is empty
                const std::unique_ptr<const float[]> owner(y);
                x.assign(y, y + nq * (*inner)->d);
            }
        }
    }
    if (auto gmm = dynamic_cast<IVFGMM*>(index)) {
        return gmm->calibrate(nq, x.data(), k);
    }
    auto& parts = dynamic_cast<faiss::ThreadedIndex<faiss::Index>&>(*index);
    for (int i = 0; i < parts.count(); i++) {
        calibrate(parts.at(i), nq, x.data(), k);
    }
}

std::unique_ptr<faiss::Index> clone_index(const faiss::Index* index) {
    faiss::VectorIOWriter writer;
    write_index(index, &writer);
    faiss::VectorIOReader reader;
    reader.data = std::move(writer.data);
    return std::unique_ptr<faiss::Index>(
            read_index(static_cast<faiss::IOReader*>(&reader)));
}

IVFGMM* extract_gmm(faiss::Index* index) {
    return index ? dynamic_cast<IVFGMM*>(*unwrap(&index)) : nullptr;
}

const IVFGMM* extract_gmm(const faiss::Index* index) {
    return index ? dynamic_cast<const IVFGMM*>(unwrap(index)) : nullptr;
}

std::vector<IVFGMM*> extract_gmms(faiss::Index* index) {
    std::vector<IVFGMM*> out;
    for (faiss::Index* part :
         index ? innermost(index) : std::vector<faiss::Index*>()) {
        if (IVFGMM* gmm = dynamic_cast<IVFGMM*>(part)) {
            out.push_back(gmm);
        }
    }
    return out;
}

} // namespace faiss_ext
