#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <faiss/invlists/InvertedLists.h>

#include "faiss_ext/PairCells.h"
#include "faiss_ext/coarse/QueryCoarse.h"
#include "faiss_ext/rank/BucketQueue.h"
#include "faiss_ext/rank/GrowingArray.h"

namespace faiss_ext {

/// Consecutive entries of one inverted list.
struct Run {
    uint32_t list;
    uint32_t begin;
    uint32_t end;
};

/// Sorts runs by list and place and joins neighbours.
void join_runs(std::vector<Run>& runs);

/// How far a query has come.
struct Progress {
    size_t entries = 0; ///< handed out since start
    size_t n_cell_scores = 0;
    size_t n_sketch_scores = 0;
    float first_score = 0; ///< squared distance expected of the first entry
    float last_score = 0;  ///< of the last
    /// |q - m|^2 + variance of the last cell looked into
    float frontier = 0;
};

/** Hands out the cells of one query, best first, a few at a time.
 *
 * Homes are scored nearest first, and only as many as hold homes_factor times
 * the entries asked for: 6 loses 3 % of distances against scoring all of them
 * on the photo sets.
 */
class CellRanker {
public:
    CellRanker(
            const PairCells& cells,
            const faiss::InvertedLists& lists,
            size_t homes_factor = 6);

    /** Begins a query.
     *
     * @param coarse      started for the query; must stay valid until the next
     * @param similarity  see PairCells::score
     * @param posterior   order by the z of Calibration instead of distance
     * @param predict     tau of the distance to the nearest mean, read if
     *                    posterior
     */
    void start(
            QueryCoarse& coarse,
            bool similarity,
            bool posterior,
            const std::function<float(float)>& predict);

    /** Takes the next best cells until `target` entries have been handed out
     * since start. Replaces `runs`, in the order of cells; returns false if no
     * cells are left. */
    bool advance(size_t target, std::vector<Run>& runs);

    Progress progress;
    /// Beyond the distances that matter, for BucketQueue::start.
    float farthest = 0;

private:
    /// Puts the next homes in the queue; false if there are none.
    bool more_homes();
    void score_home(size_t list);
    /// Scores homes until those scored hold that many entries.
    void extend(size_t entries_wanted);

    const PairCells& cells;
    const faiss::InvertedLists& lists;
    const size_t homes_factor;
    QueryCoarse* coarse = nullptr;
    bool similarity = false;
    bool posterior = false;
    float tau = 0;

    BucketQueue homes; ///< by distance
    std::vector<uint32_t> home_lists;
    std::vector<float> home_distances;
    bool homes_left = false;
    size_t entries_scored = 0;

    struct Cell {
        uint32_t list;
        uint32_t begin;
        uint32_t end;
        float score;
        float variance;
    };
    BucketQueue queue; ///< of the pool
    GrowingArray<Cell> pool;

    std::vector<float> scores, keys;
};

} // namespace faiss_ext
