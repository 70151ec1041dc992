#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/rank/BucketQueue.h"
#include "faiss_ext/rank/CellRanker.h"
#include "faiss_ext/rank/GrowingArray.h"

namespace faiss_ext {

/** Hands out the vectors of one query by the distance that their sketches
 * estimate, a few at a time: the interface of CellRanker, one step finer.
 *
 * kPoolFactor times the entries asked for are taken from the best cells and
 * estimated; those with the least estimates are handed out, the others stay
 * for the next time.
 */
class SketchRanker {
public:
    SketchRanker(const PairCells& cells, const faiss::InvertedLists& lists);

    /// As CellRanker::start.
    void start(
            QueryCoarse& coarse,
            bool similarity,
            bool posterior,
            const std::function<float(float)>& predict);

    /// As CellRanker::advance, but hands out exactly `target` while it can, in
    /// the order of their estimates.
    bool advance(size_t target, std::vector<Run>& runs);

    Progress progress;

    static constexpr size_t kPoolFactor = 16;

private:
    const PairCells& cells;
    CellRanker by_cell;
    const float* distances = nullptr; ///< QueryCoarse's
    bool similarity = false;

    struct Place {
        uint32_t list;
        uint32_t offset;
        float estimate;
    };
    void look_into_cells();
    /// Of the query, PairCells::make_table's; computed at the first call.
    const float* table_of(size_t list);

    BucketQueue queue;        ///< of the pool, by estimate
    GrowingArray<Place> pool; ///< those handed out too
    std::vector<Run> cell_runs;
    GrowingArray<float> estimates;
    GrowingArray<float> tables;       ///< of the lists looked into
    std::vector<uint32_t> table_slot; ///< of each list
    std::vector<uint32_t> table_query;
    uint32_t query = 0; ///< lists with another number have no table yet
};

} // namespace faiss_ext
