#include "training.h"

#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFSpectralHash.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"

namespace faiss_ext_python {

void check_graph(const faiss::Index* index, const char* what, size_t n) {
    constexpr size_t kEvaluated = 100; // NNDescent's NUM_EVAL_POINTS
    auto graph = dynamic_cast<const faiss::IndexNSG*>(index);
    FAISS_THROW_IF_NOT_FMT(
            !graph || graph->build_type == 0 || graph->ntotal > 0 || n == 0 ||
                    n > kEvaluated,
            "%s: %zu vectors, expected more than %zu: NSG makes no graph of "
            "fewer",
            what,
            n,
            kEvaluated);
}

Untrained::Untrained(faiss::Index& index, size_t n) {
    // Before transforms take their time.
    faiss::Index* root = &index;
    faiss::Index* inner = *faiss_ext::unwrap(&root);
    auto ivf = dynamic_cast<faiss::IndexIVF*>(inner);
    FAISS_THROW_IF_NOT_FMT(
            !dynamic_cast<faiss_ext::IVFGMM*>(inner) || n >= ivf->nlist,
            "n = %zu, expected at least nlist = %zu",
            n,
            ivf->nlist);
    if (ivf) {
        check_graph(ivf->quantizer, "quantizer", ivf->nlist);
    }
    collect(index);
}

template <class T>
bool Untrained::keep(faiss::VectorTransform& transform) {
    auto it = dynamic_cast<T*>(&transform);
    if (it) {
        undo.push_back([it, before = *it] { *it = before; });
    }
    return it;
}

void Untrained::collect(faiss::VectorTransform& transform) {
    // Wholly: OPQ and ITQ go on from what there is, trained or not.
    const bool kept = transform.is_trained ||
            keep<faiss::PCAMatrix>(transform) ||
            keep<faiss::OPQMatrix>(transform) ||
            keep<faiss::ITQMatrix>(transform) ||
            keep<faiss::ITQTransform>(transform) ||
            keep<faiss::CenteringTransform>(transform);
    if (!kept) {
        undo.push_back([&transform] { transform.is_trained = false; });
    }
}

/// One that was trained by a call whose later part failed.
static void untrain(faiss::IndexIVF& ivf, faiss_ext::IVFGMM& gmm, bool own) {
    if (!own) {
        ivf.quantizer->reset();
    }
    ivf.is_trained = false;
    gmm.variances.clear();
    gmm.log_weights.clear();
    gmm.cells = faiss_ext::PairCells();
    gmm.calibration = faiss_ext::Calibration();
}

void Untrained::collect(faiss::Index& index) {
    if (!index.is_trained) {
        undo.push_back([&index] { index.is_trained = false; });
    }
    if (auto refine = dynamic_cast<faiss::IndexRefine*>(&index)) {
        collect(*refine->refine_index);
    }
    if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(&index)) {
        for (faiss::VectorTransform* transform : pre->chain) {
            collect(*transform);
        }
    }
    if (faiss::Index** inner = faiss_ext::inside(&index)) {
        return collect(**inner);
    }
    auto ivf = dynamic_cast<faiss::IndexIVF*>(&index);
    auto gmm = dynamic_cast<faiss_ext::IVFGMM*>(&index);
    if (gmm && !ivf->is_trained) {
        const bool own = ivf->quantizer->ntotal > 0; // centroids
        undo.push_back([ivf, gmm, own] { untrain(*ivf, *gmm, own); });
    }
    if (!ivf || gmm) {
        return;
    }
    if (auto hash = dynamic_cast<faiss::IndexIVFSpectralHash*>(ivf)) {
        collect(*hash->vt);
    }
    faiss::Index& quantizer = *ivf->quantizer;
    if (quantizer.ntotal > 0) {
        return;
    }
    collect(quantizer);
    if (quantizer.is_trained) { // but for its centroids
        undo.push_back([&quantizer] { quantizer.reset(); });
    } else { // is trained again; some cannot be reset
        undo.push_back([&quantizer] { quantizer.is_trained = false; });
    }
}

void Untrained::restore() {
    for (const auto& one : undo) {
        one();
    }
}

} // namespace faiss_ext_python
