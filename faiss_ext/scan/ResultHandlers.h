#pragma once

#include <cmath>
#include <cstddef>
#include <optional>

#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/collectors.h"

/// Collectors with the places that their results go to, one for each thread:
/// with_query(i, f) runs f(collector) for query i of the call.
namespace faiss_ext {

/// The k nearest of whole lists, to arrays of the call.
struct HeapHandlers {
    HeapCollector collector;
    float* distances;
    idx_t* labels;

    size_t n_updates() const {
        return collector.n_updates;
    }
    /// How many lists query i wants, which has searched so many.
    ///
    /// @param within  whether a list that it has not is within the plan's reach
    ///                of a distance, the k-th
    template <class Within>
    size_t lists_wanted(
            const SearchPlan& plan,
            size_t i,
            size_t lists,
            Within&& within) const {
        const float kth = distances[i * collector.k + collector.k - 1];
        // ids may be negative
        return plan.lists_wanted(
                lists, kth == collector.farthest(), within(kth));
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        const size_t k = collector.k;
        collector.begin(distances + i * k, labels + i * k);
        f(collector);
        collector.end();
    }
};

/// The k nearest by codes, to arrays of the call.
struct NearestHandlers {
    NearestCollector collector;
    const bool similarity;
    float* distances;
    idx_t* labels;
    const faiss::InvertedLists* to_ids; ///< or nullptr

    size_t k() const {
        return collector.k;
    }
    size_t n_updates() const {
        return collector.n_updates;
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        collector.begin();
        f(collector);
        collector.end(
                similarity, to_ids, distances + i * k(), labels + i * k());
    }
};

/// All within a radius.
struct RangeHandlers {
    RangeCollector collector;
    std::optional<RangeProgress> progress = {}; ///< of whole lists

    size_t k() const {
        return 1;
    }
    size_t n_updates() const {
        return 0;
    }
    template <class Within>
    size_t lists_wanted(
            const SearchPlan& plan, size_t, size_t lists, Within&&) {
        if (!progress) {
            progress.emplace(plan.range);
        }
        return size_t(std::ceil(
                progress->wanted(double(lists), double(collector.n_found()))));
    }
    template <class F>
    void with_query(size_t i, F&& f) {
        if (!collector.begin(idx_t(i))) {
            progress.reset();
        }
        f(collector);
    }
};

} // namespace faiss_ext
