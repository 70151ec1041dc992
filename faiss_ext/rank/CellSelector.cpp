#include "faiss_ext/rank/CellSelector.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

constexpr size_t kListBuckets = 256;

/// Of values from least to largest: value to bucket below n.
float bucket_scale(float least, float largest, size_t n) {
    const float width = largest - least;
    return width > 0 && std::isfinite(width) ? (n - 0.01f) / width : 0;
}

float bucket_width(float least, float largest, size_t n) {
    const float scale = bucket_scale(least, largest, n);
    return scale > 0 ? 1 / scale : 0;
}

/// So many of the first buckets of lists have what is wanted, if list i has
/// held(i).
template <class Held>
size_t buckets_that_hold(
        size_t wanted, const std::vector<uint16_t>& list_bucket, Held held) {
    std::array<uint32_t, kListBuckets> held_by = {};
    for (size_t i = 0; i < list_bucket.size(); i++) {
        held_by[list_bucket[i]] += held(i);
    }
    size_t all = 0, n = 0;
    while (n < kListBuckets && all < wanted) {
        all += held_by[n++];
    }
    return n;
}

size_t buckets_of_lists(
        size_t lists, const std::vector<uint16_t>& list_bucket) {
    return buckets_that_hold(lists, list_bucket, [](size_t) { return 1; });
}

} // namespace

CellSelector::CellSelector(
        const PairCells& cells_in, const faiss::InvertedLists& lists)
        : cells(cells_in), codes(cells_in.codes), L(cells_in.cells_per_list),
          sizes(cells_in.nlist), list_bucket(cells_in.nlist) {
    // Asking each list for its size takes 5 % of a single query's time.
    const auto* arrays = dynamic_cast<const faiss::ArrayInvertedLists*>(&lists);
    for (size_t i = 0; i < sizes.size(); i++) {
        const size_t n = arrays ? arrays->ids[i].size() : lists.list_size(i);
        const size_t known = cells.list_size(i);
        sizes[i] = uint32_t(known);
        if (n == known) {
            continue;
        }
        if (lists.code_size == 0) {
            check_all_coded(i, n, known);
        } else {
            check_not_shortened(i, n, known, true);
            untracked.push_back({uint32_t(i), uint32_t(known), uint32_t(n)});
        }
    }
}

void CellSelector::start(QueryCoarse& coarse_in, size_t forced_in) {
    coarse = &coarse_in;
    n_forced = forced_in;
    lists_up_to = 0;
    forced_distance = -1;
    ties = 0;
    lists_left = cells.nlist;
    n_lists = n_entries = 0;
    list_of.clear();
    portion.clear();
    forced.clear();
    scores.clear();
    least = std::numeric_limits<float>::infinity();
    largest = -least;
    if (!coarse->by_graph()) {
        best_code_kernels().buckets(
                cells.nlist,
                coarse->distances,
                coarse->least,
                bucket_scale(coarse->least, coarse->largest, kListBuckets),
                kListBuckets - 1,
                list_bucket.data());
    }
}

void CellSelector::score_list(size_t list, bool first) {
    n_lists++;
    lists_left--;
    if (sizes[list] == 0) {
        return;
    }
    n_entries += sizes[list];
    list_of.push_back(uint32_t(list));
    forced.push_back(first);
    scores.resize(list_of.size() * L);
    coarse->need(cells.partners(list), L);
    const float a = cells.a[list];
    best_code_kernels().score_cells(
            L,
            coarse->distances,
            cells.partners(list),
            cells.gaps(list),
            a,
            (1 - a) * coarse->distances[list],
            codes.similarity ? 0 : a * (1 - a),
            &scores[scores.size() - L],
            &least,
            &largest);
}

size_t CellSelector::find_forced() {
    const size_t up_to = buckets_of_lists(n_forced, list_bucket);
    nearest_of.clear();
    for (size_t i = 0; i < sizes.size(); i++) {
        if (list_bucket[i] < up_to) {
            nearest_of.push_back(coarse->distances[i]);
        }
    }
    const size_t last = std::min(n_forced, nearest_of.size()) - 1;
    std::nth_element(
            nearest_of.begin(), nearest_of.begin() + last, nearest_of.end());
    forced_distance = nearest_of[last];
    const size_t below = std::count_if(
            nearest_of.begin(), nearest_of.end(), [&](float distance) {
                return distance < forced_distance;
            });
    ties = int64_t(last + 1 - below);
    return up_to;
}

