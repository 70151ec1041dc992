#include "faiss_ext/calibrate/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <faiss/utils/Heap.h>

#include "faiss_ext/rank/SketchRanker.h"
#include "faiss_ext/rank/StopSchedule.h"

namespace faiss_ext {

namespace {

constexpr size_t kTracedPart = 4;
constexpr size_t kMinTraced = 4096;
/// Queries whose coarse distances are computed at once take so many floats.
constexpr size_t kCoarseBlock = size_t(1) << 22;

/// What a query has found so far.
class Finds {
public:
    Finds(const Truth& truth_in, size_t query_in)
            : truth(truth_in), query(query_in),
              nearest(truth_in.k, std::numeric_limits<float>::infinity()) {}

    void scan(const std::vector<Run>& runs) {
        const auto& near = truth.near[query];
        for (const Run& run : runs) {
            const idx_t end = faiss::lo_build(run.list, run.end);
            auto it = std::lower_bound(
                    near.begin(),
                    near.end(),
                    idx_t(faiss::lo_build(run.list, run.begin)),
                    [](const Truth::Near& n, idx_t location) {
                        return n.location < location;
                    });
            for (; it != near.end() && it->location < end; ++it) {
                n_true += it->distance <= truth.kth[query];
                if (it->distance < nearest[0]) {
                    faiss::maxheap_replace_top(
                            truth.k,
                            nearest.data(),
                            unused.data(),
                            it->distance,
                            idx_t(0));
                }
            }
        }
    }

    /// Infinite while fewer are found.
    float kth() const {
        return std::max(nearest[0], 0.0f);
    }
    float missing() const {
        return 1 - float(std::min(n_true, truth.k)) / truth.k;
    }

private:
    const Truth& truth;
    size_t query;
    size_t n_true = 0;
    std::vector<float> nearest; ///< a heap, the farthest on top
    std::vector<idx_t> unused = std::vector<idx_t>(nearest.size());
};

template <class Ranker>
std::vector<Look> trace_query(
        GMMIndexRef index,
        Ranker& ranker,
        ProbeOrder order,
        QueryCoarse& coarse,
        Finds finds) {
    const size_t ntotal = index.ivf.ntotal;
    const size_t budget =
            std::min(ntotal, std::max(kMinTraced, ntotal / kTracedPart));
    start_order(ranker, index.ivf, index.gmm, order, coarse, 0);
    std::vector<Look> looks;
    std::vector<Run> runs;
    size_t complete_at = 0;
    double target = kFirstRound;
    while (ranker.progress.entries < budget &&
           ranker.advance(std::min(size_t(target), budget), runs)) {
        finds.scan(runs);
        const Progress& progress = ranker.progress;
        const float kth = finds.kth();
        Look l;
        l.distances = float(progress.entries);
        l.cost = l.distances +
                (Calibration::kCellScoreCost * progress.n_cell_scores +
                 Calibration::kSketchScoreCost * progress.n_sketch_scores) /
                        index.ivf.d;
        l.missing = finds.missing();
        l.full = std::isfinite(kth);
        l.features = stop_features(progress, kth);
        looks.push_back(l);
        if (l.missing == 0 && complete_at == 0) {
            complete_at = progress.entries;
        }
        if (complete_at > 0 && progress.entries >= 3 * complete_at) {
            break;
        }
        target = next_round(target, progress);
    }
    return looks;
}

} // namespace

Looks trace_queries(
        GMMIndexRef index,
        ProbeOrder order,
        size_t nq,
        const float* xq,
        const Truth& truth) {
    const faiss::IndexIVF& ivf = index.ivf;
    const size_t nlist = ivf.nlist, d = ivf.d;
    const size_t block = std::max<size_t>(1, kCoarseBlock / nlist);
    Looks looks(nq);
    std::vector<float> coarse(std::min(block, nq) * nlist);
    for (size_t b0 = 0; b0 < nq; b0 += block) {
        const size_t nb = std::min(block, nq - b0);
        coarse_distances(ivf, nb, xq + b0 * d, coarse.data());
#pragma omp parallel
        {
            QueryCoarse of_query(ivf);
            CellRanker by_cell(index.gmm.cells, *ivf.invlists);
            SketchRanker by_sketch(index.gmm.cells, *ivf.invlists);
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < nb; i++) {
                const size_t q = b0 + i;
                of_query.start(&coarse[i * nlist]);
                auto trace = [&](auto& ranker) {
                    return trace_query(
                            index, ranker, order, of_query, Finds(truth, q));
                };
                looks[q] = order == ProbeOrder::sketch ? trace(by_sketch)
                                                       : trace(by_cell);
            }
        }
    }
    return looks;
}

} // namespace faiss_ext
