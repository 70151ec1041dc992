#pragma once

#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// The settings of one call, with everything that was left open decided.
struct SearchPlan {
    ProbeOrder order = ProbeOrder::distance; ///< never `calibrated`
    float probe_mass = 1;                    ///< below 1: stop by mass
    size_t nprobe = 1;                       ///< whole-list orders: lists
    size_t budget = 0;                       ///< cell orders: entries
    size_t max_codes = 0;                    ///< 0: no cap
    const faiss::IDSelector* sel = nullptr;
    const faiss::SearchParameters* quantizer_params = nullptr;

    bool by_cells() const {
        return order == ProbeOrder::cell_distance ||
                order == ProbeOrder::cell_posterior ||
                order == ProbeOrder::sketch;
    }
};

/// What a budgeted search spends for each distance, scores included, in
/// distances: nprobe lists buy nprobe * ntotal / nlist / cost_factor of them.
double cost_factor(ProbeOrder order, size_t d);

/// Throws FaissException for parameters of a foreign type or out of range.
SearchPlan make_plan(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const faiss::SearchParameters* params,
        size_t k = 1);

} // namespace faiss_ext
