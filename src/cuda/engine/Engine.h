#pragma once

#include <memory>

#include "cuda/dense/Dense.h"
#include "cuda/engine/BlockUploader.h"
#include "cuda/engine/DeviceShare.h"
#include "cuda/operands/Data.h"
#include "cuda/operands/Model.h"
#include "cuda/sparse/LongLists.h"
#include "cuda/sparse/Sparse.h"

namespace gmm::cuda {

/// Components are listed while all that are not weigh less than 2^-bits of a
/// row together.
inline double list_bits(Precision precision) {
    return precision == Precision::exact ? 14 : 10;
}

/** One device's share of the work: its rows, its scratch, its sums.
 */
struct Engine : DeviceShare {
    Engine(int device, const CudaOptions& options);
    ~Engine();

    /// Rows [begin, end) of the source are this device's.
    void bind(
            const VectorSource& source,
            size_t begin,
            size_t end,
            const float* weights,
            double weight_scale,
            const Frame& frame);

    /// What sums take for the rows' |y|^2, in the frame's units: device memory
    /// that outlives the next bind(), a value for each row of the share, to
    /// whole tiles; nullptr: |y|^2 itself. Not for diagonal covariances.
    void set_row_squares(float* squares) {
        row_squares_ = squares;
    }

    /// The source's rows are others than they were at bind().
    void rows_changed() {
        fp16_scale_ = 0;
        largest_norm_ = 0;
    }

    void set_model(const GaussianMixture& model);

    void accumulate(EStep step);

    /// The last accumulate()'s sums, to stats of the model's shape: replaces
    /// what is there, or adds to it.
    void read_sums(EStep step, bool add, SufficientStats& stats);

    void top_components(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob,
            EStep order);

    /// Natural log, the frame's units, of the last block's rows.
    std::vector<float> row_log_prob() const;

private:
    struct Precisions {
        bool lo = false;       ///< second halves are needed
        bool refine = false;   ///< entries are evaluated in fp32
        bool all = false;      ///< all of them, not only what is doubtful
        bool sums_lo = false;  ///< second halves count in the sparse sums
        bool dense_lo = false; ///< and in the dense path
        bool narrow = false;   ///< components are above the tolerance
        bool many = false;     ///< of them, more than an eighth
        bool widened = false;  ///< folded operands have some (Model)
        double error = 0;      ///< of a score, bits
        double tolerance = 0; ///< of estimates, which take dimensions for alike
    };

    /// @param widen  components that have collapsed, so that operands fold
    Precisions prepare_model(EStep step, bool widen);
    void reserve(bool lo);
    void make_resident(bool lo);
    void use_block(
            const PreparedRows& rows,
            int64_t row_begin,
            int count,
            const float* weight,
            EStep step,
            Precisions& p);
    /// Adds the first of some rows to the dense sums by first halves, and
    /// leaves the others; if narrow components have mass there, forgets the
    /// sums and returns false.
    bool first_halves_do(NumberedRows& rows);
    /// Of the dense path, on the host.
    bool narrow_have_mass() const;
    /// Reads what conversion found; whether fp16's range was left, and so
    /// fp16_scale was lowered.
    bool lower_fp16_scale();
    /// Throws if a row, of those that lower_fp16_scale saw, is not finite.
    void check_rows() const;
    /// Whether rows and model allow the dense path's one kernel.
    bool can_fuse() const;
    void clear_checks();
    bool has_squares() const;
    int planes(bool lo) const;
    size_t used_bytes() const;
    PrepareArgs prepare_args(
            const BlockUploader::Block& block, ElementType type) const;

    ScoreKernels score_;
    int last_rows_ = 0;

    double weight_scale_ = 1;
    double least_weight_ = 1; ///< above 0, as the kernels see it

    GaussianMixture shape_; ///< covariance, k, d only
    Model model_;
    bool needed_lo_ = false; ///< second halves, by the last soft pass
    float fp16_scale_ = 8;
    float largest_norm_ = 0;      ///< of a row seen, as RowChecks has it
    bool scaled_squares_ = false; ///< what fp16_scale_ was chosen for
    float* row_squares_ = nullptr;

    // Rows: all of them (resident), or one block.
    DeviceMemory rows_memory_;
    PreparedRows rows_;
    DeviceMemory weight_memory_;
    PinnedMemory weight_staging_;
    bool resident_ = false;
    bool resident_lo_ = false, resident_squares_ = false;
    int block_rows_ = 0;
    std::unique_ptr<BlockUploader> feeder_;

    SparseScratch sparse_;
    DenseStep dense_;
    LongLists long_;
    DeviceMemory sums_memory_; ///< DeviceSums, totals, partial sums
    DeviceSums sums_;
    /// Objective, mass dropped, n_k of narrow components in the dense path, and
    /// the counters of sum_values.
    static constexpr int kTotals = 4;
    double* objective_ = nullptr;
    PinnedMemory totals_host_;
    DeviceMemory small_; ///< frame's centre, RowChecks
    PinnedMemory checks_host_;
    DeviceMemory top_memory_;
};

} // namespace gmm::cuda
