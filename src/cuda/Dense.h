#pragma once

#include "Check.h"
#include "Data.h"
#include "Model.h"
#include "Sparse.h"

/** The dense M-step, for rows whose responsibilities are spread over more
 * components than a list holds: early iterations, wide components, noise.
 *
 * Rows are gathered into blocks of at most kDenseRows. For each: the exact
 * log-sum-exp; then, a tile of components at a time, responsibilities as fp16
 * in a bounded scratch that stays in L2, and R^T Y on the matrix units.
 */
namespace gmm::cuda {

constexpr int kDenseRows = 132 * 192; ///< one wave of row blocks on an H100
constexpr int kDenseComponents = 512;

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

struct DenseStep {
    void reserve(int padded_k, int d, int planes, bool squares, bool lo);
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

    /// Start of a pass.
    void clear(cudaStream_t);

    /** Adds the sums of the listed rows of a block.
     *
     * @param numbers  device, size count, rows within the block
     * @param row_lse  of the block; the listed rows' are filled in
     */
    void accumulate(
            const ScoreKernels&,
            const Model&,
            const PreparedRows&,
            int64_t row_begin,
            const float* row_weight,
            const uint32_t* numbers,
            int count,
            float* row_lse,
            cudaStream_t);

    /// End of a pass: adds what was gathered to the sums.
    void collect(const DeviceSums&, cudaStream_t);

private:
    DeviceMemory rows_memory_, scratch_, sums_;
    PreparedRows rows_;
    float* weight_ = nullptr;
    float* lse_ = nullptr;
    __half* hi_ = nullptr;
    __half* lo_ = nullptr;
    float* partial_ = nullptr; ///< [split][part][padded_k][d]
    double* totals_ = nullptr; ///< [kTotalSplits][padded_k][2]
    int splits_ = 0, parts_ = 0, padded_k_ = 0, d_ = 0;
    bool used_ = false;
};

} // namespace gmm::cuda
