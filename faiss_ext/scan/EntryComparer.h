#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/BestToFront.h"
#include "faiss_ext/scan/CodeScan.h"
#include "faiss_ext/scan/RunScanner.h"
#include "faiss_ext/store/passing.h"

namespace faiss_ext {

/** What a query compares: candidates by their codes and the first entries of
 * lists, those that the selector lets pass, as many as it may, none twice.
 *
 * Candidates are entries whose codes are below the threshold, that the selector
 * lets pass and that are not compared yet. Distances and collectors are
 * CodeSearcher's. */
template <class Distances>
class EntryComparer {
public:
    EntryComparer(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in)
            : exact(ivf_in, gmm_in), ivf(ivf_in), gmm(gmm_in), plan(plan_in) {}

    Distances exact;
    /// (list, offset) pairs that the next query must not see, or nullptr
    const std::vector<idx_t>* hidden = nullptr;
    float nearer = 1; ///< see SearchPlan::nearer

protected:
    static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

    template <class Collector>
    void compare(const CodeCandidate& c, Collector& collector) {
        if (passes(c.list, c.entry) && !is_hidden(c.list, c.entry)) {
            compare_seen(c, collector);
        }
    }

    /// One that may be seen.
    template <class Collector>
    void compare_seen(const CodeCandidate& c, Collector& collector) {
        if (n_distances >= most_distances) {
            return;
        }
        n_distances++;
        const idx_t location = faiss::lo_build(c.list, c.entry);
        if (plan.nprobe > 0 || plan.sel) {
            compared.push_back(location);
        }
        collector.offer(exact(c.list, c.entry), location);
    }

    /// What a bound must be below: nothing is nearer than at distance 0.
    template <class Collector>
    float limit(const Collector& collector) const {
        const float t = collector.threshold();
        const bool squares =
                !Distances::of_codes && ivf.metric_type == faiss::METRIC_L2;
        return squares && t <= 0 ? -std::numeric_limits<float>::infinity() : t;
    }

    bool is_hidden(size_t list, size_t entry) const {
        return hidden &&
                std::binary_search(
                        hidden->begin(),
                        hidden->end(),
                        idx_t(faiss::lo_build(list, entry)));
    }

    bool passes(size_t list, size_t entry) {
        if (!plan.sel) {
            return true;
        }
        if (!ids || list_of_ids != list) {
            ids.emplace(ivf.invlists, list);
            list_of_ids = list;
        }
        return plan.sel->is_member((*ids)[entry]);
    }

    void begin_of_list(uint32_t list, size_t most) {
        const size_t size = std::min(most, gmm.cells.list_size(list));
        begins.push_back({list, 0, uint32_t(size)});
    }

    /// Compares the entries of `begins` but those that are compared already.
    template <class Collector>
    void compare_lists(Collector& collector) {
        if constexpr (requires { exact.nearest_of(begins); }) {
            std::sort(compared.begin(), compared.end());
            if (most_distances < kNoLimit) {
                begin_what_may_be_compared();
            }
            for (const auto& [location, distance] : exact.nearest_of(begins)) {
                if (!std::binary_search(
                            compared.begin(), compared.end(), location)) {
                    collector.offer(distance, location);
                }
            }
        } else {
            for (const Run& run : begins) {
                compare_list(run.list, run.end, collector);
            }
        }
    }

    /// Of n candidates those that may be seen.
    void add_to_pool(const std::vector<CodeCandidate>& candidates, size_t n) {
        if (!plan.sel && !hidden) {
            pool.insert(pool.end(), candidates.begin(), candidates.begin() + n);
            return;
        }
        const size_t before = pool.size();
        for (size_t i = 0; i < n; i++) {
            const CodeCandidate& c = candidates[i];
            if (passes(c.list, c.entry) && !is_hidden(c.list, c.entry)) {
                pool.push_back(c);
            }
        }
        n_asked += n;
        n_passed += pool.size() - before;
    }

    /// Asks the selector about some entries of these lists.
    void ask_about_some(const std::vector<Run>& lists) {
        for (const Run& run : lists) {
            const size_t step =
                    std::max(run.end * lists.size() / kAsked, kLeastStep);
            for (size_t entry = 0; entry < run.end; entry += step) {
                n_asked++;
                n_passed += passes(run.list, entry);
            }
        }
    }

    double passing() const { ///< share of the entries asked about
        return (n_passed + 0.5) / (n_asked + 0.5);
    }

    /// Compares the candidates, the best first, and forgets them.
    template <class Collector>
    void compare_best_first(Collector& collector) {
        const size_t left = most_distances - n_distances;
        const bool few = pool.size() > left;
        if (few) {
            std::nth_element(
                    pool.begin(),
                    pool.begin() + left,
                    pool.end(),
                    CodeScan::better);
        }
        const size_t n = few ? left : pool.size();
        if (!Collector::is_range) { // whose threshold stays as it is
            std::sort(pool.begin(), pool.begin() + n, CodeScan::better);
        }
        const size_t ahead = exact.ahead();
        for (size_t i = 0; i < std::min(n, ahead); i++) {
            exact.prefetch(pool[i].list, pool[i].entry);
        }
        for (size_t i = 0; i < n && pool[i].bound < limit(collector); i++) {
            if (i + ahead < n) {
                exact.prefetch(pool[i + ahead].list, pool[i + ahead].entry);
            }
            compare_seen(pool[i], collector);
        }
        pool.clear();
    }

