#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

/** The lists of each query by the plan's order of whole lists, and what FAISS's
 * scanners want to know of them: squared distances, or inner products.
 *
 * @param coarse  size n * plan.nprobe
 * @param keys    the same size; -1 where there are no more
 */
void probe(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        float* coarse,
        idx_t* keys);

/** The squared distance of a query to the first mean whose list has entries, of
 * those that probe() said; for inner products of the query scaled to length 1,
 * less the mean's norm: 2 - 2 q.m / |q|, which is 2 for q = 0. Infinity if none
 * has. */
float distance_to_filled(
        const faiss::IndexIVF& ivf,
        const float* q,
        size_t nprobe,
        const float* coarse,
        const idx_t* keys);

/// The distance of a query to a vector, as FAISS's scanners say it, in the
/// units of coarse distances: squared, or 2 - 2 q.x / (|q| sqrt(norm2)) with
/// PairCells::norm2.
float in_coarse_units(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* q,
        float distance);

/// probe()'s lists, of which each query has its own number: those unlike all
/// that was calibrated on (SearchPlan::farthest) have all lists.
struct ProbedLists {
    std::vector<size_t> begins; ///< size n + 1, into the others
    std::vector<float> coarse;
    std::vector<idx_t> keys;
    /// Of each query the distance in coarse units to the nearest mean that is
    /// not among them; infinity if there is none, or the plan has no use for it
    /// (SearchPlan::reach, beyond).
    std::vector<float> beyond;
};

ProbedLists probe_lists(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x);

} // namespace faiss_ext
