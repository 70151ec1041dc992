#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/scan/BestToFront.h"
#include "faiss_ext/scan/CodeScan.h"
#include "faiss_ext/scan/EntryComparer.h"

namespace faiss_ext {

/// An EntryComparer's candidates: entries whose codes are below the threshold,
/// that the selector lets pass and that are not compared yet.
template <class Distances>
class CandidatePool : public EntryComparer<Distances> {
    using Base = EntryComparer<Distances>;

public:
    using Base::Base;
    using Base::exact;
    using Base::hidden;

protected:
    using Base::compare_seen;
    using Base::gmm;
    using Base::is_hidden;
    using Base::limit;
    using Base::most_distances;
    using Base::n_distances;
    using Base::passes;
    using Base::plan;

    void clear_pool() {
        pool.clear();
        n_asked = n_passed = 0;
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

    std::vector<CodeCandidate> pool;
    size_t n_asked = 0, n_passed = 0; ///< by the selector, of this query

private:
    /// Entries, by ask_about_some(), and how many of short lists.
    static constexpr size_t kAsked = 64, kLeastStep = 8;

    BestToFront best_to_front;
};

} // namespace faiss_ext
