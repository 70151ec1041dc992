#include "faiss_ext/rank/SearchPlan.h"

#include <algorithm>
#include <cmath>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/rank/SketchRanker.h"
#include "faiss_ext/store/copies.h"

namespace faiss_ext {

double cost_factor(ProbeOrder order, size_t d) {
    if (order != ProbeOrder::sketch) {
        return 1;
    }
    return 1 +
            double(SketchRanker::kPoolFactor) *
            (Calibration::kSketchScoreCost + Calibration::kCellScoreCost) / d;
}

SearchPlan make_plan(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        size_t k) {
    FAISS_THROW_IF_NOT_MSG(ivf.is_trained, "the index is not trained");
    check_max_assign(ivf, gmm);
    SearchParametersIVFGMM p;
    p.nprobe = ivf.nprobe;
    p.max_codes = ivf.max_codes;
    p.probe_order = gmm.probe_order;
    p.probe_mass = gmm.probe_mass;
    p.target_recall = gmm.target_recall;
    bool nprobe_given = false; // by who says nothing about the target
    if (params) {
        auto base = dynamic_cast<const faiss::SearchParametersIVF*>(params);
        FAISS_THROW_IF_NOT_MSG(
                base,
                "params: expected SearchParametersIVF or "
                "SearchParametersIVFGMM");
        p.nprobe = base->nprobe;
        p.max_codes = base->max_codes;
        p.sel = base->sel;
        p.quantizer_params = base->quantizer_params;
        if (auto own = dynamic_cast<const SearchParametersIVFGMM*>(params)) {
            p.probe_order = own->probe_order;
            p.probe_mass = own->probe_mass;
            p.target_recall = own->target_recall;
        } else {
            nprobe_given = true;
        }
    }
    FAISS_THROW_IF_NOT_FMT(
            p.nprobe > 0, "nprobe = %zu, expected > 0", size_t(p.nprobe));
    FAISS_THROW_IF_NOT_FMT(
            p.probe_mass > 0 && p.probe_mass <= 1,
            "probe_mass = %g, expected in (0, 1]",
            p.probe_mass);
    FAISS_THROW_IF_NOT_FMT(
            p.target_recall >= 0 && p.target_recall < 1,
            "target_recall = %g, expected in [0, 1)",
            p.target_recall);

    SearchPlan plan;
    plan.sel = p.sel;
    plan.quantizer_params = p.quantizer_params;
    plan.max_codes = p.max_codes;
    plan.order = p.probe_order;
    plan.probe_mass = p.probe_mass;
    double nprobe = std::min(p.nprobe, ivf.nlist);
    const double per_list = double(ivf.ntotal) / ivf.nlist;
    if (p.target_recall > 0) {
        const double most = nprobe_given ? nprobe : double(ivf.nlist);
        nprobe = most;
        if (gmm.calibration.fitted ||
            size_t(ivf.ntotal) >= kMinCalibrationVectors) {
            const Calibration::Choice choice =
                    gmm.calibration.choose(p.target_recall, p.sel);
            plan.order = choice.order;
            plan.probe_mass = choice.by_mass ? choice.parameter : 1;
            if (!choice.by_mass) {
                nprobe = std::min<double>(choice.parameter, most);
            }
        }
    } else if (plan.order == ProbeOrder::calibrated) {
        plan.order = !gmm.calibration.fitted ? ProbeOrder::cell_distance
                : plan.probe_mass < 1 && !gmm.cells.sketches.empty()
                ? ProbeOrder::sketch
                : plan.probe_mass < 1
                ? ProbeOrder::cell_posterior
                : gmm.calibration.best_order(float(nprobe * per_list));
    }
    if (plan.by_cells() && gmm.cells.empty()) {
        plan.order = ProbeOrder::distance;
    }
    if (plan.order == ProbeOrder::sketch && gmm.cells.sketches.empty()) {
        plan.order = ProbeOrder::cell_posterior;
    }
    if (plan.probe_mass < 1 &&
        (plan.order == ProbeOrder::distance ||
         (plan.by_cells() && !gmm.calibration.fitted))) {
        plan.order = ProbeOrder::scale_free; // needs no calibration
    }
    if (plan.sel && plan.order == ProbeOrder::sketch && plan.probe_mass >= 1) {
        // its few vectors would be chosen before the selector is asked
        plan.order = ProbeOrder::cell_posterior;
    }
    if (nprobe >= ivf.nlist && plan.probe_mass >= 1) {
        plan.order = ProbeOrder::distance; // everything, whatever the order
    }
    plan.nprobe = size_t(std::ceil(nprobe));
    const double lists = nprobe * per_list;
    plan.budget = size_t(std::ceil(std::max(
            lists / cost_factor(plan.order, ivf.d), std::min(lists, 2.0 * k))));
    if (plan.max_codes > 0) {
        plan.budget = std::min(plan.budget, plan.max_codes); // the best first
    }
    return plan;
}

} // namespace faiss_ext