void CellSelector::nearest_lists(size_t lists, std::vector<uint32_t>& out) {
    const size_t up_to = buckets_of_lists(lists, list_bucket);
    in_order.clear();
    for (size_t i = 0; i < sizes.size(); i++) {
        if (list_bucket[i] < up_to) {
            in_order.push_back({coarse->distances[i], uint32_t(i)});
        }
    }
    std::sort(in_order.begin(), in_order.end());
    in_order.resize(std::min(lists, in_order.size()));
    out.clear();
    for (const auto& [distance, list] : in_order) {
        out.push_back(list);
    }
}

void CellSelector::score(size_t entries) {
    if (coarse->by_graph()) {
        while ((n_entries < entries || n_lists < n_forced) &&
               coarse->more_lists(portion)) {
            for (uint32_t list : portion) {
                score_list(list, n_lists < n_forced);
            }
        }
    } else if (lists_left > 0) {
        size_t up_to = buckets_that_hold(
                entries, list_bucket, [&](size_t i) { return sizes[i]; });
        if (lists_up_to == 0 && n_forced > 0) {
            up_to = std::max(up_to, find_forced());
        }
        if (up_to > lists_up_to) {
            portion.resize(sizes.size());
            portion.resize(best_code_kernels().places(
                    sizes.size(),
                    list_bucket.data(),
                    uint16_t(lists_up_to),
                    uint16_t(up_to - 1 - lists_up_to),
                    portion.data()));
            for (uint32_t i : portion) {
                const float distance = coarse->distances[i];
                const bool first = distance < forced_distance ||
                        (distance == forced_distance && ties-- > 0);
                score_list(i, first);
            }
            lists_up_to = up_to;
        }
    }
    count();
}

void CellSelector::score_beyond(size_t entries, size_t first) {
    const std::vector<uint16_t> before = bucket;
    score(entries);
    for (size_t i = 0; i < list_of.size(); i++) {
        const uint32_t* offset = cells.list_offsets(list_of[i]);
        for (size_t cell = i * L; cell < (i + 1) * L; cell++) {
            const bool done = cell < before.size() && before[cell] < first;
            const uint16_t to = done ? 0 : std::max<uint16_t>(bucket[cell], 1);
            const uint32_t n = offset[cell - i * L + 1] - offset[cell - i * L];
            entries_in[bucket[cell]] -= n;
            entries_in[to] += n;
            bucket[cell] = to;
        }
    }
}

void CellSelector::count() {
    // cells are between means
    largest = coarse->by_graph()
            ? usual_largest(scores.size(), scores.data(), least, largest)
            : std::min(largest, coarse->largest);
    bucket.resize(scores.size());
    best_code_kernels().buckets(
            scores.size(),
            scores.data(),
            least,
            bucket_scale(least, largest, kBuckets),
            kBuckets - 1,
            bucket.data());
    std::array<uint32_t, kBuckets> odd = {};
    entries_in = {};
    for (size_t i = 0; i < list_of.size(); i++) {
        const uint32_t* offset = cells.list_offsets(list_of[i]);
        const uint16_t* b = &bucket[i * L];
        size_t l = 0;
        for (; l + 2 <= L; l += 2) { // neighbours often share a bucket
            entries_in[b[l]] += offset[l + 1] - offset[l];
            odd[b[l + 1]] += offset[l + 2] - offset[l + 1];
        }
        if (l < L) {
            entries_in[b[l]] += offset[l + 1] - offset[l];
        }
    }
    for (size_t b = 0; b < kBuckets; b++) {
        entries_in[b] += odd[b];
    }
}

