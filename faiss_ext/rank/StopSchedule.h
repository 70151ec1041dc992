#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/CellRanker.h"

namespace faiss_ext {

/// Entries wanted of a ranker at a query's first look at the missing mass, and
/// then at the next: the grid that the calibration is fitted on. 64 would find
/// more of small indexes than low targets ask for (0.91 for 0.8,
/// CalibrationTest).
constexpr double kFirstRound = 40;

inline double next_round(double target, const Progress& progress) {
    return std::max(target * 1.3, progress.entries + 1.0);
}

/** Begins a query of a CellRanker or SketchRanker in one of the cell orders.
 *
 * @param tau  squared distance of the last neighbour wanted; predicted where
 *             it is not positive
 */
template <class Ranker>
void start_order(
        Ranker& ranker,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        ProbeOrder order,
        QueryCoarse& coarse,
        float tau) {
    const bool posterior = order == ProbeOrder::cell_posterior ||
            (order == ProbeOrder::sketch && gmm.calibration.fitted);
    ranker.start(coarse, is_ip(ivf), posterior, [&](float nearest) {
        return tau > 0 ? tau : gmm.calibration.predict_tau(nearest);
    });
}

} // namespace faiss_ext
