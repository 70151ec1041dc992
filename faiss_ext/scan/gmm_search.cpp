#include "faiss_ext/scan/gmm_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <type_traits>

#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>
#include <faiss/utils/utils.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/Queries.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/CodeSearcher.h"
#include "faiss_ext/scan/ExactDistances.h"
#include "faiss_ext/scan/RunScanner.h"
#include "faiss_ext/scan/collectors.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// One thread's searches with k results each, of whole lists.
struct HeapHandlers {
    HeapCollector collector;
    float* distances;
    idx_t* labels;

    size_t n_updates() const {
        return collector.n_updates;
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        const size_t k = collector.k;
        collector.begin(distances + i * k, labels + i * k);
        f(collector);
        collector.end();
    }
};

/// The same by codes.
struct NearestHandlers {
    NearestCollector collector;
    const size_t n_wanted;
    const bool similarity;
    float* distances;
    idx_t* labels;
    const faiss::InvertedLists* to_ids; ///< or nullptr

    size_t k() const {
        return n_wanted;
    }
    size_t n_updates() const {
        return collector.n_updates;
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        collector.begin();
        f(collector);
        collector.end(
                similarity,
                to_ids,
                distances + i * n_wanted,
                labels + i * n_wanted);
    }
};

struct RangeHandlers {
    RangeCollector collector;

    size_t k() const {
        return 1;
    }
    size_t n_updates() const {
        return 0;
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        collector.result = &collector.partial->new_result(i);
        f(collector);
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
            const size_t known = known_size(list);
            if (n < known) {
                throw_shortened(list, n, known, false);
            }
            if (n == 0) {
                continue;
            }
            runs.clear();
            if (gmm.earlier_lists.empty()) {
                runs.push_back({uint32_t(list), 0, uint32_t(n)});
            } else {
                runs_without_copies(list, n, known);
            }
            scanner.scan_runs(
                    runs.data(),
                    runs.size(),
                    [&](size_t) { return coarse[p]; },
                    handler);
        }
    }

