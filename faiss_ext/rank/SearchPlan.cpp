#include "faiss_ext/rank/SearchPlan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <typeinfo>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/copies.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

double time_to_decode(const faiss::IndexIVF& ivf) {
    if (dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        return 0;
    }
    if (dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        return 40;
    }
    const bool whole_bytes = ivf.code_size >= size_t(ivf.d);
    return whole_bytes ? 0.1 * ivf.d : 520; // FAISS's loop
}

/// A level of an IVF's heap, at an exchange, in nanoseconds.
constexpr double kHeapLevel = 4;

/// What keeping the k nearest of so many takes an IVF: it exchanges the
/// farthest of k whenever one is nearer, and sorts them in the end.
double time_of_heap(double k, double entries) {
    const double exchanges =
            k < entries ? k * (1 + std::log(entries / k)) : entries;
    return kHeapLevel * std::log2(k + 1) * (exchanges + k);
}

/** What a search takes about, in nanoseconds of a processor of today: lines
 * through what it was on an EPYC with AVX-512 for 64 to 384 dimensions, with
 * vectors that stay in the cache, where whole lists are at their best
 * (bench/NOTES.md). Only their proportions matter. What nprobe finds must not
 * depend on how busy the machine was when the index was filled, so they are not
 * measured there. */
Costs usual_costs(const faiss::IndexIVF& ivf, int bits) {
    const double d = ivf.d;
    Costs costs;
    costs.scan = 1 + 0.07 * d;
    costs.code = (bits == 4 ? 1.6 : 1) + 0.00225 * bits * d;
    costs.distance = 40 + 0.25 * d + time_to_decode(ivf);
    costs.test = 2.5;
    return costs;
}

/// A dimension of a mean, in nanoseconds.
constexpr double kOfMeans = 0.05;
/// Of that, what products in blocks of our own save (of inner products, for
/// which FAISS needs no norms, half).
constexpr double kOfProducts = 0.02;
/// The choice of cells, in nanoseconds.
constexpr double kChoosing = 1400;
/// What is compared for a threshold, and after that, over the former.
constexpr double kOfFirst = 2.2;
/// Of an IVF's time, what may be lost where codes turn out to tell too little;
/// and of many neighbours, of which whole lists and more find nearly as many.
constexpr double kMostBefore = 0.3, kMostBeforeMany = 0.15;

/// What a comparison of a range takes, over one of a search for neighbours:
/// they come in the order of memory, and the threshold does not change.
constexpr double kOfSingleInRange = 0.3;

/// More codes than so many times those of nprobe lists are not worth it.
constexpr double kMostCodes = 4;

/// More neighbours than these are kept without a heap, in less time than an IVF
/// takes: whole lists are followed by entries of the next ones.
constexpr size_t kManyNeighbours = 64;
/// FAISS's scanners compare vectors of fewer dimensions in less time than it
/// takes here to come to one.
constexpr size_t kLeastCompared = 12;
/// Of the heap's time, what these may take.
constexpr double kOfHeap = 0.06;
constexpr double kMostMoreEntries = 0.3;

/// Ranking a list and beginning it, in nanoseconds.
constexpr double kList = 25;
/// Keeping a candidate that is not compared at once, in nanoseconds.
constexpr double kKept = 3;

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

/** What the time of nprobe whole lists buys by codes: those of these lists,
 * which are looked at in any case since nobody knows the queries, and those of
 * the nearest cells elsewhere.
 *
 * Leaves the plan at whole lists where there is not time enough, unless
 * `always`.
 */
