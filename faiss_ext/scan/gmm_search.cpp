#include "faiss_ext/scan/gmm_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <type_traits>

#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/utils/utils.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/Queries.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/CodeSearcher.h"
#include "faiss_ext/scan/ExactDistances.h"
#include "faiss_ext/scan/ListSearcher.h"
#include "faiss_ext/scan/QueryOrder.h"
#include "faiss_ext/scan/ResultHandlers.h"
#include "faiss_ext/scan/RunScanner.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// Adds to a statistic; searches run side by side.
template <class T>
void count(T& statistic, std::type_identity_t<T> n) {
    std::atomic_ref<T>(statistic).fetch_add(n, std::memory_order_relaxed);
}

/// One thread's searches of whole lists, of queries whose lists are known.
template <class Handlers>
struct ListSearches {
    const IVFGMM& gmm;
    const SearchPlan& plan;
    RunScanner scanner;
    ListSearcher searcher;
    Handlers handlers;
    const ProbedLists& lists;
    const size_t first; ///< of the call's queries

    template <class Number>
    void operator()(
            size_t n, const float* x, Number number, SearchCounts& counts) {
        const size_t d = scanner.ivf.d;
        for (size_t i = 0; i < n; i++) {
            const float* q = x + i * d;
            const size_t query = number(i);
            search(first + query, q, lists, query, counts);
            if (!finite(q, d)) {
                continue;
            }
            if (plan.beyond) {
                (*plan.beyond)[first + query] = lists.beyond[query];
            }
            search_further(first + query, q, query, counts);
        }
    }

private:
    /// All lists that the query wants beyond its row of `lists`.
    void search_further(
            size_t query, const float* q, size_t row, SearchCounts& counts) {
        SearchPlan further = plan;
        further.nprobe = lists.begins[row + 1] - lists.begins[row];
        const float reach = plan.nearer && !plan.nearer->empty()
                ? plan.reach * (*plan.nearer)[query]
                : plan.reach;
        float beyond = lists.beyond[row];
        const auto within = [&](float kth) {
            return reach > 0 &&
                    beyond < reach * in_coarse_units(scanner.ivf, gmm, q, kth);
        };
        for (size_t wanted; further.nprobe < scanner.ivf.nlist &&
             (wanted = handlers.lists_wanted(
                      plan, query, further.nprobe, within)) > further.nprobe;) {
            further.nprobe = std::min(wanted, scanner.ivf.nlist);
            const ProbedLists more =
                    probe_lists(scanner.ivf, gmm, further, 1, q);
            search(query, q, more, 0, counts);
            beyond = more.beyond[0];
        }
    }

