#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/invlists/InvertedLists.h>
#include <faiss/invlists/OnDiskInvertedLists.h>
#include <faiss/utils/Heap.h>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/scan/ExactDistances.h"

namespace faiss_ext {

/// Ids of single entries; straight from arrays where lists are arrays.
struct EntryIds {
    const faiss::InvertedLists* lists;
    const faiss::ArrayInvertedLists* arrays;

    explicit EntryIds(const faiss::InvertedLists* lists_in)
            : lists(lists_in),
              arrays(dynamic_cast<const faiss::ArrayInvertedLists*>(lists_in)) {
    }
    idx_t operator()(idx_t location) const {
        const size_t list = faiss::lo_listno(location);
        const size_t offset = faiss::lo_offset(location);
        return arrays ? arrays->ids[list][offset]
                      : lists->get_single_id(list, offset);
    }
};

/// The k best of one query by FAISS's scanners of whole lists, in FAISS's
/// heaps.
struct HeapCollector {
    const bool similarity;
    const size_t k;
    float* dis = nullptr;
    idx_t* ids = nullptr;
    size_t n_updates = 0;

    float farthest() const { ///< of less than k
        return similarity ? faiss::CMin<float, idx_t>::neutral()
                          : faiss::CMax<float, idx_t>::neutral();
    }
    void begin(float* distances, idx_t* labels) {
        dis = distances;
        ids = labels;
        with_order([&](auto order) {
            faiss::heap_heapify<decltype(order)>(k, dis, ids);
        });
    }
    void operator()(
            const faiss::InvertedListScanner& scanner,
            size_t n,
            const uint8_t* codes,
            const idx_t* code_ids) {
        n_updates += scanner.scan_codes(n, codes, code_ids, dis, ids, k);
    }
    void end() {
        with_order([&](auto order) {
            faiss::heap_reorder<decltype(order)>(k, dis, ids);
        });
    }

private:
    template <class F>
    void with_order(F&& f) {
        if (similarity) {
            f(faiss::CMin<float, idx_t>());
        } else {
            f(faiss::CMax<float, idx_t>());
        }
    }
};

/** The k nearest of one query, offered one by one: distances, or negated inner
 * products, and where the entry is (lo_build).
 *
 * Few in a heap. Many as they come, until they are a quarter too many, and then
 * the best k: a heap would take more time than the distances.
 */
class NearestCollector {
    using Neighbour = std::pair<float, idx_t>; ///< distance, location

public:
    static constexpr bool is_range = false;

    explicit NearestCollector(size_t k)
            : k(k), most(k < kMany ? k : k + std::max(k / 4, kMany)) {
        kept.reserve(most);
    }

    void begin() {
        kept.clear();
        least_far = kNone;
    }

    /// The largest float until there are k; that of a while ago unless
    /// tighten() was called.
    float threshold() const {
        return least_far;
    }
    void tighten() {
        if (kept.size() > k) {
            keep_best();
        }
    }

    void offer(float distance, idx_t location) {
        if (distance < least_far) {
            keep({distance, location});
        }
    }

    /** The k nearest, sorted; infinity and -1 for those that there are not.
     *
     * @param to_ids  gives ids in the place of locations, or nullptr
     */
    void end(
            bool similarity,
            const faiss::InvertedLists* to_ids,
            float* dis,
            idx_t* ids) {
        tighten();
        std::sort(kept.begin(), kept.end());
        if (auto disk =
                    dynamic_cast<const faiss::OnDiskInvertedLists*>(to_ids)) {
            for (const auto& [distance, at] : kept) {
                read_ahead(
                        disk->get_ids(faiss::lo_listno(at)) +
                                faiss::lo_offset(at),
                        sizeof(idx_t));
            }
        }
        const EntryIds id_of(to_ids);
        size_t i = 0;
        for (const auto& [distance, at] : kept) {
            dis[i] = similarity ? -distance : distance;
            ids[i] = to_ids ? id_of(at) : at;
            i++;
        }
        std::fill(dis + i, dis + k, similarity ? -kNone : kNone);
        std::fill(ids + i, ids + k, -1);
    }

    const size_t k;
    size_t n_updates = 0;

private:
    static constexpr float kNone = std::numeric_limits<float>::max();
    static constexpr size_t kMany = 64;

    void keep(const Neighbour& neighbour) {
        n_updates++;
        if (k < kMany && kept.size() == k) {
            replace_farthest(neighbour);
            return;
        }
        kept.push_back(neighbour);
        if (kept.size() == k) {
            std::make_heap(kept.begin(), kept.end());
            least_far = kept.front().first;
        } else if (kept.size() == most) {
            keep_best();
        }
    }

    /// In one pass down the heap, where pop and push are two.
    void replace_farthest(const Neighbour& neighbour) {
        size_t at = 0;
        for (size_t child; (child = 2 * at + 1) < k; at = child) {
            if (child + 1 < k && kept[child] < kept[child + 1]) {
                child++;
            }
            if (!(neighbour < kept[child])) {
                break;
            }
            kept[at] = kept[child];
        }
        kept[at] = neighbour;
        least_far = kept.front().first;
    }

    void keep_best() {
        std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end());
        kept.resize(k);
        least_far = kept.back().first;
    }

    const size_t most;
    float least_far = kNone;
    std::vector<Neighbour> kept;
};

/// Whatever is within the radius, by either way.
struct RangeCollector {
    static constexpr bool is_range = true;
    const bool similarity;
    const float radius;
    const EntryIds id_of;
    faiss::RangeSearchPartialResult* partial;
    faiss::RangeQueryResult* result = nullptr;
    size_t buffers_before = 0, written_before = 0; ///< of the query

    /// Forgets what the query has found, if it was the last; whether it was.
    bool begin(idx_t query) {
        auto& p = *partial;
        const bool again = result && result->qno == query;
        if (again) {
            for (size_t b = buffers_before; b < p.buffers.size(); b++) {
                delete[] p.buffers[b].ids;
                delete[] p.buffers[b].dis;
            }
            p.buffers.resize(buffers_before);
            p.wp = written_before;
            p.queries.pop_back();
        }
        buffers_before = p.buffers.size();
        written_before = p.wp;
        result = &p.new_result(query);
        return again;
    }

    void operator()(
            const faiss::InvertedListScanner& scanner,
            size_t n,
            const uint8_t* codes,
            const idx_t* ids) {
        scanner.scan_codes_range(n, codes, ids, radius, *result);
    }
    float threshold() const {
        return similarity ? -radius : radius;
    }
    size_t n_found() const {
        return result->nres;
    }
    void tighten() {}
    void offer(float distance, idx_t location) {
        if (distance < threshold()) {
            result->add(similarity ? -distance : distance, id_of(location));
        }
    }
    /// n consecutive entries of a list.
    void offer_all(
            size_t list, size_t begin, size_t n, const float* distances) {
        const float limit = threshold();
        for (size_t i = 0; i < n; i++) {
            if (distances[i] < limit) {
                result->add(
                        similarity ? -distances[i] : distances[i],
                        id_of(faiss::lo_build(list, begin + i)));
            }
        }
    }
};

/// Without one search finds nothing.
inline bool finite(const float* x, size_t d) {
    float sum = 0;
    for (size_t j = 0; j < d; j++) {
        sum += x[j] * 0; // NaN for NaN and for infinities
    }
    return sum == 0;
}

} // namespace faiss_ext
