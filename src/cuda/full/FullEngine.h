#pragma once

#include <functional>
#include <vector>

#include "cuda/engine/BlockUploader.h"
#include "cuda/engine/DeviceShare.h"
#include "cuda/full/Screen.h"
#include "cuda/full/Whitened.h"

namespace gmm::cuda {

/** One device's share of the work for the kinds `full` and `tied`: its rows,
 * all of them or a block at a time, its scratch, its sums (full: of all second
 * moments, 4 k d (d + 1) bytes). */
struct FullEngine : DeviceShare {
    FullEngine(int device, const CudaOptions& options)
            : DeviceShare(device, options), whitened_(device, options) {}
    ~FullEngine();

    /// Rows [begin, end) of the source are this device's.
    void bind(
            const VectorSource& source,
            size_t begin,
            size_t end,
            const float* weights,
            double weight_scale,
            const Frame& frame);

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
    using Block = BlockUploader::Block;

    void reserve();
    void load(const Block& block, int64_t to);
    void check_rows();
    void find_basis(int64_t count);
    full::Directions directions() const;
    void add_totals(int64_t first, int64_t count);
    full::FullModelView prepare(EStep step);
    /// The pass by whitened rows; false where that cannot be.
    bool accumulate_whitened(EStep step);
    void use_block(
            const full::FullModelView& model,
            int64_t first,
            int64_t count,
            EStep step);
    /// What the host reads.
    struct HostTotals {
        double objective;
        unsigned long long dropped, kept;
        uint32_t pairs, tiles;
    };
    struct ListSize {
        uint32_t pairs, tiles;
    };
    ListSize count_all(int64_t begin, int64_t end);
    /// Of words [begin, end) of the bits.
    using UseList = std::function<void(
            int64_t begin, int64_t end, uint32_t pairs, uint32_t tiles)>;
    /// Calls it with the lists of all words, as many at a time as there is room
    /// for.
    void each_list(int64_t begin, int64_t end, const UseList& use);
    /// Of rows [first, first + count) of a block: all pairs within reach are in
    /// the lists, evaluated.
    using UsePairs =
            std::function<void(int64_t first, int64_t count, uint32_t pairs)>;
    void score_block(
            const full::FullModelView& model,
            const full::FullRows& rows,
            int64_t count,
            float reach,
            const UsePairs& use);
    float reach_of(EStep step) const;
    full::LoadArgs load_args(const Block& block, ElementType type) const;
    size_t used_bytes() const;

    Covariance covariance_ = Covariance::full;
    int k_ = 0, d_ = 0, pitch_ = 0;
    DeviceMemory means_, factors_, log_weights_, identity_, bounds_;
    DeviceMemory prepare_scratch_;

    DeviceMemory rows_memory_, row_weights_;
    full::FullRows rows_ = {};
    int64_t block_rows_ = 0;
    bool resident_ = false; ///< rows are there
    bool stays_ = false;    ///< and are to be
    BlockUploader feeder_;
    DeviceMemory basis_;
    bool has_basis_ = false;
    DeviceMemory screen_;
    bool screens_ = false; ///< in this pass, from the first block on
    int64_t last_rows_ = 0;

    DeviceMemory bits_, lists_memory_, row_memory_, small_, top_memory_;
    full::PairBits pairs_ = {};
    full::PairLists lists_ = {};
    size_t most_pairs_ = 0;
    full::RowTotals totals_ = {};
    full::PassTotals pass_ = {};
    PinnedMemory host_;

    DeviceMemory sums_memory_, pieces_memory_, total_memory_;
    full::MomentSums sums_ = {};
    int pieces_ = 1;
    bool small_shape_ = false; ///< accumulate_small does it
    bool has_totals_ = false;  ///< tied: the moments of all rows

    Whitened whitened_;    ///< tied, where all rows are resident
    bool whitens_ = false; ///< did the last pass
    double weight_scale_ = 1;
};

} // namespace gmm::cuda