    /// Compares the `most` best candidates; the others stay if they are below
    /// the threshold then.
    template <class Collector>
    void compare_some(size_t most, Collector& collector) {
        const size_t n = best_to_front(pool, most);
        for (size_t i = 0; i < n; i++) {
            exact.prefetch(pool[i].list, pool[i].entry);
        }
        for (size_t i = 0; i < n; i++) {
            if (pool[i].bound < limit(collector)) {
                compare_seen(pool[i], collector);
            }
        }
        collector.tighten();
        size_t kept = 0;
        for (size_t i = n; i < pool.size(); i++) {
            if (pool[i].bound < limit(collector)) {
                pool[kept++] = pool[i];
            }
        }
        pool.resize(kept);
    }

    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const SearchPlan& plan;
    size_t n_distances = 0; ///< of this query
    size_t most_distances = 0;
    std::vector<Run> begins;     ///< of lists, that are compared
    std::vector<idx_t> compared; ///< where compare_lists() may be asked for
    std::vector<CodeCandidate> pool;
    size_t n_asked = 0, n_passed = 0; ///< by the selector, of this query

private:
    /// Entries of a list whose distances are computed together.
    static constexpr size_t kTogether = 64;
    /// Entries, by ask_about_some(), and how many of short lists.
    static constexpr size_t kAsked = 64, kLeastStep = 8;

    /// Replaces `begins` by their entries that are not compared yet and that
    /// the selector lets pass, as many as may still be compared.
    void begin_what_may_be_compared() {
        std::vector<Run> out;
        for (const Run& run : begins) {
            for (uint32_t entry = run.begin; entry < run.end; entry++) {
                const idx_t location = faiss::lo_build(run.list, entry);
                if (n_distances >= most_distances ||
                    std::binary_search(
                            compared.begin(), compared.end(), location) ||
                    !passes(run.list, entry)) {
                    continue;
                }
                n_distances++;
                if (!out.empty() && out.back().list == run.list &&
                    out.back().end == entry) {
                    out.back().end++;
                } else {
                    out.push_back({run.list, entry, entry + 1});
                }
            }
        }
        begins = std::move(out);
    }

    template <class Collector>
    void compare_list(uint32_t list, size_t size, Collector& collector) {
        const std::vector<idx_t> before = sorted_compared(list);
        if (plan.sel || hidden || most_distances < kNoLimit) {
            compare_chosen(list, size, before, collector);
            return;
        }
        auto next = before.begin();
        float distances[kTogether];
        for (size_t begin = 0; begin < size; begin += kTogether) {
            const size_t n = std::min(kTogether, size - begin);
            exact.all(list, begin, n, distances);
            if constexpr (Collector::is_range) {
                if (before.empty()) {
                    n_distances += n;
                    collector.offer_all(list, begin, n, distances);
                    continue;
                }
            }
            for (size_t i = 0; i < n; i++) {
                const idx_t location = faiss::lo_build(list, begin + i);
                if (next != before.end() && *next == location) {
                    next++;
                    continue;
                }
                n_distances++;
                collector.offer(distances[i], location);
            }
        }
    }

    /// Those that pass, are not hidden and not compared `before`, as many as
    /// may be compared.
    template <class Collector>
    void compare_chosen(
            uint32_t list,
            size_t size,
            const std::vector<idx_t>& before,
            Collector& collector) {
        if (n_distances >= most_distances) {
            return;
        }
        const bool tell_apart = hidden || !before.empty();
        const auto is_left_out = [&](uint32_t entry) {
            const idx_t location = faiss::lo_build(list, entry);
            return is_hidden(list, entry) ||
                    std::binary_search(before.begin(), before.end(), location);
        };
        for_passing(
                plan.sel,
                *ivf.invlists,
                list,
                0,
                size,
                [&](uint32_t* entries, size_t n) {
                    const size_t passing = n;
                    if (tell_apart) {
                        n = std::remove_if(entries, entries + n, is_left_out) -
                                entries;
                    }
                    n = std::min(n, most_distances - n_distances);
                    n_distances += n;
                    float distances[kMostTogether];
                    exact.some(list, entries, n, passing, distances);
                    for (size_t i = 0; i < n; i++) {
                        collector.offer(
                                distances[i],
                                faiss::lo_build(list, entries[i]));
                    }
                });
    }

    std::vector<idx_t> sorted_compared(uint32_t list) const {
        std::vector<idx_t> out;
        for (idx_t location : compared) {
            if (faiss::lo_listno(location) == list) {
                out.push_back(location);
            }
        }
        std::sort(out.begin(), out.end());
        return out;
    }

    std::optional<faiss::InvertedLists::ScopedIds> ids; ///< last asked for
    size_t list_of_ids = 0;
    BestToFront best_to_front;
};

} // namespace faiss_ext
