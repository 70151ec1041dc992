#include "faiss_ext/index_factory.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/VectorTransform.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"

#ifdef FAISS_EXT_HAS_FACTORY_TOOLS
#include <faiss/factory_tools.h>
#endif

namespace faiss_ext {

namespace {

/// GCC 12 warns of "PQ" + std::to_string(n), its bug 105329.
std::string numbered(const char* before, size_t n) {
    std::string out = before;
    out += std::to_string(n);
    return out;
}

std::string describe(const faiss::VectorTransform* transform) {
    const std::string d_out = std::to_string(transform->d_out);
    if (auto opq = dynamic_cast<const faiss::OPQMatrix*>(transform)) {
        return numbered("OPQ", opq->M) + "_" + d_out;
    }
    if (auto pca = dynamic_cast<const faiss::PCAMatrix*>(transform)) {
        return std::string("PCA") + (pca->eigen_power == -0.5f ? "W" : "") +
                (pca->random_rotation ? "R" : "") + d_out;
    }
    if (dynamic_cast<const faiss::ITQTransform*>(transform)) {
        return "ITQ" + d_out;
    }
    if (dynamic_cast<const faiss::RandomRotationMatrix*>(transform)) {
        return "RR" + d_out;
    }
    if (dynamic_cast<const faiss::NormalizationTransform*>(transform)) {
        return "L2norm";
    }
    return "";
}

std::string describe(const faiss::ScalarQuantizer& sq) {
    switch (sq.qtype) {
        case faiss::ScalarQuantizer::QT_8bit:
            return "SQ8";
        case faiss::ScalarQuantizer::QT_6bit:
            return "SQ6";
        case faiss::ScalarQuantizer::QT_4bit:
            return "SQ4";
        case faiss::ScalarQuantizer::QT_fp16:
            return "SQfp16";
        default:
            return "";
    }
}

std::string describe_code(const faiss::IndexIVF* ivf) {
    if (auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(ivf)) {
        return numbered("PQ", pq->pq.M) +
                (pq->pq.nbits == 8 ? "" : numbered("x", pq->pq.nbits)) +
                (pq->do_polysemous_training ? "" : "np");
    }
    if (auto fs = dynamic_cast<const faiss::IndexIVFPQFastScan*>(ivf)) {
        return numbered("PQ", fs->pq.M) + "x4fs" +
                (fs->by_residual ? "r" : "") +
                (fs->bbs == 32 ? "" : numbered("_", fs->bbs));
    }
    if (auto alone = dynamic_cast<const IndexIVFRaBitQGMM*>(ivf)) {
        return alone->code_bits == 1 ? "RaBitQ"
                                     : numbered("RaBitQ", alone->code_bits);
    }
    auto sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(ivf);
    if (const std::string name = sq ? describe(sq->sq) : ""; !name.empty()) {
        return name;
    }
    if (dynamic_cast<const faiss::IndexIVFFlatDedup*>(ivf)) {
        return "FlatDedup";
    }
    if (dynamic_cast<const faiss::IndexIVFFlat*>(ivf)) {
        return "Flat";
    }
#ifdef FAISS_EXT_HAS_FACTORY_TOOLS
    // "IVF16,Code", or empty
    const std::string stock = faiss::reverse_index_factory(ivf);
    const size_t comma = stock.find(',');
    return comma == std::string::npos ? "" : stock.substr(comma + 1);
#else
    return "";
#endif
}

std::string describe_gmm(
        size_t nlist, size_t cells_per_list, gmm::Covariance covariance) {
    std::string out = numbered("GMM", nlist);
    if (cells_per_list > 0) {
        out += numbered("x", cells_per_list);
    }
    if (covariance != gmm::Covariance::isotropic) {
        out += covariance == gmm::Covariance::tied_spherical ? "_Tied"
                                                             : "_Diag";
    }
    return out;
}

/// "GMM16" or "IVF16"; empty for coarse quantizers of other kinds.
std::string describe_coarse(const faiss::IndexIVF* ivf) {
    auto hnsw = dynamic_cast<const faiss::IndexHNSWFlat*>(ivf->quantizer);
    const std::string graph =
            hnsw ? numbered("_HNSW", hnsw->hnsw.nb_neighbors(1)) : "";
    if (auto gmm = dynamic_cast<const IVFGMM*>(ivf)) {
        return describe_gmm(ivf->nlist, gmm->cells_per_list, gmm->covariance) +
                graph;
    }
    if (auto gmm = dynamic_cast<const IndexGMM*>(ivf->quantizer)) {
        return describe_gmm(ivf->nlist, 0, gmm->covariance);
    }
    if (hnsw || dynamic_cast<const faiss::IndexFlat*>(ivf->quantizer)) {
        return numbered("IVF", ivf->nlist) + graph;
    }
    return "";
}

/// Empty if there is no string.
std::string describe(const faiss::Index* index) {
    auto wrap = [](const std::string& before,
                   const faiss::Index* inner,
                   const std::string& after) {
        const std::string middle = describe(inner);
        return before.empty() && after.empty() ? ""
                : middle.empty()               ? ""
                                               : before + middle + after;
    };
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
        std::string chain;
        for (const faiss::VectorTransform* transform : pre->chain) {
            const std::string name = describe(transform);
            if (name.empty()) {
                return "";
            }
            chain += name + ",";
        }
        return wrap(chain, pre->index, "");
    }
    if (auto map = dynamic_cast<const faiss::IndexIDMap2*>(index)) {
        return wrap("IDMap2,", map->index, "");
    }
    if (auto map = dynamic_cast<const faiss::IndexIDMap*>(index)) {
        return wrap("IDMap,", map->index, "");
    }
    if (auto refine = dynamic_cast<const faiss::IndexRefine*>(index)) {
        const std::string fine = describe(refine->refine_index);
        if (fine == "Flat") {
            return wrap("", refine->base_index, ",RFlat");
        }
        return fine.empty()
                ? ""
                : wrap("", refine->base_index, ",Refine(" + fine + ")");
    }
    if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(index)) {
        const std::string coarse = describe_coarse(ivf);
        const std::string code = describe_code(ivf);
        if (!coarse.empty()) {
            return code.empty() ? "" : coarse + "," + code;
        }
    }
    if (dynamic_cast<const IndexGMM*>(index)) {
        return ""; // a quantizer alone
    }
    if (dynamic_cast<const faiss::IndexFlat*>(index)) {
        return "Flat";
    }
    if (auto sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(index)) {
        return describe(sq->sq);
    }
#ifdef FAISS_EXT_HAS_FACTORY_TOOLS
    return faiss::reverse_index_factory(index);
#else
    return "";
#endif
}

} // namespace

std::string reverse_index_factory(const faiss::Index* index) {
    FAISS_THROW_IF_NOT_MSG(index, "reverse_index_factory: no index");
    return describe(index);
}

} // namespace faiss_ext
