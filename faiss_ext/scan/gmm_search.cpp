#include "faiss_ext/scan/gmm_search.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/Heap.h>
#include <faiss/utils/distances.h>
#include <faiss/utils/utils.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/rank/SketchRanker.h"
#include "faiss_ext/rank/StopSchedule.h"
#include "faiss_ext/scan/RunScanner.h"

namespace faiss_ext {

using HeapForIP = faiss::CMin<float, idx_t>;
using HeapForL2 = faiss::CMax<float, idx_t>;

namespace {

/// A block of queries takes at most so many coarse distances.
constexpr size_t kCoarseBlock = size_t(1) << 23;

/// Collects the k best in FAISS's heaps.
struct KnnHandler {
    const faiss::IndexIVF& ivf;
    size_t k;
    float* dis;
    idx_t* ids;
    size_t n_updates = 0;

    void begin() {
        if (is_ip(ivf)) {
            faiss::heap_heapify<HeapForIP>(k, dis, ids);
        } else {
            faiss::heap_heapify<HeapForL2>(k, dis, ids);
        }
    }
    void operator()(
            const faiss::InvertedListScanner& scanner,
            size_t n,
            const uint8_t* codes,
            const idx_t* code_ids) {
        n_updates += scanner.scan_codes(n, codes, code_ids, dis, ids, k);
    }
    void end() {
        if (is_ip(ivf)) {
            faiss::heap_reorder<HeapForIP>(k, dis, ids);
        } else {
            faiss::heap_reorder<HeapForL2>(k, dis, ids);
        }
    }
    /// In the units of coarse_distances, infinite while the heap is not full.
    float kth(float largest_ip) const {
        if (ids[0] < 0) {
            return std::numeric_limits<float>::infinity();
        }
        return !is_ip(ivf)       ? dis[0]
                : largest_ip > 0 ? std::max(2 - 2 * dis[0] / largest_ip, 0.0f)
                                 : 2;
    }
};

struct RangeHandler {
    float radius;
    faiss::RangeQueryResult& result;

    void operator()(
            const faiss::InvertedListScanner& scanner,
            size_t n,
            const uint8_t* codes,
            const idx_t* ids) {
        scanner.scan_codes_range(n, codes, ids, radius, result);
    }
    float kth(float) const {
        return std::numeric_limits<float>::infinity();
    }
};

/// One thread's handlers of all its queries.
struct KnnHandlers {
    KnnHandler handler;
    float* distances;
    idx_t* labels;
    size_t n_updates = 0;

    template <class F>
    void with_query(size_t i, F&& f) {
        handler.dis = distances + i * handler.k;
        handler.ids = labels + i * handler.k;
        handler.begin();
        f(handler);
        handler.end();
        n_updates = handler.n_updates;
    }
};

struct RangeHandlers {
    float radius;
    faiss::RangeSearchPartialResult* partial;
    size_t n_updates = 0;

    template <class F>
    void with_query(size_t i, F&& f) {
        RangeHandler handler{radius, partial->new_result(i)};
        f(handler);
    }
};

/// Whole lists in the order of keys; of entries with copies elsewhere the one
/// in the first list that holds the vector is scanned.
class ListSearcher {
public:
    explicit ListSearcher(const IVFGMM& gmm_in, size_t nlist)
            : gmm(gmm_in), probed(nlist, 0) {}

    template <class Handler>
    void operator()(
            RunScanner& scanner,
            const idx_t* keys,
            const float* coarse,
            size_t nprobe,
            Handler& handler) {
        stamp++;
        for (size_t p = 0; p < nprobe; p++) {
            if (keys[p] >= 0) {
                probed[keys[p]] = stamp;
            }
        }
        for (size_t p = 0; p < nprobe && !scanner.capped(); p++) {
            if (keys[p] < 0) {
                continue;
            }
            const size_t list = keys[p];
            const size_t n = scanner.ivf.invlists->list_size(list);
            if (n == 0) {
                continue;
            }
            runs.clear();
            if (gmm.earlier_lists.empty()) {
                runs.push_back({uint32_t(list), 0, uint32_t(n)});
            } else {
                runs_without_copies(list, n);
            }
            scanner.scan_runs(
                    runs.data(),
                    runs.size(),
                    [&](size_t) { return coarse[p]; },
                    handler);
        }
    }

private:
    void runs_without_copies(size_t list, size_t n) {
        const size_t width = gmm.max_assign - 1;
        const int32_t* earlier = gmm.earlier_lists[list].data();
        for (size_t j = 0; j < n; j++) {
            bool skip = false;
            for (size_t w = 0; w < width; w++) {
                const int32_t other = earlier[j * width + w];
                skip |= other >= 0 && probed[other] == stamp;
            }
            if (skip) {
                continue;
            }
            if (!runs.empty() && runs.back().end == j) {
                runs.back().end++;
            } else {
                runs.push_back({uint32_t(list), uint32_t(j), uint32_t(j + 1)});
            }
        }
    }

