#include "faiss_ext/impl/SketchRanker.h"

#include <algorithm>

namespace faiss_ext {

namespace {

constexpr size_t kBuckets = 256;

/// The least bucket edge below which at least `want` of the values are.
float threshold_for(const std::vector<float>& values, size_t want) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    if (want >= values.size() || !(*high > *low)) {
        return *high;
    }
    const float from = *low, step = (*high - from) / kBuckets;
    size_t count[kBuckets] = {};
    for (float v : values) {
        count[std::min(size_t((v - from) / step), kBuckets - 1)]++;
    }
    size_t b = 0, below = 0;
    for (; b < kBuckets; b++) {
        below += count[b];
        if (below >= want) {
            break;
        }
    }
    return from + float(b + 1) * step;
}

} // namespace

SketchRanker::SketchRanker(
        const PairCells& cells_in, const faiss::InvertedLists& lists)
        : cells(cells_in), by_cell(cells_in, lists) {
    table.resize(cells.n_partners);
}

void SketchRanker::start(
        const float* distances_in,
        bool similarity_in,
        bool posterior,
        float tau) {
    distances = distances_in;
    similarity = similarity_in;
    by_cell.start(distances, similarity, posterior, tau);
    progress = Progress();
    estimates.clear();
    places.clear();
}

bool SketchRanker::advance(size_t target, std::vector<Run>& runs) {
    runs.clear();
    if (progress.entries >= target) {
        return false;
    }
    by_cell.advance(kPoolFactor * target, cell_runs);
    size_t last_list = size_t(-1);
    for (const Run& run : cell_runs) {
        const size_t n = run.end - run.begin, old = estimates.size();
        estimates.resize(old + n);
        places.resize(old + n);
        cells.estimate(
                run.list,
                run.begin,
                run.end,
                distances,
                similarity,
                run.list != last_list,
                table.data(),
                &estimates[old]);
        for (size_t j = 0; j < n; j++) {
            places[old + j] = {run.list, uint32_t(run.begin + j)};
        }
        last_list = run.list;
        progress.n_sketch_scores += n;
    }
    progress.n_cell_scores = by_cell.progress.n_cell_scores;
    progress.frontier = by_cell.progress.frontier;
    if (estimates.empty()) {
        return false;
    }
    if (progress.entries == 0) {
        progress.first_score =
                *std::min_element(estimates.begin(), estimates.end());
    }
    const float threshold = threshold_for(estimates, target - progress.entries);
    size_t kept = 0;
    for (size_t j = 0; j < estimates.size(); j++) {
        if (estimates[j] > threshold) {
            estimates[kept] = estimates[j];
            places[kept] = places[j];
            kept++;
            continue;
        }
        const Place p = places[j];
        if (!runs.empty() && runs.back().list == p.list &&
            runs.back().end == p.offset) {
            runs.back().end++;
        } else {
            runs.push_back({p.list, p.offset, p.offset + 1});
        }
        progress.entries++;
    }
    estimates.resize(kept);
    places.resize(kept);
    progress.last_score = threshold;
    return true;
}

} // namespace faiss_ext
