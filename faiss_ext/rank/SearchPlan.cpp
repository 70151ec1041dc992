#include "faiss_ext/rank/SearchPlan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <typeinfo>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/CellSelector.h"
#include "faiss_ext/rank/time_of_lists.h"
#include "faiss_ext/store/copies.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

double passing_share(const faiss::IndexIVF& ivf, const faiss::IDSelector& sel) {
    size_t asked = 0, passed = 0;
    const size_t each = kAskedForShare / ivf.nlist + 1;
    const size_t step = std::max<size_t>(1, ivf.nlist / kAskedForShare);
    for (size_t i = 0; i < ivf.nlist; i += step) {
        const size_t n = ivf.invlists->list_size(i);
        const size_t stride = std::max<size_t>(1, n / each);
        for (size_t j = i % stride; j < n; j += stride) {
            passed += sel.is_member(ivf.invlists->get_single_id(i, j));
            asked++;
        }
    }
    // neither none nor all for sure
    return asked > 0 ? std::clamp(double(passed), 0.5, asked - 0.5) / asked : 1;
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
                type_name(*params).c_str());
        p.sel = params->sel;
    }
    return p;
}

/// Codes that are looked at for each distance that max_codes allows.
constexpr double kCodesOfCap = 4;

/// A query this much farther than all of a calibration's is unlike them.
constexpr float kFarther = 1.1f;

float farthest_calibrated(const Calibration& c) {
    return c.farthest > 0 ? kFarther * c.farthest
                          : std::numeric_limits<float>::infinity();
}

/// By which estimates of that share of entries are too large at most: most of a
/// range is just within its radius.
float bound_of_share(double share) {
    float bound = 0.5f;
    while (bound < kSureBound &&
           std::erfc(-bound / std::sqrt(2.0)) < 2 * share) {
        bound += 0.125f;
    }
    return bound;
}

/// A call with a target of recall, or none: 0.
struct Call {
    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    size_t k; ///< 0: a range
    float target;
    bool nprobe_given; ///< by parameters that know no target: a cap
    size_t most_lists; ///< of nprobe_given, or all

    double per_list() const {
        return double(ivf.ntotal) / ivf.nlist;
    }
    double growth() const { ///< since the calibration, 1 at least
        const size_t n = gmm.calibration.ntotal;
        return n > 0 ? std::max(1.0, double(ivf.ntotal) / double(n)) : 1;
    }
    double most_entries() const {
        return most_lists < ivf.nlist ? most_lists * per_list()
                                      : double(ivf.ntotal);
    }
    double most_budget(const SearchPlan& plan) const { ///< by codes
        return plan.by_effort && most_lists == ivf.nlist
                ? CellSelector::kAllByEffort * double(ivf.ntotal)
                : most_entries();
    }
    /// Whether the target is one of the calibration's; else all is searched:
    /// one that is due is made by maintain(), and of so few none ever is.
    bool has_setting() const {
        const bool few = size_t(ivf.ntotal) < kMinCalibrationVectors;
        const Calibration& c = gmm.calibration;
        return c.fitted ? !(few && 2 * size_t(ivf.ntotal) < c.ntotal)
                        : !(few || gmm.calibrate_on_add);
    }
};

/// In codes by codes, else in lists.
RangeBudget range_budget(const SearchPlan& plan, const Call& call) {
    if (plan.max_codes > 0 || call.nprobe_given) {
        return {};
    }
    const Calibration& c = call.gmm.calibration;
    const double k = double(c.curves.back().k);
    const Calibration::Point last = c.choose(call.target, c.curves.back().k);
    const double budget = plan.by_codes ? last.in_codes(call.per_list())
            : last.by_codes             ? last.budget / call.per_list()
                                        : last.budget;
    return {budget / k, k, (1 - double(call.target)) / 2};
}

/// What the calibration found to be enough.
void plan_for_target(SearchPlan& plan, const Call& call) {
    const Calibration& c = call.gmm.calibration;
    const bool range = call.k == 0;
    const Calibration::Choice point = range ? c.choose_for_range(call.target)
                                            : c.choose(call.target, call.k);
    const double growth = c.ntotal > 0 ? double(call.ivf.ntotal) / c.ntotal : 1;
    // by codes a selector is asked about what is near, and seen to go by it
    plan.by_codes = (point.by_codes || range || plan.sel) &&
            !call.gmm.cells.codes.empty();
    if (plan.by_codes) {
        // neither was measured where lists were chosen
        plan.by_effort = point.by_codes && !point.mixed;
        plan.budget = std::min(
                point.in_codes(call.per_list()) * call.growth(),
                call.most_budget(plan));
        plan.bound = point.by_codes ? point.bound : kSureBound;
        if (range) {
            plan.bound = std::max(plan.bound, bound_of_share(call.target));
        }
        plan.nprobe = 0;
    } else {
        // lists that have lost entries hold fewer
        const double lists =
                point.budget * std::max(1.0, 1 / std::max(growth, 1e-9));
        plan.nprobe =
                size_t(std::min(double(call.most_lists), std::ceil(lists)));
        plan.all_if_few = !call.nprobe_given && plan.max_codes == 0;
    }
    if (range) {
        plan.range = range_budget(plan, call);
    }
    if (!call.nprobe_given && plan.max_codes == 0) {
        plan.farthest = farthest_calibrated(c);
        plan.reach = range || plan.sel ? 0 : point.reach;
    }
}

