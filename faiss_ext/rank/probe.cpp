#include "faiss_ext/rank/probe.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ParallelFor.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/coarse/QueryBlock.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

namespace {

/// Queries whose nearest lists a thread finds at once.
constexpr size_t kListQueries = 16;

/// The nprobe nearest lists of one query.
///
/// @param norm  |q|, read for similarity
void select_nearest(
        const CellCodes& codes,
        const float* distances,
        float least,
        float norm,
        size_t nprobe,
        std::vector<uint32_t>& order,
        float* coarse,
        idx_t* keys) {
    const size_t nlist = codes.mean_norms.size();
    order.resize(nlist);
    if (nprobe == 1) {
        order[0] = uint32_t(
                std::find(distances, distances + nlist - 1, least) - distances);
    } else {
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(
                order.begin(),
                order.begin() + nprobe,
                order.end(),
                [&](uint32_t p, uint32_t q) {
                    return distances[p] != distances[q]
                            ? distances[p] < distances[q]
                            : p < q;
                });
    }
    for (size_t p = 0; p < nprobe; p++) {
        keys[p] = order[p];
        coarse[p] = codes.similarity ? norm * (1 - 0.5f * distances[order[p]])
                                     : distances[order[p]];
    }
}

/// The nearest lists by the distances that codes start from: about the centre
/// of the means, which vectors were assigned by.
void probe_by_distance(
        const faiss::IndexIVF& ivf,
        const CellCodes& codes,
        size_t nprobe,
        size_t n,
        const float* x,
        float* coarse,
        idx_t* keys) {
    const size_t d = ivf.d;
    struct Worker {
        QueryBlock block;
        std::vector<uint32_t> order;
    };
    const auto probe_block = [&](Worker& w, size_t begin) {
        const size_t count = std::min(kListQueries, n - begin);
        w.block.measure(codes, count, x + begin * d);
        for (size_t i = 0; i < count; i++) {
            select_nearest(
                    codes,
                    &w.block.distances[i * ivf.nlist],
                    w.block.least[i],
                    codes.similarity ? norm_of(d, &w.block.centred[i * d]) : 0,
                    nprobe,
                    w.order,
                    coarse + (begin + i) * nprobe,
                    keys + (begin + i) * nprobe);
        }
    };
    const size_t n_blocks = (n + kListQueries - 1) / kListQueries;
    gmm::parallel_workers(
            n_blocks,
            n_blocks > 1,
            [&] {
                return [&, w = Worker()](size_t b) mutable {
                    probe_block(w, b * kListQueries);
                };
            },
            [](const auto&) {});
}

/// A mean's distance in coarse units.
float squared(const faiss::IndexIVF& ivf, const float* q, float coarse) {
    return is_ip(ivf) ? 2 - coarse * norm_scale(2, ivf.d, q) : coarse;
}

/// Of rows of nprobe + 1 lists the last become `beyond`.
void take_last(
        const faiss::IndexIVF& ivf,
        const float* x,
        ProbedLists& lists,
        size_t nprobe) {
    const size_t n = lists.begins.size() - 1, width = nprobe + 1;
    for (size_t i = 0; i < n; i++) {
        const size_t last = i * width + nprobe;
        if (lists.keys[last] >= 0) {
            lists.beyond[i] = squared(ivf, x + i * ivf.d, lists.coarse[last]);
        }
        std::copy_n(&lists.keys[i * width], nprobe, &lists.keys[i * nprobe]);
        std::copy_n(
                &lists.coarse[i * width], nprobe, &lists.coarse[i * nprobe]);
    }
    lists.keys.resize(n * nprobe);
    lists.coarse.resize(n * nprobe);
}

} // namespace

