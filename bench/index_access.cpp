#include "index_access.h"

#include <limits>
#include <vector>

#include <faiss/AutoTune.h>
#include <faiss/IVFlib.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/io.h>

#include "faiss_ext/GMMParameterSpace.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "report.h"

namespace bench {

namespace {

const faiss::IndexIVF* ivf_of(const faiss::Index& index) {
    if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
        return ivf_of(*refine->base_index);
    }
    return faiss::ivflib::try_extract_index_ivf(&index);
}

/// Counts the bytes and keeps none.
struct CountingWriter : faiss::IOWriter {
    size_t bytes = 0;

    size_t operator()(const void*, size_t size, size_t n) override {
        bytes += size * n;
        return n;
    }
};

/// Vectors as the IVF inside receives them; empty: as they are.
std::vector<float> into_ivf_space(
        const faiss::Index& index, size_t n, const float* x) {
    if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
        return into_ivf_space(*refine->base_index, n, x);
    }
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
        std::vector<float> xt(x, x + n * pre->d);
        for (const auto transform : pre->chain) {
            std::vector<float> next(n * transform->d_out);
            transform->apply_noalloc(n, xt.data(), next.data());
            xt = std::move(next);
        }
        return xt;
    }
    return {};
}

/// Distances that HNSW computed; FAISS before 1.8 calls them n3.
template <typename Stats>
size_t hnsw_distances(const Stats& stats) {
    if constexpr (requires { stats.n3; }) {
        return stats.n3;
    } else {
        return stats.ndis;
    }
}

} // namespace

std::unique_ptr<faiss::Index> build(
        const std::string& factory, int d, faiss::MetricType metric) {
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(d, factory.c_str(), metric));
    if (auto ivf = const_cast<faiss::IndexIVF*>(ivf_of(*index))) {
        ivf->cp.max_points_per_centroid = std::numeric_limits<int>::max();
    }
    return index;
}

void set_parameters(faiss::Index& index, const std::string& setting) {
    faiss_ext::GMMParameterSpace().set_index_parameters(
            &index, setting.c_str());
}

std::function<void()> remember_parameters(faiss::Index& index) {
    std::vector<std::function<void()>> restore;
    const auto remember = [&](auto& value) {
        restore.push_back([&value, old = value] { value = old; });
    };
    if (auto refine = dynamic_cast<faiss::IndexRefine*>(&index)) {
        remember(refine->k_factor);
    }
    if (auto hnsw = dynamic_cast<faiss::IndexHNSW*>(&index)) {
        remember(hnsw->hnsw.efSearch);
    }
    if (auto ivf = const_cast<faiss::IndexIVF*>(ivf_of(index))) {
        remember(ivf->nprobe);
        remember(ivf->max_codes);
        if (auto hnsw = dynamic_cast<faiss::IndexHNSW*>(ivf->quantizer)) {
            remember(hnsw->hnsw.efSearch);
        }
    }
    if (auto gmm = faiss_ext::extract_gmm(&index)) {
        remember(gmm->probe_order);
        remember(gmm->probe_mass);
        remember(gmm->target_recall);
    }
    return [restore] {
        for (const auto& one : restore) {
            one();
        }
    };
}

std::vector<std::string> nprobe_series(const faiss::Index& index) {
    std::vector<std::string> series;
    if (const auto ivf = ivf_of(index)) {
        for (const size_t nprobe : geometric(ivf->nlist)) {
            series.push_back(std::to_string(nprobe));
        }
    }
    return series;
}

double copies_per_vector(const faiss::Index& index) {
    const auto ivf = ivf_of(index);
    return ivf && ivf->ntotal
            ? double(ivf->invlists->compute_ntotal()) / ivf->ntotal
            : 1;
}

size_t serialized_bytes(const faiss::Index& index) {
    CountingWriter writer;
    faiss_ext::write_index(&index, &writer);
    return writer.bytes;
}

bool calibrate(faiss::Index& index, size_t nq, const float* xq, size_t k) {
    const auto gmm = faiss_ext::extract_gmm(&index);
    if (!gmm) {
        return false;
    }
    const auto inner = into_ivf_space(index, nq, xq);
    gmm->calibrate(nq, inner.empty() ? xq : inner.data(), k);
    return true;
}

void reset_counts() {
    faiss::indexIVF_stats.reset();
    faiss::hnsw_stats.reset();
    faiss_ext::ivf_gmm_stats.reset();
}

Counts counts_per_query(const faiss::Index& index, size_t nq, size_t k) {
    Counts counts;
    if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
        counts.refine = double(size_t(k * refine->k_factor));
    }
    const double graph = double(hnsw_distances(faiss::hnsw_stats)) / nq;
    const auto ivf = ivf_of(index);
    if (!ivf) {
        // An exact index computes all of them, a graph counts its own.
        counts.distances = dynamic_cast<const faiss::IndexHNSW*>(&index)
                ? graph
                : double(index.ntotal);
        return counts;
    }
    counts.distances = double(faiss::indexIVF_stats.ndis) / nq;
    counts.coarse = dynamic_cast<const faiss::IndexHNSW*>(ivf->quantizer)
            ? graph
            : double(ivf->nlist);
    counts.scores = double(faiss_ext::ivf_gmm_stats.n_cell_scores) / nq;
    counts.codes = double(faiss_ext::ivf_gmm_stats.n_codes) / nq;
    return counts;
}

} // namespace bench
