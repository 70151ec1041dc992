#include <faiss/IndexHNSW.h>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/check_parts.h"

namespace faiss_ext {

void check_header(const faiss::Index& index) {
    check_bool("is_trained", index.is_trained);
    check_range("d", index.d, 1, INT64_C(1) << 24);
    check_range("ntotal", index.ntotal, 0, INT64_C(1) << 48);
    check_range("metric", number_of(index.metric_type), 0, 2);
}

void check_flat(
        const char* what, const faiss::IndexFlat& flat, size_t d, size_t n) {
    check_equal("d of the vectors", flat.d, d);
    check_equal("number of the vectors", flat.ntotal, n);
    check_equal("bytes of the vectors", flat.codes.size(), n * d * 4);
    check_storable(what, n, d, flat.get_xb()); // distances do not overflow
}

namespace {

void check_graph(const faiss::HNSW& graph, size_t n) {
    const auto& per_level = graph.cum_nneighbor_per_level;
    check_range("efSearch", graph.efSearch, 1, INT64_C(1) << 31);
    check_range("efConstruction", graph.efConstruction, 1, INT64_C(1) << 31);
    check_range("levels of HNSW", per_level.size(), 2, 256);
    check_equal("first neighbor of HNSW", per_level[0], 0);
    for (size_t l = 1; l < per_level.size(); l++) {
        check_range(
                "neighbors per level of HNSW",
                per_level[l],
                INT64_C(1) + per_level[l - 1],
                1 << 24);
    }
    check_equal("number of levels", graph.levels.size(), n);
    check_equal("number of offsets", graph.offsets.size(), n + 1);
    check_equal("first offset", graph.offsets[0], 0);
    for (size_t i = 0; i < n; i++) {
        check_range("level of a node", graph.levels[i], 1, per_level.size());
        check_equal(
                "links of a node",
                graph.offsets[i + 1] - graph.offsets[i],
                per_level[graph.levels[i]]);
    }
    check_equal("number of links", graph.neighbors.size(), graph.offsets[n]);
    for (size_t i = 0; i < n; i++) {
        for (int l = 0; l < graph.levels[i]; l++) {
            for (int k = per_level[l]; k < per_level[l + 1]; k++) {
                const int to = graph.neighbors[graph.offsets[i] + k];
                check_range("a link", to, -1, n);
                // a search goes on from there on the same level
                FAISS_THROW_IF_NOT_FMT(
                        to < 0 || graph.levels[to] > l,
                        "the index does not fit together: a link of level %d "
                        "leads to a node of %d levels",
                        l,
                        graph.levels[to]);
            }
        }
    }
    if (n == 0) {
        check_equal("entry point", graph.entry_point, -1);
        return;
    }
    check_range("entry point", graph.entry_point, 0, n);
    check_equal(
            "level of the entry point",
            graph.levels[graph.entry_point],
            graph.max_level + 1);
    for (int level : graph.levels) {
        check_range("level of a node", level, 1, graph.max_level + 2);
    }
}

} // namespace

void check_quantizer(const faiss::IndexIVF& ivf) {
    FAISS_THROW_IF_NOT_MSG(ivf.quantizer, "the index has no quantizer");
    const faiss::Index& quantizer = *ivf.quantizer;
    check_header(quantizer);
    check_equal("d of the quantizer", quantizer.d, ivf.d);
    check_equal(
            "metric of the quantizer", quantizer.metric_type, ivf.metric_type);
    const size_t n = quantizer.ntotal;
    if (ivf.is_trained || n > 0) {
        check_equal("number of means in the quantizer", n, ivf.nlist);
    }
    if (auto flat = dynamic_cast<const faiss::IndexFlat*>(&quantizer)) {
        check_flat("means of the quantizer", *flat, ivf.d, n);
        return;
    }
    auto hnsw = dynamic_cast<const faiss::IndexHNSWFlat*>(&quantizer);
    auto flat = hnsw ? dynamic_cast<const faiss::IndexFlat*>(hnsw->storage)
                     : nullptr;
    FAISS_THROW_IF_NOT_MSG(
            flat,
            "the quantizer is neither an IndexFlat nor an IndexHNSWFlat over "
            "an IndexFlat");
    check_equal(
            "metric of the quantizer's vectors",
            flat->metric_type,
            ivf.metric_type);
    check_flat("means of the quantizer", *flat, ivf.d, n);
    check_graph(hnsw->hnsw, n);
}

} // namespace faiss_ext
