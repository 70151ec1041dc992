#include "faiss_ext/rank/CellRanker.h"

#include <algorithm>
#include <cmath>

#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// The z of Calibration.h for cells with squared distances s and variances v,
/// made positive: z + 2, and below z = -1 its continuation -1 / z.
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
        const float z = ((s[l] - tau) * u + 1) / std::sqrt(4 * s[l] * u + 2);
        out[l] = z > -1 ? z + 2 : -1 / z;
    }
}

/// Half of the queue's octaves are on either side of 1.
constexpr float kHighestKey = 4096;

} // namespace

CellRanker::CellRanker(
        const PairCells& cells_in,
        const faiss::InvertedLists& lists_in,
        size_t homes_factor_in)
        : cells(cells_in), lists(lists_in), homes_factor(homes_factor_in) {
    scores.resize(cells.cells_per_list + 1);
    keys.resize(cells.cells_per_list + 1);
}

void CellRanker::start(
        QueryCoarse& coarse_in,
        bool similarity_in,
        bool posterior_in,
        const std::function<float(float)>& predict) {
    coarse = &coarse_in;
    similarity = similarity_in;
    posterior = posterior_in;
    entries_scored = 0;
    progress = Progress();
    pool.clear();
    homes_left = more_homes();
    tau = posterior
            ? predict(smallest(home_distances.data(), home_distances.size()))
            : 0;
    queue.start(posterior ? kHighestKey : farthest);
}

bool CellRanker::more_homes() {
    if (!coarse->more_lists(home_lists)) {
        return false;
    }
    home_distances.resize(home_lists.size());
    for (size_t i = 0; i < home_lists.size(); i++) {
        home_distances[i] = coarse->distances[home_lists[i]];
    }
    // of the nearest few from a graph the farthest is not far
    farthest = (coarse->by_graph() ? 64 : 2) *
            largest(home_distances.data(), home_distances.size());
    homes.start(farthest);
    homes.push(home_distances.data(), home_distances.size());
    return true;
}

void CellRanker::score_home(size_t list) {
    const size_t L = cells.cells_per_list;
    const size_t list_size = lists.list_size(list);
    entries_scored += list_size;
    if (list_size == 0) {
        return;
    }
    const float* variance = &cells.variance[list * (L + 1)];
    const uint32_t* offset = cells.list_offsets(list);
    for (size_t l = 0; l <= L; l += 16) { // used only after the scores
        __builtin_prefetch(variance + l);
        __builtin_prefetch(offset + l);
    }
    coarse->need(cells.partners(list), cells.n_partners);
    cells.score(list, coarse->distances, similarity, scores.data());
    const float* key = scores.data();
    if (posterior) {
        posterior_keys(scores.data(), variance, tau, L + 1, keys.data());
        key = keys.data();
    }
    progress.n_cell_scores += L;
    const size_t old = pool.size();
    Cell* cell = pool.grow(L + 1);
    size_t n = 0;
    for (size_t l = 0; l <= L; l++) {
        const uint32_t end = l < L ? offset[l + 1] : uint32_t(list_size);
        if (end > offset[l]) {
            keys[n] = key[l];
            cell[n++] = {
                    uint32_t(list), offset[l], end, scores[l], variance[l]};
        }
    }
    pool.shrink(old + n);
    queue.push(keys.data(), n);
}

void CellRanker::extend(size_t entries_wanted) {
    uint32_t home;
    while (entries_scored < entries_wanted) {
        if (homes.pop(home)) {
            score_home(home_lists[home]);
        } else if (!more_homes()) {
            homes_left = false;
            break;
        }
    }
}

bool CellRanker::advance(size_t target, std::vector<Run>& runs) {
    runs.clear();
    if (homes_left) {
        extend(homes_factor * target);
    }
    uint32_t p;
    while (progress.entries < target) {
        if (!queue.pop(p)) {
            if (!homes_left) {
                break;
            }
            extend(entries_scored + 1); // the homes scored so far were empty
            continue;
        }
        const Cell& cell = pool[p];
        if (progress.entries == 0) {
            progress.first_score = cell.score;
        }
        runs.push_back({cell.list, cell.begin, cell.end});
        progress.entries += cell.end - cell.begin;
        progress.last_score = cell.score;
        progress.frontier = cell.score + cell.variance;
    }
    return !runs.empty();
}

void join_runs(std::vector<Run>& runs) {
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
}

} // namespace faiss_ext