private:
    /// Entries of which it is known whether they are copies.
    size_t known_size(size_t list) const {
        return gmm.earlier_lists.empty()
                ? 0
                : gmm.earlier_lists[list].size() / (gmm.max_assign - 1);
    }

    void runs_without_copies(size_t list, size_t n, size_t known) {
        const size_t width = gmm.max_assign - 1;
        const int32_t* earlier = gmm.earlier_lists[list].data();
        for (size_t j = 0; j < n; j++) {
            bool skip = false;
            for (size_t w = 0; w < width && j < known; w++) {
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

/// One thread's searches of whole lists, of queries whose lists are known.
template <class Handlers>
struct ListSearches {
    RunScanner scanner;
    ListSearcher searcher;
    Handlers handlers;
    const size_t nprobe;
    const idx_t* keys;
    const float* coarse;

    void operator()(size_t i0, size_t n, const float* x, SearchCounts& counts) {
        const size_t d = scanner.ivf.d;
        for (size_t i = 0; i < n; i++) {
            const float* q = x + i * d;
            handlers.with_query(i0 + i, [&](auto& collector) {
                if (!finite(q, d)) {
                    return;
                }
                scanner.set_query(q);
                searcher(
                        scanner,
                        keys + (i0 + i) * nprobe,
                        coarse + (i0 + i) * nprobe,
                        nprobe,
                        collector);
                counts.distances += scanner.n_distances;
                counts.lists += scanner.n_lists;
            });
        }
    }
};

/// One thread's searches by codes.
template <class Searcher, class Handlers>
struct CodeSearches {
    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const SearchPlan& plan;
    Queries queries;
    Searcher searcher;
    Handlers handlers;

    CodeSearches(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in,
            Handlers handlers_in)
            : ivf(ivf_in), gmm(gmm_in), plan(plan_in),
              queries(ivf_in, plan_in.quantizer_params),
              searcher(ivf_in, gmm_in, plan_in), handlers(handlers_in) {}

    void operator()(size_t i0, size_t n, const float* x, SearchCounts& counts) {
        const size_t d = ivf.d;
        queries.start(gmm.cells.codes, n, x);
        for (size_t i = 0; i < n; i++) {
            const float* q = x + i * d;
            handlers.with_query(i0 + i, [&](auto& collector) {
                if (!finite(q, d)) {
                    return;
                }
                queries.choose(i, q);
                searcher.hidden =
                        plan.hidden ? &(*plan.hidden)[i0 + i] : nullptr;
                searcher(
                        q,
                        queries.rotated(i),
                        queries.coarse,
                        queries.norm(i),
                        handlers.k(),
                        collector);
                counts.distances += searcher.n_compared();
                counts.cells += searcher.n_cells;
                counts.codes += searcher.n_codes();
            });
        }
    }
};

/// One thread's searches, of one block of queries after the other.
template <class Searches>
struct SearchWorker {
    Searches searches;
    const size_t d, n, block;
    const float* x;
    SearchCounts counts;

    void operator()(size_t b) {
        check_interrupt();
        const size_t i = b * block;
        searches(i, std::min(block, n - i), x + i * d, counts);
    }
};

/// Runs make_searches()(i0, n, x, counts) over blocks of queries in parallel.
template <class MakeSearches>
SearchCounts in_parallel(
        size_t d, size_t n, const float* x, MakeSearches&& make_searches) {
    using Worker = SearchWorker<decltype(make_searches())>;
    const size_t block = std::clamp<size_t>(
            n / (4 * size_t(omp_get_max_threads())), 1, kQueryBlock);
    const size_t n_blocks = (n + block - 1) / block;
    SearchCounts counts;
    gmm::parallel_workers(
            n_blocks,
            n_blocks > 1,
            [&] {
                return Worker{make_searches(), d, n, block, x, {}};
            },
            [&](Worker& worker) {
                counts += worker.counts;
                counts.updates += worker.searches.handlers.n_updates();
            });
    return counts;
}

/** Searches all queries by codes. make_handlers() gives what collects a
 * thread's results; a query that is not finite gets an empty one. */
template <class MakeHandlers>
SearchCounts search_codes(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        MakeHandlers&& make_handlers) {
    using Handlers = decltype(make_handlers());
    const auto by = [&]<class Searcher>(std::type_identity<Searcher>) {
        return in_parallel(ivf.d, n, x, [&] {
            return CodeSearches<Searcher, Handlers>(
                    ivf, gmm, plan, make_handlers());
        });
    };
    return has_vectors(ivf)
            ? by(std::type_identity<CodeSearcher<ExactDistances>>())
            : by(std::type_identity<CodeSearcher<CodeDistances>>());
}

/// The same of whole lists.
template <class MakeHandlers>
SearchCounts search_lists(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        bool store_pairs,
        MakeHandlers&& make_handlers) {
    using Handlers = decltype(make_handlers());
    const double t0 = faiss::getmillisecs();
    std::vector<float> coarse(n * plan.nprobe);
    std::vector<idx_t> keys(coarse.size());
    probe(ivf, gmm, plan, n, x, coarse.data(), keys.data());
    faiss::indexIVF_stats.quantization_time += faiss::getmillisecs() - t0;
    return in_parallel(ivf.d, n, x, [&] {
        return ListSearches<Handlers>{
                RunScanner(ivf, plan, store_pairs),
                ListSearcher(gmm, ivf.nlist),
                make_handlers(),
                plan.nprobe,
                keys.data(),
                coarse.data()};
    });
}

/// Runs search() and adds what it counted and how long it took.
template <class Search>
SearchCounts counted(size_t n, Search&& search) {
    const double t0 = faiss::getmillisecs();
    const SearchCounts counts = search();
    faiss::IndexIVFStats& stats = faiss::indexIVF_stats;
    stats.nq += n;
    stats.nlist += counts.lists;
    stats.ndis += counts.distances;
    stats.nheap_updates += counts.updates;
    stats.search_time += faiss::getmillisecs() - t0;
    ivf_gmm_stats.n_cell_scores += counts.cells;
    ivf_gmm_stats.n_codes += counts.codes;
    return counts;
}

} // namespace

IVFGMMStats ivf_gmm_stats = {};

void IVFGMMStats::reset() {
    *this = {};
}

SearchCounts gmm_search(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        float* distances,
        idx_t* labels,
        bool store_pairs) {
    return counted(n, [&] {
        return plan.by_codes
                ? search_codes(
                          ivf,
                          gmm,
                          plan,
                          n,
                          x,
                          [&] {
                              return NearestHandlers{
                                      NearestCollector(k),
                                      k,
                                      is_ip(ivf),
                                      distances,
                                      labels,
                                      store_pairs ? nullptr : ivf.invlists};
                          })
                : search_lists(ivf, gmm, plan, n, x, store_pairs, [&] {
                      return HeapHandlers{{is_ip(ivf), k}, distances, labels};
                  });
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
    std::mutex growing;
    const auto make_handlers = [&] {
        auto own = std::make_unique<Partial>(result);
        const std::lock_guard<std::mutex> lock(growing);
        partials.push_back(std::move(own));
        Partial* partial = partials.back().get();
        return RangeHandlers{
                {is_ip(ivf), radius, EntryIds(ivf.invlists), partial}};
    };
    counted(n, [&] {
        return plan.by_codes
                ? search_codes(ivf, gmm, plan, n, x, make_handlers)
                : search_lists(ivf, gmm, plan, n, x, false, make_handlers);
    });
    std::vector<Partial*> all;
    for (auto& partial : partials) {
        all.push_back(partial.get());
    }
    Partial::merge(all, false);
}

} // namespace faiss_ext
