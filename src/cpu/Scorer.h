#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "../Backend.h"
#include "../InnerProducts.h"
#include "Kernels.h"
#include "Screen.h"

namespace gmm {

/// Responsibilities below this are left out of the M-step.
constexpr float kLeastResponsibility = 1e-7f;
/// The same of up to kFewPairs vectors times components, where it costs little:
/// what is this small decides whether a component that hardly any vector is
/// left to comes back.
constexpr float kLeastOfFew = 1e-17f;
constexpr double kFewPairs = 1e6;

inline float least_responsibility(size_t n, size_t k) {
    return double(n) * double(k) <= kFewPairs ? kLeastOfFew
                                              : kLeastResponsibility;
}

/// The components that may matter to one vector.
struct Candidates {
    size_t n = 0;
    std::vector<int32_t> index; ///< ascending
    std::vector<float> value;   ///< log-joints minus shift
    double shift = 0;
    double tail = 0; ///< sum of exp(log-joint - shift) over the others
    std::vector<float> work;

    /// Room for all of k components.
    explicit Candidates(size_t k);

    /// Where the largest value is; among equals, the lowest component.
    size_t best() const;

    /// Turns values into responsibilities, and tail into what is left for
    /// the others. Returns the logarithm of the sum of all: log p(y).
    double normalise();
};

/// Rows whose nearest means are looked for.
struct HardRows {
    size_t n;
    const float* y;       ///< size n * d
    const double* norm;   ///< |y|^2, size n
    const float* weights; ///< size n: rows of 0 are left out; nullptr: none is

    bool skips(size_t i) const {
        return weights && weights[i] == 0;
    }

    HardRows from(size_t i, size_t d) const {
        return {n - i, y + i * d, norm + i, weights ? weights + i : nullptr};
    }
};

/// What one thread needs for that.
struct HardScratch {
    std::vector<float> v;
    Screen::Scratch screen;
    Candidates candidates;

    explicit HardScratch(size_t k) : candidates(k) {}
};

/** Log-joints of blocks of vectors under one mixture, in the frame's units.
 *
 * One matrix product gives float log-joints of all components; they select
 * the candidates. A candidate whose rounding error might be seen is computed
 * again in double: d operations where the product spent k * d. Where much would
 * cancel in the product (diagonal covariances, whose variances may be of any
 * proportion, and components that are narrow for how far from the origin they
 * are), squares of differences are summed instead, at twice the cost.
 *
 * EStep::hard: the same with -|y - mu|^2 / 2 for the log-joint.
 */
struct Scorer {
    size_t d;
    size_t k;
    size_t padded; ///< k rounded up to kLanes
    size_t stride; ///< of rows of v: padded, and room behind for multiply()

    /// @param least  responsibilities below it may be left out
    Scorer(const GaussianMixture& model, EStep step, float least);

    /** The part of the log-joints that is a matrix product.
     *
     * @param y  size n * d
     * @param v  size n * stride
     */
    void multiply(size_t n, const float* y, float* v) const;

    /// Completes a row of v, given |y|^2; its largest value.
    float finish(double norm, float* v) const;

    /** Selects the components whose responsibility may reach the least one
     * that counts.
     *
     * @param v        a row completed by finish()
     * @param largest  what finish() returned
     */
    void select(const float* y, const float* v, float largest, Candidates& out)
            const;

    /** Instead of select(), where most components may have a responsibility:
     * v becomes exp(log-joint - largest) of all.
     *
     * @return  their sum; 0, and v as it was, if floats say too little
     */
    double exponentials(float* v, float largest) const;

    /// Whether multiply(), finish() and select() have a way that computes less.
    bool screens() const {
        return screen.k > 0;
    }

    /// As multiply, finish and select, with bounds of log-joints for v; v has
    /// no use afterwards.
    void multiply_bytes(
            size_t n, const float* y, Screen::Scratch& scratch, float* v) const;

