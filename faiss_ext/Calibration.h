#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "faiss_ext/ProbePolicy.h"

namespace faiss_ext {

/** What searches of queries whose neighbours are known have found and cost, at
 * settings from cheap to sure.
 *
 * A target of recall is met by the cheapest setting that reached it; nothing is
 * interpolated.
 */
struct Calibration {
    bool fitted = false;
    /// Neighbours that may be asked for are fewer.
    static constexpr size_t kMaxK = size_t(1) << 20;
    size_t k = 0;            ///< neighbours that it was asked for
    size_t ntotal = 0;       ///< vectors in the index then
    size_t nq = 0;           ///< queries that were searched
    bool own_queries = true; ///< drawn from the index's vectors
    float norm2 = 0;         ///< PairCells::norm2 then; 0: not known
    /** Of its queries, but for a few outliers, the farthest from its nearest
     * mean, squared (of unit length for inner products); 0: not known, as in
     * files of before 0.3.1. A query farther than that is unlike what was
     * calibrated on. */
    float farthest = 0;
    std::vector<float> queries; ///< those given, size nq * d, or empty

    /// What a search spends, in nanoseconds of one thread of the machine that
    /// calibrated first; all 0: to be measured by the next calibration.
    struct Costs {
        float query = 0;    ///< distances to the means, the table, results
        float code = 0;     ///< an entry whose code is looked at
        float distance = 0; ///< a vector that is compared for its code
        float scan = 0;     ///< one of a whole list
        bool known() const {
            return code > 0 && distance > 0 && scan > 0;
        }
    };
    Costs costs;

    /// One setting.
    struct Point {
        bool by_codes; ///< else whole lists by distance
        /// codes that a query looks at, see SearchPlan, or lists that it probes
        float budget;
        /// standard deviations of its error by which the estimate of an entry
        /// that is not compared is above the k-th distance
        float bound;
        float recall;    ///< at k
        float codes;     ///< looked at by a query, on average
        float distances; ///< computed by a query, on average
        float cost;      ///< nanoseconds, by `costs`

        /// The budget in codes: of whole lists, which queries are in more often
        /// the longer they are, what they held.
        double in_codes(double entries_per_list) const {
            return by_codes
                    ? budget
                    : std::max<double>(entries_per_list * budget, distances);
        }
    };
    /// Of one number of neighbours; cost and recall increasing.
    struct Curve {
        size_t k;
        std::vector<Point> points;
    };
    std::vector<Curve> curves; ///< k increasing

    /// A setting, also in the words of earlier versions, for which programs
    /// were written.
    struct Choice : Point {
        ProbeOrder order; ///< codes or distance
        float parameter;  ///< the budget
        bool by_mass = false;
        bool mixed = false; ///< codes for what are lists in one curve
    };

    /** The cheapest setting that reached the recall, and half of a standard
     * error more, of the curve of k. Between two curves what both their
     * settings need: the larger budget and bound, and codes, as many as the
     * lists hold, where one is lists (recall, codes, distances and cost are
     * those of the upper curve then). Above all curves the budget of the last
     * grows with k. The last point of a curve is all lists.
     *
     * Throws FaissException if not fitted, or target is not in (0, 1].
     *
     * @param k  0: what the calibration was asked for
     */
    Choice choose(float target_recall, size_t k = 0) const;

    /// The same for all vectors within a radius, which are as many as they are:
    /// what the settings of all curves need.
    Choice choose_for_range(float target_recall) const;

    /// The curves at a few targets, as a table.
    std::string report() const;
};

} // namespace faiss_ext