void plan_for_time_of_lists(
        SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k,
        bool always) {
    const double entries = double(plan.nprobe) * ivf.ntotal / ivf.nlist;
    plan.costs = usual_costs(ivf, gmm.cells.codes.shape.bits);
    plan.costs.heap = k > 0 ? time_of_heap(double(k), entries) : 0;
    // what is done before anything is known of the query
    const double first = k > 0 ? plan.costs.code * near_entries(k) +
                    plan.costs.distance * compared_first(k)
                               : 0;
    const double of_lists = plan.costs.scan * entries;
    const double means = double(ivf.d) * double(ivf.nlist);
    plan.costs.saved = (is_ip(ivf) ? 0.5 : 1) * kOfProducts * means;
    const double most_before =
            k < kManyNeighbours ? kMostBefore : kMostBeforeMany;
    const bool pays = plan.costs.code * entries + kOfFirst * first + kChoosing <
                    of_lists + plan.costs.saved &&
            first < most_before *
                            (of_lists + plan.costs.heap + kOfMeans * means);
    if (!pays && !always) {
        plan.by_codes = plan.compare_lists = k >= kManyNeighbours &&
                size_t(ivf.d) >= kLeastCompared &&
                dynamic_cast<const faiss::IndexIVFFlat*>(&ivf) &&
                !hnsw_of(ivf) && !plan.max_codes;
        plan.more_entries = std::min(
                kOfHeap * plan.costs.heap / of_lists, kMostMoreEntries);
        return;
    }
    plan.by_codes = true;
    plan.bound = kSureBound;
    plan.budget = kMostCodes * entries;
    if (k == 0) {
        plan.costs.distance *= kOfSingleInRange;
    }
}

/// A query this much farther than all of a calibration's is unlike them.
constexpr float kFarther = 1.1f;

float farthest_calibrated(const Calibration& c) {
    return c.farthest > 0 ? kFarther * c.farthest
                          : std::numeric_limits<float>::infinity();
}

/// Whether all lists are compared whole in less time than codes take, where so
/// few entries pass the selector. The first threshold needs k that pass.
bool lists_are_quicker(
        const SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k) {
    const double ntotal = double(ivf.ntotal);
    const Costs costs = usual_costs(ivf, gmm.cells.codes.shape.bits);
    const double first =
            k > 0 ? std::min(near_entries(k) / plan.share, ntotal) : 0;
    return ntotal * (costs.test + plan.share * costs.scan) +
            kList * double(ivf.nlist) <
            std::min(plan.budget, ntotal) * costs.code +
            first * (costs.test + kKept) + kChoosing;
}

