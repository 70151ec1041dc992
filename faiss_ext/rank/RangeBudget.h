#pragma once

#include <cstddef>

namespace faiss_ext {

/** Of a range with a target of recall, when enough has been looked at for what
 * was found: so much for each result, as a calibration measured it up to some
 * number of neighbours; beyond them twice as much, until that brings less than
 * may be missed.
 */
struct RangeBudget {
    double each = 0;     ///< codes or lists; 0: what is found changes nothing
    double measured = 0; ///< results
    double missed = 0;   ///< share of them
};

/// One query's.
class RangeProgress {
public:
    explicit RangeProgress(const RangeBudget& budget) : budget(budget) {}

    /// What is to be looked at in all, since `done` has shown so many results;
    /// done if that was enough.
    double wanted(double done, double found) {
        const double needed = budget.each * found;
        const double gained = found - found_before;
        const bool all_but_few = doubled && gained <= budget.missed * found;
        if (needed <= done &&
            (budget.each == 0 || found <= budget.measured || all_but_few)) {
            return done;
        }
        doubled = found > budget.measured && needed < 2 * done;
        found_before = found;
        return doubled ? 2 * done : needed;
    }

private:
    RangeBudget budget;
    bool doubled = false;
    double found_before = 0;
};

} // namespace faiss_ext
