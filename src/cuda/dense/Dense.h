#pragma once

#include "cuda/dense/DenseProduct.h"
#include "cuda/engine/BlockPlan.h"
#include "cuda/engine/Check.h"
#include "cuda/operands/Data.h"
#include "cuda/operands/Model.h"
#include "cuda/sparse/Sparse.h"

/** The dense M-step, for rows whose responsibilities are spread over more
 * components than a list holds: early iterations, wide components, noise.
 *
 * On a Hopper, where operands are folded (AugmentedOperands.h), most rows need
 * it and components are few, clusters of blocks do all at once
 * (DenseCtaCluster.cu). Otherwise rows are gathered into blocks. For each: the
 * exact log-sum-exp; then, on a Hopper and from folded operands, all sums in
 * one kernel (DenseHopper.cu). Elsewhere, scores in a bounded scratch, from
 * them responsibilities as fp16, and R^T Y on the matrix units; where there are
 * many components, scores twice, a tile of components at a time.
 */
namespace gmm::cuda {

constexpr int kDenseRows = kWave;
constexpr int kDenseComponents = 512;
constexpr int kDenseTileRows = kGatherTile;
/// Components whose scores are kept for a step's rows; more, and they are
/// computed again, kDenseComponents at a time.
constexpr int kDenseScored = 4096;
constexpr int kDenseTotalSplits = 32; ///< of the sums of r, in steps

/// One launch of the fused kernel; lo: of operands of two planes.
struct DenseSumsArgs {
    Operand rows;
    int64_t row_begin;       ///< within the operand
    Operand row_slots;       ///< kWideSlots, lowered by log-sum-exps; of the
                             ///< launch's whole tiles of rows, as the next
    Operand components;      ///< folded
    Operand component_slots; ///< one plane
    const float* row_constant;
    int row_tiles; ///< of kDenseTileRows
    int d;
    int padded_k;
    int splits;     ///< of the rows
    float* partial; ///< [splits][padded_k][d] is added to
    double* totals; ///< [splits][padded_k][2] likewise: sums of r and r q
};
void dense_sums_hopper(const DenseSumsArgs&, bool lo, cudaStream_t);

/// Blocks of a cluster, one for each tile of components.
constexpr int kMaxCtaCluster = 8;
constexpr int kCtaClusterRows = 64;

/// One launch of the cluster kernel, of first halves and whole tiles of rows.
struct CtaClusterArgs {
    Operand rows;
    int64_t row_begin; ///< within the operand
    Operand row_slots;
    Operand components; ///< folded
    Operand component_slots;
    int row_tiles; ///< of kCtaClusterRows
    int d;
    int k;
    int padded_k; ///< kMaxCtaCluster tiles at most
    /// Of components whose scores may be wrong by `slack` bits: they get no
    /// sums here, and rows of which they might have 2^-bound (20 at most, for
    /// exponentials are fp16) are left out. nullptr: there are none
    const unsigned char* narrow;
    float slack;
    float bound;
    const float* row_weight; ///< of the first row, or nullptr
    float* row_lse; ///< rows that have one are left out, others' are filled in
    float fold;     ///< augmented_scale
    int splits;     ///< of the rows: clusters
    float* partial; ///< as in DenseSumsArgs
    double* totals;
};
void cta_cluster_sums(const CtaClusterArgs&, cudaStream_t);
/// Clusters that the current device runs at a time; 0: it cannot.
int cta_clusters(int d, int padded_k);

/// The kernels' common face, bound to a device's best.
struct ScoreKernels {
    bool hopper = false;

