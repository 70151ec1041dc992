#pragma once

#include <cstdint>
#include <vector>

#include "../GaussianMixture.h"
#include "Kernels.h"

namespace gmm {

/// A component that may matter to a row, and its log-joint there.
struct FullFound {
    int32_t component;
    int32_t row;
    double value;
    float error; ///< how far rounding may have moved value, in nats
};

/** Log-joints of blocks of rows under a mixture of full covariances, in the
 * frame's units, without those of components that cannot matter to a row.
 *
 * The factors U of the precisions are upper triangular: the first p
 * coordinates of (y - mu)^T U need the first p of y alone, and the sum of
 * their squares is a lower bound of the Mahalanobis distance (it is that of the
 * marginal distribution of these coordinates). A row's own component is guessed
 * first; every other is computed, some columns of U at a time for all rows that
 * are left, until the bound says that its log-joint is less than the row's best
 * by more than `reach`. Bounds allow for rounding; log-joints that rounding
 * might make visible are computed again in double.
 *
 * Memory beside the model's, bytes, d in whole 16: 2 k d (d + 16) for factors
 * in the order of their use and 1088 k at most for their first columns;
 * is_small(): 4 k d (d + 3) more at most. FullScorerSmall.cpp has what few
 * dimensions have instead.
 */
struct FullScorer {
    /// Log-joints that may be wrong by more nats are computed again.
    static constexpr double kMostWrong = 5e-4;

    size_t d;
    size_t k;

    explicit FullScorer(const GaussianMixture& model);

    /// Rows that are scored together: many, so that those which share a
    /// component make a matrix product; no more than the memory of rows * k
    /// floats (4 MB up to k = 4096) allows.
    size_t block_rows() const;

    /// What one thread needs; grows with use.
    struct Scratch {
        std::vector<float> y;       ///< rows * d, in units of their own
        std::vector<double> length; ///< |y|
        std::vector<float> bounds;  ///< rows * k
        std::vector<float> product; ///< of the first columns
        std::vector<int32_t> guess; ///< two a row, -1: none
        std::vector<int32_t> component, of_row; ///< pairs in order of rows
        std::vector<int32_t> offset, list;      ///< and of components
        std::vector<int32_t> rows;
        std::vector<float> limit, v, q, norm;
        std::vector<double> exact_v, exact_y, exact_panel;
        std::vector<double> best; ///< a log-joint that each row's best reaches
        std::vector<FullFound> found;
    };

    /** Fills scratch.found with the components of every row whose log-joint is
     * within reach of the row's best, and perhaps some others.
     *
     * @param n      at most block_rows()
     * @param rows   size n * d
     * @param norm   |y|^2, size n; rows where it is not finite are left out
     * @param reach  in nats; infinity: all components
     */
    void score(
            size_t n,
            const float* rows,
            const double* norm,
            double reach,
            Scratch& scratch) const;

    /// Whether evaluate_small can be used: it takes less time than bounds do.
    bool is_small() const {
        return d <= kFewDimensions;
    }

    /// What one thread needs for evaluate_small.
    struct SmallScratch {
        size_t padded = 0; ///< rows, in whole kLanes
        /// Responsibilities, a component's after another's, size k * padded;
        /// on the way, log-joints.
        std::vector<float> r;
        std::vector<double> log_prob; ///< of each row, size n
        std::vector<float> transposed, square, length, top, known, scale;
        std::vector<double> sum;
        /// How far rounding may have moved log-joints, of components where it
        /// is much for some row; and where the others begin.
        std::vector<float> nats;
        std::vector<int64_t> nats_at;
        std::vector<double> joint;
    };

    /** All responsibilities of few dimensions' rows, without bounds. Log-joints
     * that matter and that rounding may have moved are those in double.
     *
     * @param n      up to block_rows()
     * @param y      size n * d, finite
     * @param reach  components that many nats below the best have less than
     *               any responsibility that counts
     */
    void evaluate_small(
            size_t n,
            const float* y,
            double reach,
            SmallScratch& scratch) const;

    /// The log-joint of one component in double.
    double exact(const float* y, size_t c) const;

private:
    const Kernels& kernel;
    size_t lead; ///< columns of the first bound
    /// What dimensions are multiplied by, powers of 2: bounds of rounding
    /// errors go by the lengths of vectors and factors, and would be those of
    /// the widest dimension. All else is in these units.
    std::vector<float> unit;
    std::vector<float> means;
    /// U of each component in panels of kLanes columns, each of as many rows
    /// as can be other than 0, padded with columns of 0
    std::vector<float> panels;
    size_t each;                   ///< floats of one component there
    std::vector<float> lead_terms; ///< U's first columns: lead x (lead * k)
    std::vector<float> lead_shift; ///< mu^T U there, size lead * k
    std::vector<float> half_norm;  ///< |mu|^2 / 2, size k
    std::vector<double> log_norm;  ///< the log-joint at the mean, size k
    std::vector<float> spectrum;   ///< Frobenius norm of U, size k
    std::vector<float> mean_norm;  ///< |mu|, size k
    double rounding;
    size_t pitch = 0;                 ///< of small_factors' rows
    std::vector<float> small_factors; ///< is_small(): U, size k * d * pitch

    /// Panel p of component c, and how many rows it has.
    const float* panel(size_t c, size_t p) const {
        return panels.data() + c * each + panel_at(p);
    }
    static size_t panel_at(size_t p) {
        return kLanes * kLanes * (p * (p + 1) / 2);
    }
    size_t depth(size_t p) const {
        return p * kLanes + kLanes < d ? p * kLanes + kLanes : d;
    }

    /// y in the unit of dimension j, but for what floats do not hold.
    float in_unit(float y, size_t j) const;
    std::vector<float> scaled_factor(
            const GaussianMixture& model, size_t c) const;
    void prepare_small(const GaussianMixture& model);
    void start_small(size_t n, const float* y, SmallScratch& scratch) const;
    void log_joints_small(SmallScratch& scratch) const;
    void repeat_in_double(
            size_t n,
            const float* y,
            double reach,
            SmallScratch& scratch) const;
    void guess(size_t n, const float* y, const double* norm, Scratch& scratch)
            const;
    void list_guesses(size_t n, int which, Scratch& scratch) const;
    void list_others(size_t n, double reach, Scratch& scratch) const;
    void group(size_t n, Scratch& scratch) const;
    void evaluate_all(const float* y, double reach, Scratch& scratch) const;
    void evaluate(
            size_t c,
            const int32_t* rows,
            size_t count,
            const float* y,
            double reach,
            Scratch& scratch) const;
    void refine(const float* y, double reach, Scratch& scratch) const;
};

} // namespace gmm
