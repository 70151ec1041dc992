#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/impl/BucketQueue.h"
#include "faiss_ext/impl/CellRanker.h"

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
            const float* distances, bool similarity, bool posterior, float tau);

    /// As CellRanker::advance; hands out exactly `target` while it can.
    bool advance(size_t target, std::vector<Run>& runs);

    Progress progress;

    static constexpr size_t kPoolFactor = 6;

private:
    const PairCells& cells;
    CellRanker by_cell;
    const float* distances = nullptr;
    bool similarity = false;

    struct Place {
        uint32_t list;
        uint32_t offset;
        float estimate;
    };
    void look_into(const std::vector<Run>& cell_runs);

    BucketQueue queue;       ///< of the pool, by estimate
    std::vector<Place> pool; ///< those handed out too
    std::vector<Run> cell_runs;
    std::vector<uint32_t> taken;
    std::vector<float> table, estimates;
};

} // namespace faiss_ext
