#include "faiss_ext/rank/SketchRanker.h"

#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// Of the entries wanted, whose vectors come from a pool of them that is
/// larger already: 3 costs 3 % more distances than 4 (SIFT, 1024 lists), 6
/// twice the cells for 1 % fewer.
constexpr size_t kHomesFactor = 4;
/// Runs of sketches fetched ahead.
constexpr size_t kPrefetched = 8;

} // namespace

SketchRanker::SketchRanker(
        const PairCells& cells_in, const faiss::InvertedLists& lists)
        : cells(cells_in), by_cell(cells_in, lists, kHomesFactor),
          table_slot(cells_in.nlist), table_query(cells_in.nlist) {}

void SketchRanker::start(
        QueryCoarse& coarse,
        bool similarity_in,
        bool posterior,
        const std::function<float(float)>& predict) {
    distances = coarse.distances;
    similarity = similarity_in;
    by_cell.start(coarse, similarity, posterior, predict);
    progress = Progress();
    queue.start(by_cell.farthest);
    pool.clear();
    tables.clear();
    query++;
}

const float* SketchRanker::table_of(size_t list) {
    const size_t width = cells.table_size();
    if (table_query[list] != query) {
        table_query[list] = query;
        table_slot[list] = uint32_t(tables.size() / width);
        cells.make_table(list, distances, tables.grow(width));
    }
    return &tables[table_slot[list] * width];
}

void SketchRanker::look_into_cells() {
    size_t n = 0;
    for (const Run& run : cell_runs) {
        n += run.end - run.begin;
    }
    if (n == 0) {
        return;
    }
    const bool first = pool.size() == 0;
    Place* place = pool.grow(n);
    estimates.clear();
    float* estimate = estimates.grow(n);
    for (size_t r = 0; r < cell_runs.size(); r++) {
        if (r + kPrefetched < cell_runs.size()) {
            const Run& ahead = cell_runs[r + kPrefetched];
            cells.prefetch_sketches(ahead.list, ahead.begin, ahead.end);
        }
        const Run& run = cell_runs[r];
        cells.estimate(
                run.list,
                run.begin,
                run.end,
                distances[run.list],
                similarity,
                table_of(run.list),
                estimate);
        for (uint32_t j = run.begin; j < run.end; j++) {
            *place++ = {run.list, j, *estimate++};
        }
    }
    if (first) {
        progress.first_score = smallest(estimates.data(), n);
    }
    queue.push(estimates.data(), n);
    progress.n_sketch_scores += n;
}

bool SketchRanker::advance(size_t target, std::vector<Run>& runs) {
    runs.clear();
    if (progress.entries >= target) {
        return false;
    }
    by_cell.advance(kPoolFactor * target, cell_runs);
    look_into_cells();
    progress.n_cell_scores = by_cell.progress.n_cell_scores;
    progress.frontier = by_cell.progress.frontier;
    uint32_t p;
    while (progress.entries < target && queue.pop(p)) {
        const Place& place = pool[p];
        runs.push_back({place.list, place.offset, place.offset + 1});
        progress.entries++;
        progress.last_score = place.estimate;
    }
    return !runs.empty();
}

} // namespace faiss_ext
