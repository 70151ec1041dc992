#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/CellRanker.h"
#include "faiss_ext/impl/coarse.h"

namespace faiss_ext {

/// Entries wanted of a ranker at a query's first look at the missing mass, and
/// then at the next: the grid that the calibration is fitted on.
constexpr double kFirstRound = 64;

inline double next_round(double target, const Progress& progress) {
    return std::max(target * 1.3, progress.entries + 1.0);
}

/** Begins a query of a CellRanker or SketchRanker in one of the cell orders.
 *
 * @param distances  coarse_distances of the query
 * @param tau        squared distance of the last neighbour wanted; predicted
 *                   where it is not positive
 */
template <class Ranker>
void start_order(
        Ranker& ranker,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        ProbeOrder order,
        const float* distances,
        float tau) {
    const bool posterior = order == ProbeOrder::cell_posterior ||
            (order == ProbeOrder::sketch && gmm.calibration.fitted);
    if (posterior && !(tau > 0)) {
        tau = gmm.calibration.predict_tau(
                *std::min_element(distances, distances + ivf.nlist));
    }
    ranker.start(distances, is_ip(ivf), posterior, tau);
}

} // namespace faiss_ext
