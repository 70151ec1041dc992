#include "faiss_ext/impl/SketchRanker.h"

#include <algorithm>

namespace faiss_ext {

namespace {

/// Of the entries wanted, whose vectors come from a pool of them that is
/// larger already: 3 costs 3 % more distances than 4 (SIFT, 1024 lists), 6
/// twice the cells for 1 % fewer.
constexpr size_t kHomesFactor = 4;
/// Runs of sketches fetched ahead.
constexpr size_t kPrefetched = 4;

} // namespace

SketchRanker::SketchRanker(
        const PairCells& cells_in, const faiss::InvertedLists& lists)
        : cells(cells_in), by_cell(cells_in, lists, kHomesFactor) {
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
    queue.start(by_cell.farthest);
    pool.clear();
}

void SketchRanker::look_into(const std::vector<Run>& cell_runs) {
    estimates.clear();
    size_t last_list = size_t(-1);
    for (size_t r = 0; r < cell_runs.size(); r++) {
        if (r + kPrefetched < cell_runs.size()) {
            const Run& ahead = cell_runs[r + kPrefetched];
            cells.prefetch_sketches(ahead.list, ahead.begin, ahead.end);
        }
        const Run& run = cell_runs[r];
        const size_t old = estimates.size();
        estimates.resize(old + run.end - run.begin);
        cells.estimate(
                run.list,
                run.begin,
                run.end,
                distances,
                similarity,
                run.list != last_list,
                table.data(),
                &estimates[old]);
        last_list = run.list;
    }
    progress.n_sketch_scores += estimates.size();
    if (estimates.empty()) {
        return;
    }
    if (pool.empty()) {
        progress.first_score =
                *std::min_element(estimates.begin(), estimates.end());
    }
    const float* estimate = estimates.data();
    for (const Run& run : cell_runs) {
        for (uint32_t j = run.begin; j < run.end; j++) {
            queue.push(*estimate);
            pool.push_back({run.list, j, *estimate++});
        }
    }
}

bool SketchRanker::advance(size_t target, std::vector<Run>& runs) {
    runs.clear();
    if (progress.entries >= target) {
        return false;
    }
    by_cell.advance(kPoolFactor * target, cell_runs);
    look_into(cell_runs);
    progress.n_cell_scores = by_cell.progress.n_cell_scores;
    progress.frontier = by_cell.progress.frontier;

    taken.clear();
    uint32_t e;
    while (progress.entries < target && queue.pop(e)) {
        taken.push_back(e);
        progress.entries++;
    }
    if (taken.empty()) {
        return false;
    }
    progress.last_score = pool[taken.back()].estimate;
    // by list and place, as they came into the pool
    std::sort(taken.begin(), taken.end());
    for (uint32_t e : taken) {
        const Place& p = pool[e];
        if (!runs.empty() && runs.back().list == p.list &&
            runs.back().end == p.offset) {
            runs.back().end++;
        } else {
            runs.push_back({p.list, p.offset, p.offset + 1});
        }
    }
    return true;
}

} // namespace faiss_ext
