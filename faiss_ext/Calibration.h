#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "faiss_ext/ProbePolicy.h"

namespace faiss_ext {

struct Progress; // impl/CellRanker.h

/** What was learnt from queries whose neighbours are known.
 *
 * The likelihood of a cell. A vector of cell (i, j), mean m, variance v (sum
 * over dimensions) lies at a squared distance from the query of mean s + v
 * and variance proportional to 4 s v + 2 v^2, s = |q - m|^2 (the moments of a
 * noncentral chi-square, with an effective dimension that cancels below). The
 * cell's vectors are the likelier to be neighbours the smaller
 *
 *     z = (s + v - tau) / sqrt(4 s v + 2 v^2)
 *
 * where tau, the squared distance of the k-th neighbour, is predicted as
 * exp(tau_weights[0] + tau_weights[1] log d_1), d_1 the squared distance to
 * the nearest mean. Cells are scanned in the order of z: the order of
 * expected neighbours for each distance.
 *
 * The mass still missing. After b distances (in proportion to an index of
 * ntotal vectors, if it has grown since), with t the k-th smallest so far,
 * e_1 and e the squared distances that were expected of the first and the last
 * entry scanned (of their cell's mean, or by their sketch), and f = s + v of
 * the last cell looked into,
 *
 *     logit(missing) = w . (1, log b, log e/t, log e_1/t, log f/t)
 *
 * and a query stops once missing <= 1 - probe_mass.
 */
struct Calibration {
    bool fitted = false;
    size_t k = 0;               ///< neighbours that it was fitted for
    size_t ntotal = 0;          ///< vectors in the index when it was fitted
    size_t nq = 0;              ///< queries that it was fitted on
    bool own_queries = true;    ///< drawn from the index's vectors
    std::vector<float> queries; ///< those given, size nq * d, or empty

    std::array<float, 2> tau_weights = {0, 1};
    std::array<float, 5> cell_stop_weights = {};   ///< for cell_posterior
    std::array<float, 5> sketch_stop_weights = {}; ///< for sketch

    /// tau for a query whose nearest mean is at that squared distance.
    float predict_tau(float d1) const;

    /// Expected share of the k neighbours not found yet, in [0, 1].
    float missing(
            ProbeOrder order,
            const Progress& progress,
            float kth_distance,
            size_t ntotal_now) const;

    /// One point of a candidate's curve on held-out queries.
    struct Point {
        float parameter; ///< nprobe, or probe_mass where the mass stops
        float recall;    ///< at k
        float distances; ///< for each query
        /// distances and what else it takes, in distances: kCellScoreCost / d
        /// and kSketchScoreCost / d for each cell and each sketch scored
        float cost;
    };
    static constexpr float kCellScoreCost = 4;
    static constexpr float kSketchScoreCost = 24;

    struct Candidate {
        ProbeOrder order;
        bool by_mass;             ///< stopped by mass and not by a fixed budget
        std::vector<Point> curve; ///< recall increasing
    };
    /// Everything that was compared, on held-out queries.
    std::vector<Candidate> candidates;

    /// The cheapest setting that reached the recall.
    struct Choice {
        ProbeOrder order;
        bool by_mass;
        float parameter;
        float recall;
        float distances;
        float cost;
    };
    /** Throws FaissException if not fitted, or target is not in (0, 1].
     *
     * @param by_mass_only  only stops that look at what a query has found
     *
     * Candidates that cost more than another everywhere never win; k-means'
     * order with a fixed budget is always among them. */
    Choice choose(float target_recall, bool by_mass_only = false) const;

    /// The order whose fixed budget found most at that cost.
    ProbeOrder best_order(float cost) const;

    /// What was compared and what won at a few targets, as a table.
    std::string report() const;
};

} // namespace faiss_ext
