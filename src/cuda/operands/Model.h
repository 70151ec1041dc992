#pragma once

#include "GaussianMixture.h"
#include "cuda/engine/Staging.h"
#include "cuda/operands/ModelSurvey.h"
#include "cuda/score/Score.h"

namespace gmm::cuda {

/// How scores are computed and what the matrix products are made of.
enum class Geometry {
    product, ///< isotropic, tied, and distances: Y M^T, row constants
    squares, ///< diagonal: [Y, Y^2] [M1, M2]^T
};

/// Estimates of what fp16 alone costs scores.
struct ModelErrors {
    float worst;   ///< rms of a component, as prepare() made it, nats
    float as_is;   ///< and were it not widened
    int narrow;    ///< components above the tolerance
    int collapsed; ///< of them, those of Model::kCollapsed
};

/// What a model's operands are for.
struct ModelUse {
    bool hard;        ///< scores are -|Y - M|^2 / 2 instead of log2 densities
    float fp16_scale; ///< a power of two, as in PrepareArgs
    bool lo;          ///< second halves as well
    double tolerance; ///< rms error in nats that a component may have
    /// Operands may have larger variances than an isotropic model, where only
    /// these can be folded: see Model::least_variance.
    bool widen = false;
    double largest_q = 0; ///< of the rows, as in a slot; 0: not known
};

/** A mixture on the device, prepared for the score kernels and, in fp32, for
 * exact evaluation of single pairs. */
struct Model {
    /// Uploads the parameters; both kinds of preparation follow from them.
    void
    upload(const GaussianMixture& model, Staging& staging, cudaStream_t stream);

    /// Fills operand and constants.
    void prepare(const ModelUse& use, cudaStream_t stream);

    /// After prepare (waits).
    ModelErrors errors(cudaStream_t stream);

    /// @param split  products of hi + lo; else of hi alone
    ScoreArgs score_args(bool split) const;

    /// Only where `folded` says so.
    const AugmentedOperands& folded_operands() const {
        return folded_;
    }

    /// The largest term of a score, bits, of rows whose q is this at most (as
    /// in a slot); what cancels is as large.
    double largest_score(double q) const;

    /// From which variance on operands can be folded and scores of such rows
    /// are precise enough to be summed; 0: all can, or none.
    double least_foldable(float fp16_scale, double largest_q) const;

    Covariance covariance = Covariance::isotropic;
    Geometry geometry = Geometry::product;
    int k = 0;
    int d = 0;
    int padded_k = 0;
    bool lo = false;
    ModelSurvey survey;  ///< upload begins it; after prepare it is there
    bool folded = false; ///< there are folded operands (AugmentedOperands.h)
    /** Of folded operands, and where first halves are all that counts, the
     * least variance; 0: any. A component that has collapsed has less, and is
     * widened to it with its score at the mean kept: scores are then at least
     * the component's, and larger only near its mean. Rows near by are told
     * from others by exact scores (refine()). */
    double least_variance = 0;
    bool collapsed = false;  ///< a component has, as errors() found
    float operand_scale = 1; ///< of the component operand (product)

    // fp32, frame's units, for exact evaluation
    float* means = nullptr;        ///< [k][d]
    float* half_inverse = nullptr; ///< log2(e) / (2 v): [k], or [k][d]
    float* log_constant = nullptr; ///< [k] score at the mean
    /// [k] 0: fp16 does. 1: rows of the dense path need lo, by the component's
    /// own estimate. 2: sums need it as well. kCollapsed: its variance is less
    /// than folded operands hold, and others give scores that are bits off
    unsigned char* narrow = nullptr;
    static constexpr unsigned char kCollapsed = 3;
    /** [k] for is_doubtful (Refine.cu): 2 ln 2 / (v d), |what fp16 misses of
     * the mean|^2, the score at the mean, and what the matrix units cut off a
     * row constant of 1, in nats. Diagonal: what makes the first two the
     * component's estimate for a row as far out as most, likewise, and the
     * estimate. */
    float4* doubt = nullptr;

private:
    /// Whether folded operands stay in fp16's range.
    bool can_augment(float fp16_scale) const;

    Operand operand_;
    AugmentedOperands folded_;
    float4* constants_ = nullptr; ///< for hi alone, then for hi + lo
    float* variances_ = nullptr;
    float* log_weights_ = nullptr;
    ModelErrors* errors_ = nullptr;
    PinnedMemory errors_host_;
    DeviceMemory memory_;
    DeviceMemory planes_;
};

} // namespace gmm::cuda
