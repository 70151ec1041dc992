#include "faiss_ext/rank/SearchPlan.h"

#include <algorithm>
#include <cmath>
#include <typeinfo>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/store/copies.h"

namespace faiss_ext {

namespace {

/// A bound of so many standard deviations, where nothing has been calibrated,
/// misses one in seven hundred.
constexpr float kSureBound = 3;
/// Where fewer entries are looked at for each neighbour wanted, choosing among
/// them by their codes does not pay.
constexpr size_t kEntriesForEach = 10;
/// Least dimension for which reading codes first pays.
constexpr size_t kLeastDimension = 16;

/// What nprobe lists buy by codes, in entries looked at: as many times theirs
/// as a vector has bytes over a code's, half of it and six at most.
double codes_for_each_entry(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    const double vector = double(ivf.d) * sizeof(float);
    return std::clamp(
            vector / gmm.cells.codes.shape.entry_bytes() / 2, 1.0, 6.0);
}

/// Entries that a selector is asked about to learn how many pass.
constexpr size_t kAsked = 1000;

double passing_share(const faiss::IndexIVF& ivf, const faiss::IDSelector& sel) {
    size_t asked = 0, passed = 0;
    const size_t each = kAsked / ivf.nlist + 1;
    const size_t step = std::max<size_t>(1, ivf.nlist / kAsked);
    for (size_t i = 0; i < ivf.nlist; i += step) {
        const size_t n = ivf.invlists->list_size(i);
        const size_t stride = std::max<size_t>(1, n / each);
        for (size_t j = i % stride; j < n; j += stride) {
            passed += sel.is_member(ivf.invlists->get_single_id(i, j));
            asked++;
        }
    }
    return asked > 0 ? std::max(double(passed), 0.5) / asked : 1;
}

SearchParametersIVFGMM settings(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        bool& nprobe_given) {
    SearchParametersIVFGMM p;
    p.nprobe = ivf.nprobe;
    p.max_codes = ivf.max_codes;
    p.probe_order = gmm.probe_order;
    p.probe_mass = gmm.probe_mass;
    p.target_recall = gmm.target_recall;
    nprobe_given = false;
    if (!params) {
        return p;
    }
    if (auto base = dynamic_cast<const faiss::SearchParametersIVF*>(params)) {
        p.nprobe = base->nprobe;
        p.max_codes = base->max_codes;
        p.sel = base->sel;
        p.quantizer_params = base->quantizer_params;
        if (auto own = dynamic_cast<const SearchParametersIVFGMM*>(params)) {
            p.probe_order = own->probe_order;
            p.probe_mass = own->probe_mass;
            p.target_recall = own->target_recall;
        } else {
            nprobe_given = true; // by who says nothing about the target
        }
    } else {
        FAISS_THROW_IF_NOT_FMT(
                typeid(*params) == typeid(faiss::SearchParameters),
                "params: a %s, expected SearchParameters, SearchParametersIVF "
                "or SearchParametersIVFGMM",
                typeid(*params).name());
        p.sel = params->sel;
    }
    return p;
}

void check(const SearchParametersIVFGMM& p) {
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
}

} // namespace

SearchPlan make_plan(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        size_t k) {
    FAISS_THROW_IF_NOT_MSG(ivf.is_trained, "the index is not trained");
    check_max_assign(ivf, gmm);
    bool nprobe_given;
    const SearchParametersIVFGMM p = settings(ivf, gmm, params, nprobe_given);
    check(p);

    const size_t ntotal = ivf.ntotal;
    const double per_list = double(ntotal) / ivf.nlist;
    SearchPlan plan;
    plan.sel = p.sel;
    plan.quantizer_params = p.quantizer_params;
    plan.max_codes = p.max_codes;
    plan.nprobe = std::min<size_t>(p.nprobe, ivf.nlist);
    plan.order = p.probe_order;
    plan.probe_mass = p.probe_mass;
    const bool codes = !gmm.cells.codes.empty() &&
            (plan.order == ProbeOrder::calibrated ||
             plan.order == ProbeOrder::codes);
    const bool whole_lists = !codes;
    if (plan.order == ProbeOrder::calibrated ||
        plan.order == ProbeOrder::codes) {
        plan.order = ProbeOrder::distance;
    }

    float target = p.target_recall;
    if (target == 0 && codes && plan.probe_mass < 1 && gmm.calibration.fitted) {
        target = plan.probe_mass;
    }
    const size_t most = nprobe_given ? plan.nprobe : ivf.nlist;
    if (target > 0) {
        // One that is due is made by maintain(); until then all is searched.
        if (!gmm.calibration.fitted &&
            (gmm.calibrate_on_add || ntotal < kMinCalibrationVectors)) {
            plan.order = ProbeOrder::distance;
            plan.probe_mass = 1;
            plan.nprobe = most;
            return plan;
        }
        const Calibration& c = gmm.calibration;
        const Calibration::Point point =
                k > 0 ? c.choose(target, k) : c.choose_for_range(target);
        plan.probe_mass = 1;
        plan.order = ProbeOrder::distance;
        const double growth = c.ntotal > 0 ? double(ntotal) / c.ntotal : 1;
        if (point.by_codes && !gmm.cells.codes.empty()) {
            plan.by_codes = true;
            plan.budget = std::min(
                    point.budget * std::max(growth, 1.0), most * per_list);
            plan.by_effort = true;
            plan.bound = point.bound;
            plan.nprobe = 0;
        } else {
            plan.nprobe =
                    std::min<size_t>(most, size_t(std::ceil(point.budget)));
        }
    } else if (codes && plan.nprobe < ivf.nlist) {
        const double entries = plan.nprobe * per_list;
        const bool pays = size_t(ivf.d) >= kLeastDimension &&
                entries >= double(kEntriesForEach) * std::max<size_t>(k, 1);
        if (pays || p.probe_order == ProbeOrder::codes) {
            plan.by_codes = true;
            plan.budget = entries * codes_for_each_entry(ivf, gmm);
            plan.bound = kSureBound;
        }
    }
    if (plan.sel && target > 0) {
        plan.share = passing_share(ivf, *plan.sel);
        plan.budget /= plan.share;
        if (!plan.by_codes) {
            plan.nprobe = std::min<size_t>(
                    most, size_t(std::ceil(plan.nprobe / plan.share)));
        }
    }
    if (whole_lists && plan.probe_mass < 1 &&
        plan.order == ProbeOrder::distance) {
        plan.order = ProbeOrder::scale_free; // the distance has no posterior
    }
    return plan;
}

} // namespace faiss_ext