void probe(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float* coarse,
        idx_t* keys) {
    if (plan.order == ProbeOrder::distance && !gmm.cells.codes.empty() &&
        !hnsw_of(ivf) && !plan.selects_lists()) {
        probe_by_distance(
                ivf, gmm.cells.codes, plan.nprobe, n, x, coarse, keys);
        return;
    }
    if (plan.order == ProbeOrder::distance) {
        // A graph does not find all lists, nor all that are selected.
        const faiss::Index* const behind =
                plan.nprobe >= ivf.nlist || plan.selects_lists() ? hnsw_of(ivf)
                                                                 : nullptr;
        if (behind) {
            faiss::SearchParameters selected;
            selected.sel =
                    plan.selects_lists() ? plan.quantizer_params->sel : nullptr;
            behind->search(n, x, plan.nprobe, coarse, keys, &selected);
        } else {
            ivf.quantizer->search(
                    n, x, plan.nprobe, coarse, keys, plan.quantizer_params);
        }
        return;
    }
    IndexGMM policy(ivf.d, ivf.nlist, gmm.covariance, ivf.metric_type);
    policy.set_mixture(gmm.mixture());
    policy.policy.order = plan.order;
    policy.policy.probe_mass = plan.probe_mass;
    policy.search(n, x, plan.nprobe, coarse, keys);
}

float distance_to_filled(
        const faiss::IndexIVF& ivf,
        const float* q,
        size_t nprobe,
        const float* coarse,
        const idx_t* keys) {
    for (size_t p = 0; p < nprobe; p++) {
        if (keys[p] >= 0 && ivf.invlists->list_size(keys[p]) > 0) {
            return squared(ivf, q, coarse[p]);
        }
    }
    return std::numeric_limits<float>::infinity();
}

float in_coarse_units(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* q,
        float distance) {
    const float norm2 = gmm.cells.norm2;
    return !is_ip(ivf) ? distance
                       : 2 -
                    norm_scale(norm2 > 0 ? 2 / std::sqrt(norm2) : 2, ivf.d, q) *
                            distance;
}

ProbedLists probe_lists(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x) {
    const size_t d = ivf.d, nprobe = plan.nprobe;
    constexpr float kNone = std::numeric_limits<float>::infinity();
    ProbedLists out{
            std::vector<size_t>(n + 1), {}, {}, std::vector<float>(n, kNone)};
    for (size_t i = 0; i < n; i++) {
        out.begins[i + 1] = (i + 1) * nprobe;
    }
    const bool one_more = (plan.reach > 0 || plan.beyond) && nprobe < ivf.nlist;
    SearchPlan asked = plan;
    asked.nprobe = nprobe + one_more;
    out.coarse.resize(n * asked.nprobe);
    out.keys.resize(n * asked.nprobe);
    probe(ivf, gmm, asked, n, x, out.coarse.data(), out.keys.data());
    if (one_more) {
        take_last(ivf, x, out, nprobe);
    }
    if (nprobe >= ivf.nlist || !std::isfinite(plan.farthest)) {
        return out;
    }
    SearchPlan all_lists = plan;
    all_lists.nprobe = ivf.nlist;
    ProbedLists grown{{0}, {}, {}, out.beyond};
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        const float* q = x + i * d;
        const size_t begin = grown.keys.size();
        if (distance_to_filled(
                    ivf,
                    q,
                    nprobe,
                    &out.coarse[i * nprobe],
                    &out.keys[i * nprobe]) > plan.farthest) {
            any = true;
            grown.beyond[i] = kNone;
            grown.coarse.resize(begin + ivf.nlist);
            grown.keys.resize(begin + ivf.nlist);
            probe(ivf,
                  gmm,
                  all_lists,
                  1,
                  q,
                  &grown.coarse[begin],
                  &grown.keys[begin]);
        } else {
            const auto row = [&](const auto& from, auto& to) {
                to.insert(
                        to.end(),
                        from.begin() + i * nprobe,
                        from.begin() + (i + 1) * nprobe);
            };
            row(out.coarse, grown.coarse);
            row(out.keys, grown.keys);
        }
        grown.begins.push_back(grown.keys.size());
    }
    return any ? grown : out;
}

} // namespace faiss_ext
