#include "parameters.h"

#include <algorithm>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFAdditiveQuantizer.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFSpectralHash.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>

namespace faiss_ext_python {

namespace {

faiss::SearchParameters*
of_ivf(Parameters& all, const faiss::IndexIVF& ivf, const SearchParameters& p) {
    auto set = [&](auto out) {
        // At most nlist: FAISS's fast scan takes memory for all that it says.
        out->nprobe = std::min(p.nprobe.value_or(ivf.nprobe), ivf.nlist);
        out->max_codes = p.max_codes.value_or(ivf.max_codes);
        return all.own(std::move(out));
    };
    auto gmm = dynamic_cast<const faiss_ext::IVFGMM*>(&ivf);
    FAISS_THROW_IF_NOT_MSG(
            gmm || (!p.probe_order && !p.probe_mass && !p.target_recall),
            "params: probe_order, probe_mass and target_recall are for a GMM "
            "index");
    if (!gmm) {
        if (auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
            auto out = set(std::make_unique<faiss::IVFPQSearchParameters>());
            out->scan_table_threshold = pq->scan_table_threshold;
            out->polysemous_ht = pq->polysemous_ht;
            return out;
        }
        return set(std::make_unique<faiss::SearchParametersIVF>());
    }
    auto out = set(std::make_unique<faiss_ext::SearchParametersIVFGMM>());
    out->probe_order = p.probe_order.value_or(gmm->probe_order);
    out->probe_mass = p.probe_mass.value_or(gmm->probe_mass);
    // Who names an order or a cost for a call does not mean the target.
    const bool by_hand = p.nprobe || p.probe_order || p.probe_mass;
    out->target_recall =
            p.target_recall.value_or(by_hand ? 0 : gmm->target_recall);
    return out;
}

} // namespace

faiss::SearchParameters* Parameters::make(
        const faiss::Index& index, const SearchParameters& p) {
    faiss::SearchParameters* out = nullptr;
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
        auto made = std::make_unique<faiss::SearchParametersPreTransform>();
        made->index_params = make(*pre->index, p);
        return own(std::move(made));
    }
    if (auto map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
        return make(*map->index, p);
    }
    if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
        FAISS_THROW_IF_NOT_MSG(
                !p.sel ||
                        !dynamic_cast<const faiss::IndexIVFAdditiveQuantizer*>(
                                ivf),
                "params: an index of an additive quantizer takes no sel");
        FAISS_THROW_IF_NOT_MSG(
                !p.sel ||
                        !dynamic_cast<const faiss::IndexIVFSpectralHash*>(ivf),
                "params: an index of spectral hashes (SH) takes no sel");
        FAISS_THROW_IF_NOT_MSG(
                !p.sel || !dynamic_cast<const faiss::IndexIVFFlatDedup*>(ivf),
                "params: an index of FlatDedup takes no sel: FAISS asks it for "
                "one id of those of equal vectors, and finds all or none");
        out = of_ivf(*this, *ivf, p);
    } else {
        FAISS_THROW_IF_NOT_MSG(
                !dynamic_cast<const faiss::IndexRefine*>(&index),
                "params: an index with RFlat or Refine takes none, expected "
                "its own fields to be set (nprobe, target_recall)");
        FAISS_THROW_IF_NOT_MSG(
                !p.nprobe && !p.max_codes && !p.probe_order && !p.probe_mass &&
                        !p.target_recall,
                "params: only sel is for an index without lists");
        out = own(std::make_unique<faiss::SearchParameters>());
    }
    out->sel = p.sel ? p.sel->selector.get() : nullptr;
    return out;
}

} // namespace faiss_ext_python
