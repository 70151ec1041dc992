#include "faiss_ext/impl/CellRanker.h"

#include <algorithm>
#include <cmath>

#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// The z of Calibration.h for cells with squared distances s and variances v.
FAISS_EXT_SIMD_CLONES
void posterior_keys(
        const float* __restrict s,
        const float* __restrict v,
        float tau,
        size_t n,
        float* __restrict out) {
    for (size_t l = 0; l < n; l++) {
        // in units of v, so that no product overflows
        const float u = 1 / v[l];
        out[l] = ((s[l] - tau) * u + 1) / std::sqrt(4 * s[l] * u + 2);
    }
}

constexpr size_t kBuckets = 512;

/// Orders items by the bucket of their key, in O(n + kBuckets).
template <class Item>
void bucket_sort(Item* items, size_t n, std::vector<Item>& scratch) {
    if (n < 2) {
        return;
    }
    float low = items[0].key, high = low;
    for (size_t i = 1; i < n; i++) {
        low = std::min(low, items[i].key);
        high = std::max(high, items[i].key);
    }
    if (!(high > low)) {
        return;
    }
    const float scale = (kBuckets - 1) / (high - low);
    auto bucket = [&](float key) {
        const float b = (key - low) * scale; // NaN if high is infinite
        return b > 0 ? std::min(size_t(b), kBuckets - 1) : 0;
    };
    size_t begin[kBuckets + 1] = {};
    for (size_t i = 0; i < n; i++) {
        begin[bucket(items[i].key) + 1]++;
    }
    for (size_t b = 0; b < kBuckets; b++) {
        begin[b + 1] += begin[b];
    }
    scratch.assign(items, items + n);
    for (const Item& item : scratch) {
        items[begin[bucket(item.key)]++] = item;
    }
}

} // namespace

CellRanker::CellRanker(
        const PairCells& cells_in, const faiss::InvertedLists& lists_in)
        : cells(cells_in), lists(lists_in) {
    scores.resize(cells.cells_per_list + 1);
    keys.resize(cells.cells_per_list + 1);
}

void CellRanker::start(
        const float* distances_in,
        bool similarity_in,
        bool posterior_in,
        float tau_in) {
    distances = distances_in;
    similarity = similarity_in;
    posterior = posterior_in;
    tau = tau_in;
    entries_scored = next_home = next_item = 0;
    progress = Progress();
    pool.clear();
    homes.resize(cells.nlist);
    for (size_t i = 0; i < cells.nlist; i++) {
        homes[i] = {distances[i], uint32_t(i), 0};
    }
    bucket_sort(homes.data(), homes.size(), scratch);
}

void CellRanker::score_home(size_t list) {
    const size_t L = cells.cells_per_list;
    const size_t list_size = lists.list_size(list);
    entries_scored += list_size;
    if (list_size == 0) {
        return;
    }
    cells.score(list, distances, similarity, scores.data());
    const float* key = scores.data();
    if (posterior) {
        posterior_keys(
                scores.data(),
                &cells.variance[list * (L + 1)],
                tau,
                L + 1,
                keys.data());
        key = keys.data();
    }
    progress.n_cell_scores += L;
    const uint32_t* offset = cells.list_offsets(list);
    for (size_t l = 0; l <= L; l++) {
        const size_t end = l < L ? offset[l + 1] : list_size;
        if (end > offset[l]) {
            pool.push_back({key[l], uint32_t(list * (L + 1) + l), scores[l]});
        }
    }
}

void CellRanker::extend(size_t entries_wanted) {
    pool.erase(pool.begin(), pool.begin() + next_item);
    next_item = 0;
    while (next_home < homes.size() && entries_scored < entries_wanted) {
        score_home(homes[next_home++].id);
    }
    bucket_sort(pool.data(), pool.size(), scratch);
}

bool CellRanker::advance(size_t target, std::vector<Run>& runs) {
    const size_t L = cells.cells_per_list;
    runs.clear();
    while (progress.entries < target) {
        const bool homes_left = next_home < homes.size();
        if (homes_left && entries_scored < kHomesFactor * target) {
            extend(std::max(kHomesFactor * target, 2 * entries_scored));
        }
        if (next_item == pool.size()) {
            if (next_home == homes.size()) {
                break;
            }
            continue; // the homes scored so far were empty
        }
        const Item& item = pool[next_item++];
        if (progress.entries == 0) {
            progress.first_score = item.score;
        }
        const size_t list = item.id / (L + 1), l = item.id % (L + 1);
        const auto [begin, end] = cells.range(list, l, lists.list_size(list));
        runs.push_back({uint32_t(list), uint32_t(begin), uint32_t(end)});
        progress.entries += end - begin;
        progress.last_score = item.score;
        progress.frontier = item.score + cells.variance[item.id];
    }
    std::sort(runs.begin(), runs.end(), [](const Run& p, const Run& q) {
        return p.list != q.list ? p.list < q.list : p.begin < q.begin;
    });
    size_t kept = 0;
    for (const Run& run : runs) {
        if (kept > 0 && runs[kept - 1].list == run.list &&
            runs[kept - 1].end == run.begin) {
            runs[kept - 1].end = run.end;
        } else {
            runs[kept++] = run;
        }
    }
    runs.resize(kept);
    return kept > 0;
}

} // namespace faiss_ext