/// In codes by codes, else in lists.
RangeBudget range_budget(
        const SearchPlan& plan,
        const Calibration& c,
        float target,
        double per_list,
        bool nprobe_given) {
    if (plan.max_codes > 0 || nprobe_given) {
        return {};
    }
    const double k = double(c.curves.back().k);
    const Calibration::Point last = c.choose(target, c.curves.back().k);
    const double unit = last.by_codes == plan.by_codes ? 1
            : plan.by_codes                            ? per_list
                                                       : 1 / per_list;
    return {unit * last.budget / k, k, (1 - double(target)) / 2};
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

/// Of an index that has nothing but codes; the plan has what it was called
/// with.
void plan_codes_alone(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        float target,
        size_t k,
        bool nprobe_given,
        SearchPlan& plan) {
    FAISS_THROW_IF_NOT_FMT(
            plan.order == ProbeOrder::calibrated ||
                    plan.order == ProbeOrder::codes,
            "probe_order = %s, expected calibrated or codes in an index of "
            "codes alone",
            to_string(plan.order));
    const double ntotal = double(ivf.ntotal);
    const double lists = plan.nprobe < ivf.nlist
            ? plan.nprobe * (ntotal / ivf.nlist)
            : ntotal;
    const Calibration& c = gmm.calibration;
    if (target == 0 && plan.probe_mass < 1 && c.fitted) {
        target = plan.probe_mass;
    }
    const double most = target > 0 && !nprobe_given ? ntotal : lists;
    plan.by_codes = true;
    plan.nprobe = 0;
    plan.bound = kSureBound;
    plan.budget = most;
    if (target > 0 &&
        (c.fitted ||
         !(gmm.calibrate_on_add || ntotal < kMinCalibrationVectors))) {
        const Calibration::Point point =
                k > 0 ? c.choose(target, k) : c.choose_for_range(target);
        const double growth = c.ntotal > 0 ? ntotal / c.ntotal : 1;
        plan.budget = std::min(point.budget * std::max(growth, 1.0), most);
        plan.by_effort = plan.budget < ntotal;
        if (k == 0) {
            plan.range = range_budget(
                    plan, c, target, ntotal / ivf.nlist, nprobe_given);
        }
        if (!nprobe_given && plan.max_codes == 0) {
            plan.farthest = farthest_calibrated(c);
        }
    }
    if (target > 0 && plan.sel) {
        plan.share = passing_share(ivf, *plan.sel);
        plan.passing = nprobe_given || plan.max_codes ? 0 : plan.budget;
        plan.budget = std::min(plan.budget / plan.share, most);
        plan.by_effort = true;
        plan.all_if_few = plan.max_codes == 0;
    }
    if (plan.max_codes > 0) {
        plan.budget = std::min(plan.budget, double(plan.max_codes));
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
    if (plan.selects_lists()) {
        FAISS_THROW_IF_NOT_MSG(
                has_vectors(ivf),
                "quantizer_params->sel: expected none in an index of codes "
                "alone");
        FAISS_THROW_IF_NOT_FMT(
                plan.order == ProbeOrder::calibrated ||
                        plan.order == ProbeOrder::codes ||
                        plan.order == ProbeOrder::distance,
                "quantizer_params->sel with probe_order = %s, expected "
                "calibrated, codes or distance",
                to_string(plan.order));
        plan.order = ProbeOrder::distance;
        plan.probe_mass = 1;
        if (p.target_recall > 0 && !nprobe_given) {
            plan.nprobe = ivf.nlist;
        }
        return plan;
    }
    if (!has_vectors(ivf)) {
        plan_codes_alone(ivf, gmm, p.target_recall, k, nprobe_given, plan);
        return plan;
    }
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
        // One that is due is made by maintain(); until then all is searched, as
        // is what has shrunk to so few that none is ever due.
        const bool few = ntotal < kMinCalibrationVectors;
        if (gmm.calibration.fitted ? few && 2 * ntotal < gmm.calibration.ntotal
                                   : few || gmm.calibrate_on_add) {
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
        if (!nprobe_given && plan.max_codes == 0) {
            plan.farthest = farthest_calibrated(c);
        }
        const double growth = c.ntotal > 0 ? double(ntotal) / c.ntotal : 1;
        const bool range = k == 0;
        if ((point.by_codes || range) && !gmm.cells.codes.empty()) {
            const double unit = point.by_codes ? 1 : per_list;
            plan.by_codes = true;
            plan.budget = std::min(
                    unit * point.budget * std::max(growth, 1.0),
                    most * per_list);
            // neither was measured where lists were chosen
            plan.by_effort = point.by_codes;
            plan.bound = point.by_codes ? point.bound : kSureBound;
            if (range) {
                plan.bound = std::max(plan.bound, bound_of_share(target));
                plan.range =
                        range_budget(plan, c, target, per_list, nprobe_given);
            }
            plan.nprobe = 0;
        } else {
            // lists that have lost entries hold fewer
            const double lists =
                    point.budget * std::max(1.0, 1 / std::max(growth, 1e-9));
            plan.nprobe = size_t(std::min(double(most), std::ceil(lists)));
            plan.all_if_few = !nprobe_given && plan.max_codes == 0;
            if (range) {
                plan.range =
                        range_budget(plan, c, target, per_list, nprobe_given);
            }
        }
    } else if (codes && plan.nprobe < ivf.nlist) {
        plan_for_time_of_lists(
                plan, ivf, gmm, k, p.probe_order == ProbeOrder::codes);
    }
    if (plan.sel && target > 0) {
        plan.share = passing_share(ivf, *plan.sel);
        plan.passing = nprobe_given || plan.max_codes ? 0 : plan.budget;
        plan.budget = std::min(plan.budget / plan.share, most * per_list);
        plan.all_if_few = plan.max_codes == 0;
        if (plan.by_codes && !nprobe_given && !plan.max_codes &&
            lists_are_quicker(plan, ivf, gmm, k)) {
            plan.by_codes = false;
            plan.nprobe = ivf.nlist;
        } else if (!plan.by_codes) {
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