    /// @param row  of the query in `probed`
    void search(
            size_t query,
            const float* q,
            const ProbedLists& probed,
            size_t row,
            SearchCounts& counts) {
        handlers.with_query(query, [&](auto& collector) {
            if (!finite(q, scanner.ivf.d)) {
                return;
            }
            scanner.set_query(q);
            const size_t begin = probed.begins[row];
            searcher(
                    scanner,
                    &probed.keys[begin],
                    &probed.coarse[begin],
                    probed.begins[row + 1] - begin,
                    collector);
            counts.distances += scanner.n_distances;
            counts.lists += scanner.n_lists;
        });
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

    template <class Number>
    void operator()(
            size_t n, const float* x, Number number, SearchCounts& counts) {
        const size_t d = ivf.d;
        queries.start(gmm.cells.codes, n, x);
        for (size_t i = 0; i < n; i++) {
            const float* q = x + i * d;
            handlers.with_query(number(i), [&](auto& collector) {
                if (!finite(q, d)) {
                    return;
                }
                queries.choose(i, q);
                if (plan.hidden) {
                    searcher.hidden = &(*plan.hidden)[number(i)];
                    searcher.nearer = (*plan.nearer)[number(i)];
                }
                searcher(
                        q,
                        queries.rotated(i),
                        queries.coarse,
                        queries.norm(i),
                        handlers.k(),
                        collector);
                if (plan.beyond) {
                    (*plan.beyond)[number(i)] = searcher.beyond;
                }
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
    const QueryOrder& order;
    SearchCounts counts = {};
    std::vector<float> together = {}; ///< a block's queries

    void operator()(size_t b) {
        check_interrupt();
        const size_t begin = b * block, count = std::min(block, n - begin);
        if (order.as_they_come()) {
            searches(
                    count,
                    x + begin * d,
                    [&](size_t i) { return begin + i; },
                    counts);
            return;
        }
        const uint32_t* numbers = &order.numbers[begin];
        together.resize(count * d);
        for (size_t i = 0; i < count; i++) {
            std::copy_n(x + numbers[i] * d, d, &together[i * d]);
        }
        searches(
                count,
                together.data(),
                [&](size_t i) { return size_t(numbers[i]); },
                counts);
    }
};

/// Runs make_searches()(n, x, number, counts) over blocks of queries in
/// parallel: query i of a block is query number(i) of the call.
template <class MakeSearches>
SearchCounts in_parallel(
        size_t d,
        size_t n,
        const float* x,
        const QueryOrder& order,
        MakeSearches&& make_searches) {
    using Worker = SearchWorker<decltype(make_searches())>;
    const size_t block = std::clamp<size_t>(
            n / (4 * size_t(omp_get_max_threads())), 1, kQueryBlock);
    const size_t n_blocks = (n + block - 1) / block;
    SearchCounts counts;
    gmm::parallel_workers(
            n_blocks,
            n_blocks > 1,
            [&] {
                return Worker{make_searches(), d, n, block, x, order};
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
    const QueryOrder order(ivf, gmm.cells.codes, n, x);
    const auto by = [&]<class Searcher>(std::type_identity<Searcher>) {
        return in_parallel(ivf.d, n, x, order, [&] {
            return CodeSearches<Searcher, Handlers>(
                    ivf, gmm, plan, make_handlers());
        });
    };
    return has_vectors(ivf)
            ? by(std::type_identity<CodeSearcher<ExactDistances>>())
            : by(std::type_identity<CodeSearcher<CodeDistances>>());
}

/// Lists of all queries together, whose numbers are kept at a time: 48 MB.
constexpr size_t kProbes = size_t(4) << 20;
/// Queries that are searched at once, however many lists each may look at.
constexpr size_t kFewQueries = 512;

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
    SearchCounts counts;
    // Queries from elsewhere are given all lists: few at a time may be.
    size_t block = std::max<size_t>(1, kProbes / plan.nprobe);
    if (std::isfinite(plan.farthest)) {
        block = std::min(block, std::max(kProbes / ivf.nlist, kFewQueries));
    }
    for (size_t begin = 0; begin < n; begin += block) {
        const size_t n_block = std::min(block, n - begin);
        const float* const queries = x + begin * ivf.d;
        const double t0 = faiss::getmillisecs();
        const ProbedLists lists = probe_lists(ivf, gmm, plan, n_block, queries);
        count(faiss::indexIVF_stats.quantization_time,
              faiss::getmillisecs() - t0);
        counts += in_parallel(ivf.d, n_block, queries, QueryOrder(), [&] {
            return ListSearches<Handlers>{
                    gmm,
                    plan,
                    RunScanner(ivf, plan, store_pairs),
                    ListSearcher(gmm, ivf.nlist),
                    make_handlers(),
                    lists,
                    begin};
        });
    }
    return counts;
}

/// Runs search() and adds what it counted and how long it took.
template <class Search>
SearchCounts counted(size_t n, Search&& search) {
    const double t0 = faiss::getmillisecs();
    const SearchCounts counts = search();
    faiss::IndexIVFStats& stats = faiss::indexIVF_stats;
    count(stats.nq, n);
    count(stats.nlist, counts.lists);
    count(stats.ndis, counts.distances);
    count(stats.nheap_updates, counts.updates);
    count(stats.search_time, faiss::getmillisecs() - t0);
    count(ivf_gmm_stats.n_cell_scores, counts.cells);
    count(ivf_gmm_stats.n_codes, counts.codes);
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