    /** Selects, of row i of multiply_bytes, all components that select() would
     * and all that log p(y) could show; their values are exact. EStep::hard:
     * all that may be the nearest, without values.
     *
     * @param norm  |y|^2
     * @param most  candidates; with more false is returned and nothing selected
     */
    bool select_screened(
            size_t i,
            double norm,
            size_t most,
            const float* y,
            const Screen::Scratch& scratch,
            float* v,
            Candidates& out) const;

    /** EStep::hard: the mean nearest to each row, among equals the lowest.
     *
     * In time O(n k d) wherever means are: by products, from bytes where these
     * are quicker, and from the first row on for which so many means are as
     * near as products can tell, by squares of differences. */
    void nearest(
            const HardRows& rows, HardScratch& scratch, int32_t* out) const;

    /// The m best components: (log-joint in double, component), best first.
    void select_best(
            size_t m,
            const float* y,
            const float* v,
            float largest,
            Candidates& scratch,
            std::vector<std::pair<double, int32_t>>& best) const;

    /// The log-joint of one component in double.
    double exact(const float* y, size_t c) const;

    /// |y - mu_c|^2 in double.
    double distance(const float* y, size_t c) const;

private:
    const Kernels& kernel;
    EStep step;
    std::vector<float> means;
    PackedMeans products; ///< mu_kj / var_kj, of narrow ones 0; not diagonal
    Screen screen;        ///< of the same factors; not diagonal
    PackedMeans scales, shifts;    ///< diagonal: of all; else of narrow ones
    std::vector<int32_t> narrow;   ///< whose log-joints are sums of squares
    std::vector<float> bias;       ///< what does not depend on y, size padded
    std::vector<float> precision;  ///< 1 / var_k, size padded; diagonal: 0
    std::vector<float> precisions; ///< 1 / var_kj, size k * d; diagonal
    std::vector<double> variance;  ///< size k; not diagonal
    std::vector<double> log_norm;  ///< the log-joint at the mean, size k
    /// Of error_bound(), size k, and the largest of all
    std::vector<double> fixed_error, root_error;
    double most_fixed, most_root;
    double largest_log_norm;
    /// Of exponentials(): components that floats say too little of, and
    /// most_fixed, most_root and largest_log_norm of the others
    std::vector<int32_t> unsure;
    double sure_fixed = 0, sure_root = 0, sure_log_norm;
    double rounding;
    /// How far below the best log-joints are kept, and seen in log p(y); hard:
    /// 0
    double reach, visible;
    /// EStep::hard: of all means, made where they are needed
    mutable std::once_flag differences_ready;
    mutable PackedMeans difference_scales, difference_shifts;

    /// Components whose product of floats may be wrong by more nats are narrow:
    /// it would tell little of them, and what all must allow for nothing of the
    /// others.
    static constexpr double kNarrow = 0.5;
    /// With an error bound above this many nats, float log-joints select
    /// nothing.
    static constexpr double kUseless = 1e3;

    bool diagonal() const {
        return !precisions.empty();
    }
    void prepare_diagonal(const GaussianMixture& model);
    void prepare_product(const GaussianMixture& model);
    double most_of_near_means() const;
    size_t nearest_by_bytes(
            const HardRows& rows, HardScratch& scratch, int32_t* out) const;
    size_t nearest_by_products(
            const HardRows& rows, HardScratch& scratch, int32_t* out) const;
    void nearest_by_differences(
            const HardRows& rows, HardScratch& scratch, int32_t* out) const;
    int32_t nearest_of(const float* y, const Candidates& candidates) const;
    void split_row(
            const float* v, float largest, double error, Candidates& out) const;
    void find_unsure();
    bool loses_variance(size_t c) const;
    void multiply_narrow(size_t n, const float* y, float* v) const;
    float put_narrow(float largest, float* v) const;
    double error_bound(double mahalanobis, double fixed, double root) const;
    double row_error(float largest) const;
    void refine(const float* y, double tolerance, Candidates& out) const;
    void all_exact(const float* y, Candidates& out) const;
};

} // namespace gmm
