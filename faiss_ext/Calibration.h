#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "faiss_ext/ProbePolicy.h"

namespace faiss_ext {

/** What searches found and cost at settings from cheap to sure, measured on
 * queries whose neighbours are known. Filled by IVFGMM::calibrate.
 *
 * For a target of recall the cheapest setting that reached it is taken; nothing
 * is interpolated.
 */
struct Calibration {
    bool fitted = false;
    static constexpr size_t kMaxK = size_t(1) << 20; ///< k is below
    size_t k = 0;            ///< neighbours that calibrate() was asked for
    size_t ntotal = 0;       ///< vectors in the index when it was calibrated
    size_t nq = 0;           ///< queries that were searched
    bool own_queries = true; ///< whether they were vectors of the index
    float norm2 = 0; ///< PairCells::norm2 when it was calibrated; 0: not known
    /** The largest squared distance of a query to its nearest mean whose list
     * has entries, a few outliers left out (of queries of unit length for inner
     * products); 0: not known, as in files of versions up to 0.3.0. A query
     * farther away is unlike those of the calibration. */
    float farthest = 0;
    std::vector<float> queries; ///< size nq * d; empty if own_queries

    /// What parts of a search take, in nanoseconds of one thread of the machine
    /// that calibrated first; all 0: the next calibration measures them.
    struct Costs {
        float query = 0;    ///< a query: distances to means, tables, results
        float code = 0;     ///< looking at the code of an entry
        float distance = 0; ///< comparing an entry because of its code
        float scan = 0;     ///< comparing an entry of a whole list
        bool known() const {
            return code > 0 && distance > 0 && scan > 0;
        }
    };
    Costs costs;

    /// One setting, and what it found and cost.
    struct Point {
        bool by_codes; ///< false: whole lists, the nearest first
        /// by_codes: codes that a query looks at, about; fewer where its
        /// neighbours are near, so up to four times all that there are. Else
        /// lists that it probes.
        float budget;
        /// An entry is left out if the distance that its code estimates is
        /// above the k-th by so many standard deviations of the estimate's
        /// error.
        float bound;
        float recall;    ///< at k
        float codes;     ///< looked at by a query, on average
        float distances; ///< computed by a query, on average
        float cost;      ///< nanoseconds, by `costs`
        /// A query looks on, after the budget, at what is less than so many
        /// times as far (squared) as the k-th neighbour that it found: cells
        /// by the distance to their mean, lists by theirs. 24 of 25 queries
        /// had looked so far; at most 1.5. 0: not known, as in files of
        /// versions up to 0.3.0.
        float reach = 0;

        /// The budget in codes: for whole lists the entries that they held,
        /// which are more than on average, since queries fall into long lists.
        double in_codes(double entries_per_list) const {
            return by_codes
                    ? budget
                    : std::max<double>(entries_per_list * budget, distances);
        }
    };
    /// The points for one number of neighbours k; cost and recall increase.
    struct Curve {
        size_t k;
        std::vector<Point> points;
    };
    std::vector<Curve> curves; ///< k increasing

    /// A setting that was chosen. The first three fields say the same as those
    /// of Point, for programs that were written for earlier versions.
    struct Choice : Point {
        ProbeOrder order; ///< codes or distance
        float parameter;  ///< the budget
        bool by_mass = false;
        bool mixed = false; ///< made of lists in one curve, codes in another
    };

    /** The cheapest setting of the curve for k whose recall is at least the
     * target plus half a standard error; if there is none, the last point,
     * which is all lists.
     *
     * For a k between two curves it is what both their settings need: the
     * larger budget and bound; where one is lists and the other codes, codes,
     * as many as the lists hold. Its recall, codes, distances and cost are
     * those of the upper curve. For a k above all curves the budget of the last
     * one grows with k.
     *
     * Throws FaissException if not fitted, or target_recall is not in (0, 1].
     *
     * @param k  neighbours; 0: as many as calibrate() was asked for
     */
    Choice choose(float target_recall, size_t k = 0) const;

    /// The same for all vectors within a radius, whose number is not known:
    /// what the settings of all curves need.
    Choice choose_for_range(float target_recall) const;

    /// A table of the curves at a few targets, for people to read.
    std::string report() const;
};

} // namespace faiss_ext