    const IVFGMM& gmm;
    std::vector<uint32_t> probed;
    uint32_t stamp = 0;
    std::vector<Run> runs;
};

/// The best cells (Ranker = CellRanker) or the best vectors of the best cells
/// (SketchRanker), in rounds where the query stops by mass.
template <class Ranker>
class RankedSearcher {
public:
    RankedSearcher(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in,
            Ranker&& ranker_in)
            : ivf(ivf_in), gmm(gmm_in), plan(plan_in),
              ranker(std::move(ranker_in)) {}

    /// @param coarse  started for the query
    /// @param q_norm  read for METRIC_INNER_PRODUCT
    /// @param tau     see start_order
    template <class Handler>
    Progress operator()(
            RunScanner& scanner,
            QueryCoarse& coarse,
            float q_norm,
            float tau,
            Handler& handler) {
        const bool ip = is_ip(ivf);
        const float largest_norm = std::sqrt(gmm.cells.norm2);
        start_order(ranker, ivf, gmm, plan.order, coarse, tau);
        const float* distances = coarse.distances;
        const bool by_mass = plan.probe_mass < 1;
        double target = by_mass ? kFirstRound : double(plan.budget);
        for (;;) {
            const size_t want = std::min(size_t(target), plan.budget);
            if (!ranker.advance(want, runs)) {
                break;
            }
            if (!scanner.gathered.takes_single() ||
                plan.order != ProbeOrder::sketch) {
                join_runs(runs); // the scanner is set up for each list
            }
            scanner.scan_runs(
                    runs.data(),
                    runs.size(),
                    [&](size_t list) {
                        return ip ? q_norm * (1 - 0.5f * distances[list])
                                  : distances[list];
                    },
                    handler);
            if (ranker.progress.entries >= plan.budget || scanner.capped() ||
                stop(handler.kth(q_norm * largest_norm))) {
                break;
            }
            target = next_round(target, ranker.progress);
        }
        return ranker.progress;
    }

private:
    bool stop(float kth) const {
        return gmm.calibration.missing(
                       plan.order, ranker.progress, kth, ivf.ntotal) <=
                1 - plan.probe_mass;
    }

    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const SearchPlan& plan;
    Ranker ranker;
    std::vector<Run> runs;
};

bool finite(const float* x, size_t d) {
    float sum = 0;
    for (size_t j = 0; j < d; j++) {
        sum += x[j] * 0; // NaN for NaN and for infinities
    }
    return sum == 0;
}

/** Runs search(query, scanner, lists or cells) for all queries in parallel.
 *
 * make_handler() gives what collects a thread's results; a query that is not
 * finite gets an empty one.
 */
template <class MakeHandler>
void for_each_query(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        bool store_pairs,
        float tau,
        MakeHandler&& make_handler) {
    const size_t d = ivf.d, nlist = ivf.nlist;
    const bool by_cells = plan.by_cells();
    const bool by_graph = by_cells && hnsw_of(ivf);
    const size_t width = by_graph ? 0 : by_cells ? nlist : plan.nprobe;
    const size_t block = std::max<size_t>(1, kCoarseBlock / nlist);
    std::vector<float> coarse(std::min(block, n) * width);
    std::vector<idx_t> keys(by_cells ? 0 : coarse.size());
    std::unique_ptr<IndexGMM> policy;
    if (!by_cells && plan.order != ProbeOrder::distance) {
        policy = std::make_unique<IndexGMM>(
                d, nlist, gmm.covariance, ivf.metric_type);
        policy->set_mixture(gmm.mixture());
        policy->policy.order = plan.order;
        policy->policy.probe_mass = plan.probe_mass;
    }

    for (size_t i0 = 0; i0 < n; i0 += block) {
        const size_t nb = std::min(block, n - i0);
        const float* xb = x + i0 * d;
        const double t0 = faiss::getmillisecs();
        if (by_cells && !by_graph) {
            coarse_distances(ivf, nb, xb, coarse.data());
        } else if (!by_cells) {
            // A graph does not find all lists.
            const faiss::Index* const behind =
                    plan.nprobe >= nlist ? hnsw_of(ivf) : nullptr;
            const faiss::Index& quantizer = policy ? *policy
                    : behind                       ? *behind
                                                   : *ivf.quantizer;
            quantizer.search(
                    nb,
                    xb,
                    plan.nprobe,
                    coarse.data(),
                    keys.data(),
                    &quantizer == ivf.quantizer ? plan.quantizer_params
                                                : nullptr);
        }
        const double t1 = faiss::getmillisecs();

        size_t ndis = 0, nlists = 0, nupdates = 0;
        size_t n_cells = 0, n_sketches = 0;
        std::exception_ptr exception; // the first of any thread
#pragma omp parallel if (nb > 1) reduction(+ : ndis, nlists, nupdates, n_cells, n_sketches)
        {
            RunScanner scanner(ivf, plan, store_pairs);
            ListSearcher by_list(gmm, nlist);
            QueryCoarse of_query(ivf, plan.quantizer_params);
            RankedSearcher by_cell(
                    ivf, gmm, plan, CellRanker(gmm.cells, *ivf.invlists));
            RankedSearcher by_sketch(
                    ivf, gmm, plan, SketchRanker(gmm.cells, *ivf.invlists));
            auto handlers = make_handler();
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < nb; i++) {
                const float* q = xb + i * d;
                auto search_one = [&](auto& handler) {
                    if (!finite(q, d)) {
                        return;
                    }
                    scanner.set_query(q);
                    if (by_cells) {
                        const float q_norm = is_ip(ivf)
                                ? std::sqrt(faiss::fvec_norm_L2sqr(q, d))
                                : 0;
                        if (by_graph) {
                            of_query.start_graph(q);
                        } else {
                            of_query.start(&coarse[i * nlist]);
                        }
                        auto ranked = [&](auto& searcher) {
                            return searcher(
                                    scanner, of_query, q_norm, tau, handler);
                        };
                        const Progress progress =
                                plan.order == ProbeOrder::sketch
                                ? ranked(by_sketch)
                                : ranked(by_cell);
                        n_cells += progress.n_cell_scores;
                        n_sketches += progress.n_sketch_scores;
                    } else {
                        by_list(scanner,
                                &keys[i * width],
                                &coarse[i * width],
                                width,
                                handler);
                    }
                    ndis += scanner.n_distances;
                    nlists += scanner.n_lists;
                };
                try {
                    handlers.with_query(i0 + i, search_one);
                } catch (...) {
#pragma omp critical(faiss_ext_search_exception)
                    exception =
                            exception ? exception : std::current_exception();
                }
            }
            nupdates += handlers.n_updates;
        }
        if (exception) {
            std::rethrow_exception(exception);
        }
        const double t2 = faiss::getmillisecs();
        faiss::IndexIVFStats& stats = faiss::indexIVF_stats;
        stats.nq += nb;
        stats.nlist += nlists;
        stats.ndis += ndis;
        stats.nheap_updates += nupdates;
        stats.quantization_time += t1 - t0;
        stats.search_time += t2 - t0;
        ivf_gmm_stats.n_cell_scores += n_cells;
        ivf_gmm_stats.n_sketch_scores += n_sketches;
    }
}

} // namespace

IVFGMMStats ivf_gmm_stats = {};

void IVFGMMStats::reset() {
    *this = {};
}

void gmm_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        float* distances,
        idx_t* labels,
        bool store_pairs) {
    for_each_query(ivf, gmm, plan, n, x, store_pairs, 0, [&]() {
        return KnnHandlers{{ivf, k, nullptr, nullptr}, distances, labels};
    });
}

void gmm_range_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result) {
    using Partial = faiss::RangeSearchPartialResult;
    std::vector<std::unique_ptr<Partial>> partials;
    for_each_query(ivf, gmm, plan, n, x, false, is_ip(ivf) ? 0 : radius, [&]() {
        Partial* partial;
#pragma omp critical(faiss_ext_range_partials)
        {
            partials.push_back(std::make_unique<Partial>(result));
            partial = partials.back().get();
        }
        return RangeHandlers{radius, partial};
    });
    std::vector<Partial*> all;
    for (auto& partial : partials) {
        all.push_back(partial.get());
    }
    Partial::merge(all, false);
}

} // namespace faiss_ext