/// As many times more as few entries pass the selector.
void grow_for_selector(SearchPlan& plan, const Call& call) {
    plan.share = passing_share(call.ivf, *plan.sel);
    plan.range.each /= plan.share; // of results, those that pass
    plan.range.measured *= plan.share;
    plan.passing = call.nprobe_given || plan.max_codes ? 0 : plan.budget;
    plan.budget = std::min(plan.budget / plan.share, call.most_budget(plan));
    plan.all_if_few = plan.max_codes == 0;
    if (!plan.by_codes) {
        plan.nprobe = std::min(
                call.most_lists, size_t(std::ceil(plan.nprobe / plan.share)));
    }
}

/// Whether an order goes by codes where there are some.
bool prefers_codes(ProbeOrder order) {
    return order == ProbeOrder::calibrated || order == ProbeOrder::codes;
}

/// Whole lists among those that the caller has selected.
void plan_selected_lists(SearchPlan& plan, const Call& call) {
    FAISS_THROW_IF_NOT_MSG(
            has_vectors(call.ivf),
            "quantizer_params->sel: expected none in an index of codes alone");
    FAISS_THROW_IF_NOT_FMT(
            prefers_codes(plan.order) || plan.order == ProbeOrder::distance,
            "quantizer_params->sel with probe_order = %s, expected "
            "calibrated, codes or distance",
            to_string(plan.order));
    plan.order = ProbeOrder::distance;
    plan.probe_mass = 1;
    if (call.target > 0 && !call.nprobe_given) {
        plan.nprobe = call.ivf.nlist;
    }
}

/// Of an index that has nothing but codes.
void plan_codes_alone(SearchPlan& plan, Call call) {
    FAISS_THROW_IF_NOT_FMT(
            prefers_codes(plan.order),
            "probe_order = %s, expected calibrated or codes in an index of "
            "codes alone",
            to_string(plan.order));
    if (call.target == 0 && plan.probe_mass < 1 &&
        call.gmm.calibration.fitted) {
        call.target = plan.probe_mass;
    }
    if (call.target == 0) {
        call.most_lists = plan.nprobe;
    }
    if (call.target > 0 && call.has_setting()) {
        plan_for_target(plan, call);
        plan.by_effort = plan.budget < double(call.ivf.ntotal);
    } else {
        plan.budget = call.most_entries();
    }
    plan.by_codes = true;
    plan.bound =
            plan.budget < double(call.ivf.ntotal) ? kSureBound : 2 * kSureBound;
    plan.nprobe = 0;
    if (call.target > 0 && plan.sel) {
        grow_for_selector(plan, call);
    }
    if (plan.max_codes > 0) {
        plan.budget = std::min(plan.budget, double(plan.max_codes));
    }
}

/// By codes, what the time of nprobe lists buys.
void plan_for_nprobe(SearchPlan& plan, const Call& call, bool always) {
    // Of lists that max_codes ends within, the best entries by the codes of a
    // few times as many
    const bool cut_short = plan.max_codes >= call.k && !plan.sel &&
            call.k > 0 &&
            double(plan.max_codes) < plan.nprobe * call.per_list();
    if (cut_short) {
        plan.nprobe = std::min(
                plan.nprobe,
                size_t(std::ceil(
                        kCodesOfCap * plan.max_codes / call.per_list())));
    }
    if (plan.nprobe < call.ivf.nlist || cut_short) {
        plan_for_time_of_lists(
                plan, call.ivf, call.gmm, call.k, cut_short || always);
    }
}

/// Of an index that has vectors.
void plan_vectors(SearchPlan& plan, Call call) {
    const bool always = plan.order == ProbeOrder::codes;
    const bool codes =
            !call.gmm.cells.codes.empty() && prefers_codes(plan.order);
    if (prefers_codes(plan.order)) {
        plan.order = ProbeOrder::distance;
    }
    if (call.target == 0 && codes && plan.probe_mass < 1 &&
        call.gmm.calibration.fitted) {
        call.target = plan.probe_mass;
    }
    if (call.target > 0) {
        plan.order = ProbeOrder::distance;
        plan.probe_mass = 1;
        if (!call.has_setting()) {
            plan.nprobe = call.most_lists;
            return;
        }
        plan_for_target(plan, call);
        if (plan.sel) {
            grow_for_selector(plan, call);
            if (plan.by_codes && plan.passing > 0 &&
                lists_are_quicker(plan, call.ivf, call.gmm, call.k)) {
                plan.by_codes = false;
                plan.nprobe = call.ivf.nlist;
            }
        }
    } else if (codes) {
        plan_for_nprobe(plan, call, always);
    }
    if (!codes && plan.probe_mass < 1 && plan.order == ProbeOrder::distance) {
        plan.order = ProbeOrder::scale_free; // the distance has no posterior
    }
}

} // namespace

SearchPlan make_plan(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        size_t k) {
    check_trained(ivf);
    check_max_assign(ivf, gmm);
    check_cells_kept(ivf, gmm);
    bool nprobe_given;
    const SearchParametersIVFGMM p = settings(ivf, gmm, params, nprobe_given);
    FAISS_THROW_IF_NOT_FMT(
            p.nprobe > 0, "nprobe = %zu, expected > 0", size_t(p.nprobe));
    check_shares(p.probe_mass, p.target_recall);

    SearchPlan plan;
    plan.sel = p.sel;
    plan.quantizer_params = p.quantizer_params;
    plan.max_codes = p.max_codes;
    plan.nprobe = std::min<size_t>(p.nprobe, ivf.nlist);
    plan.order = p.probe_order;
    plan.probe_mass = p.probe_mass;
    const Call call{
            ivf,
            gmm,
            k,
            p.target_recall,
            nprobe_given,
            nprobe_given ? plan.nprobe : ivf.nlist};
    if (plan.selects_lists()) {
        plan_selected_lists(plan, call);
    } else if (has_vectors(ivf)) {
        plan_vectors(plan, call);
    } else {
        plan_codes_alone(plan, call);
    }
    return plan;
}

} // namespace faiss_ext