    template <class Out>
    void operator()(
            const ScoreArgs& args, const Out& out, cudaStream_t stream) const {
        if (hopper) {
            score_hopper(args, out, stream);
        } else {
            score_portable(args, out, stream);
        }
    }
};

/// Blocks that share a row block's components, where rows are few.
int splits_of(int rows, int components);

/// Rows that the dense path takes at a time, gathered or where they are.
struct DenseRows {
    const PreparedRows& rows;
    int64_t begin;
    int count;
    const float* weight; ///< of the first row, or nullptr
    /// Within the block; nullptr: rows are in place, and those that have a
    /// log-sum-exp are left out.
    const uint32_t* numbers;
    float* row_lse; ///< of the block; in place, of the first row
    bool lo;        ///< second halves count
    bool apart;     ///< as in DenseStep::accumulate
};

/// Some of a block's rows.
struct NumberedRows {
    const PreparedRows& rows;
    int64_t row_begin; ///< the block's first
    float fp16_scale;
    const float* weight; ///< of the block, or nullptr
    float* row_lse;      ///< of the block; these rows' are filled in
    uint32_t* numbers; ///< device, size count: rows within the block, in order
    int count;
};

struct DenseStep {
    /// @param fused  the one kernel is used; else the three
    void reserve(
            int padded_k, int d, int planes, bool squares, bool lo, bool fused);
    void release();
    size_t bytes() const;

    /// Room for kDenseRows gathered rows, and what scratch there is beside.
    const PreparedRows& gathered() const {
        return rows_;
    }
    float* scratch() const {
        return scratch_.as<float>();
    }
    size_t scratch_bytes() const {
        return scratch_.bytes();
    }

    /// Start of a pass; what was gathered is forgotten.
    void begin();

    /** Adds the sums of some rows of a block.
     *
     * @param block_rows  of which they are some: from three quarters on, all
     *                    that have no log-sum-exp yet are read in place; 0:
     *                    none are
     * @param lo          second halves count
     * @param apart       in steps and of both halves (which there must be)
     *                    whatever the others are, so that narrow components
     *                    have what is theirs, and find_narrow does not count
     *                    it. For few rows
     */
    void accumulate(
            const ScoreKernels&,
            const Model&,
            const NumberedRows&,
            int block_rows,
            bool lo,
            bool apart,
            cudaStream_t);

    /// Whether add_by_cta_cluster can be used: components are few.
    bool has_clusters() const {
        return clusters_ > 0;
    }
    /** Adds the sums of rows in place by first halves; not those of which
     * narrow components, whose scores may be wrong by `slack` bits, might have
     * 2^-bound, nor those behind the last tile of kCtaClusterRows. */
    void add_by_cta_cluster(
            const Model&,
            const DenseRows&,
            float fp16_scale,
            const unsigned char* narrow,
            float slack,
            float bound,
            cudaStream_t);

    /// The largest n_k so far of a component of which Model::narrow says
    /// `least` or more; device, if it is larger than what is there.
    void find_narrow(
            const Model&,
            unsigned char least,
            double* largest,
            cudaStream_t) const;

    /// End of a pass: adds what was gathered to the sums.
    void collect(const DeviceSums&, cudaStream_t);

private:
    /// Clears the sums before the pass's first.
    void use(cudaStream_t);
    /// Log-sum-exps of a block to row_lse, and to slots_ where it is fused.
    void find_lse(
            const ScoreKernels&,
            const ScoreArgs&,
            const DenseRows&,
            float fp16_scale,
            cudaStream_t);
    void sum_fused(
            const ScoreKernels&,
            const Model&,
            const DenseRows&,
            float fp16_scale,
            cudaStream_t);
    /// Of gathered rows only.
    void sum_in_steps(
            const ScoreKernels&,
            const Model&,
            const DenseRows&,
            float fp16_scale,
            cudaStream_t);

    DeviceMemory rows_memory_, scratch_, sums_;
    PreparedRows rows_;
    int capacity_ = 0;        ///< rows that there is room to gather
    int step_rows_ = 0;       ///< of one step, not fused
    __half* slots_ = nullptr; ///< [capacity_][kWideSlots], fused
    float* weight_ = nullptr;
    float* lse_ = nullptr;
    float* value_ = nullptr;  ///< of gathered rows, as PreparedRows has them
    float* scores_ = nullptr; ///< [step_rows_][padded_k_], or nullptr
    __half* hi_ = nullptr;
    __half* lo_ = nullptr;
    float* partial_ = nullptr; ///< [split][part][padded_k][d]
    /// [total_splits_ + apart_splits_][padded_k][2]
    double* totals_ = nullptr;
    int splits_ = 0, total_splits_ = 0, apart_splits_ = 0, parts_ = 0,
        padded_k_ = 0, d_ = 0;
    int clusters_ = 0;
    bool fused_ = false, used_ = false;
};

} // namespace gmm::cuda