void CellSelector::bring_forward_forced(size_t to) {
    for (size_t i = 0; i < list_of.size(); i++) {
        if (!forced[i]) {
            continue;
        }
        const uint32_t* offset = cells.list_offsets(list_of[i]);
        for (size_t l = 0; l < L; l++) {
            uint16_t& b = bucket[i * L + l];
            if (b > to) {
                const uint32_t n = offset[l + 1] - offset[l];
                entries_in[b] -= n;
                entries_in[to] += n;
                b = uint16_t(to);
            }
        }
    }
}

size_t CellSelector::forced_entries() const {
    size_t out = 0;
    for (size_t i = 0; i < list_of.size(); i++) {
        out += forced[i] ? sizes[list_of[i]] : 0;
    }
    return out;
}

std::vector<uint32_t> CellSelector::forced_lists() const {
    std::vector<uint32_t> out;
    for (size_t i = 0; i < list_of.size(); i++) {
        if (forced[i]) {
            out.push_back(list_of[i]);
        }
    }
    return out;
}

float CellSelector::nearest_filled() const {
    float out = std::numeric_limits<float>::infinity();
    for (uint32_t list : list_of) {
        out = std::min(out, coarse->distances[list]);
    }
    return out;
}

float CellSelector::distance_from(size_t b) const {
    if (list_of.empty() || (b >= kBuckets && all_scored())) {
        return std::numeric_limits<float>::infinity();
    }
    return least + float(b) * bucket_width(least, largest, kBuckets);
}

float CellSelector::distance_of_unscored() const {
    if (all_scored()) {
        return std::numeric_limits<float>::infinity();
    }
    if (coarse->by_graph()) { // which has given out the nearer ones
        return portion.empty() ? 0 : coarse->distances[portion.back()];
    }
    return coarse->least +
            float(lists_up_to) *
            bucket_width(coarse->least, coarse->largest, kListBuckets);
}

size_t CellSelector::bucket_within(float distance) const {
    const float b = (distance - least) * bucket_scale(least, largest, kBuckets);
    return b < kBuckets - 1 ? size_t(std::max(b, 0.0f)) : kBuckets - 1;
}

size_t CellSelector::bucket_of_entries(size_t entries) const {
    size_t held = 0, b = 0;
    for (; b + 1 < kBuckets; b++) {
        held += entries_in[b];
        if (held >= entries) {
            break;
        }
    }
    return b;
}

size_t CellSelector::entries_up_to(size_t bucket) const {
    return std::accumulate(
            entries_in.begin(), entries_in.begin() + bucket + 1, size_t(0));
}

size_t CellSelector::bucket_of_effort(double entries, float t) const {
    const float width = bucket_width(least, largest, kBuckets);
    const float inverse = t > 0 ? 1 / t : 0;
    size_t held = 0, b = 0;
    while (b + 1 < kBuckets && 4 * (held + entries_in[b]) < entries) {
        held += entries_in[b++]; // whatever the ratio
    }
    for (; b + 1 < kBuckets; b++) {
        held += entries_in[b];
        const float ratio =
                std::clamp((least + b * width) * inverse, 0.5f, 2.0f);
        if (double(held) * ratio * ratio >= entries) {
            break;
        }
    }
    return b;
}

void CellSelector::choose(
        size_t first,
        size_t last,
        float q_norm,
        float slack2,
        double rounding2,
        std::vector<Segment>& out) {
    chosen.resize(bucket.size());
    const size_t n = best_code_kernels().places(
            bucket.size(),
            bucket.data(),
            uint16_t(first),
            uint16_t(last - first),
            chosen.data());
    out.resize(n);
    // squares of a query's length may be no floats
    const float for_all =
            float(std::sqrt(double(slack2) * q_norm * q_norm + rounding2));
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t cell = chosen[i], place = cell / uint32_t(L);
        const uint32_t list = list_of[place];
        const uint32_t* offset =
                cells.list_offsets(list) + (cell - place * uint32_t(L));
        const float score = scores[cell];
        out[m] = {
                codes.blocks[list].data(),
                list,
                offset[0],
                offset[1],
                codes.similarity ? q_norm * (0.5f * score - 1) : score,
                codes.similarity ? for_all
                                 : std::sqrt(
                                           slack2 * std::max(score, 0.0f) +
                                           float(rounding2))};
        m += offset[1] > offset[0];
    }
    out.resize(m);
}

} // namespace faiss_ext
