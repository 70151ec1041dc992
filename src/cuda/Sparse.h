#pragma once

#include "Check.h"
#include "Data.h"
#include "Model.h"

/** The sparse M-step: what select left, sorted by component and summed.
 *
 * Rows are fetched once for each of their entries. So that all but the first
 * fetch finds them in L2, entries are sorted by group of rows first (a group
 * fits into L2) and by component within the group.
 *
 * Everything is in an order that does not depend on scheduling: entries are
 * compacted in row order, the radix sort is stable, each warp sums a fixed
 * range of the sorted entries and each component its ranges in order.
 */
namespace gmm::cuda {

/// Sums of one device over its blocks, in the prepared rows' units.
struct DeviceSums {
    double* n_k = nullptr;      ///< [k]
    double* constant = nullptr; ///< [k] sum of r (-|Y|^2 / 2)
    double* y = nullptr;        ///< [k][d] sum of r Y
    double* y2 = nullptr;       ///< [k][d] sum of r Y^2, or nullptr
    int k = 0, d = 0;

    size_t count() const { ///< doubles, contiguous from n_k
        return size_t(k) * (2 + size_t(d) * (y2 ? 2 : 1));
    }
};

/// Sorted entries that one warp sums.
constexpr int kRange = 128;

/// A piece: sums of a run of entries of one component. [r, r q, r y (d),
/// r y^2 (d)]
__host__ __device__ constexpr int piece_size(int d, bool squares) {
    return (2 + d * (squares ? 2 : 1) + 3) / 4 * 4;
}

/** Where entries of overflowed rows go: behind those of the block. */
struct EntryRoom {
    uint32_t* keys;
    uint2* values;
    uint32_t used, size;
    int group_rows; ///< rows of a group, see compact
    int k;
};

/// Scratch for a block of at most `rows` rows.
struct SparseScratch {
    void reserve(int rows, int k, int d, bool squares);
    void release();
    size_t bytes() const;
    int units(int rows) const;
    static size_t bytes_for(int rows, int k, int d, bool squares);
    /// After compact, of a block of `rows` rows with `used` entries.
    EntryRoom room(int rows, uint32_t used) const;

    uint32_t* keys = nullptr; ///< as select writes them
    uint2* values = nullptr;
    uint16_t* row_ranges = nullptr;
    uint64_t* unit_counts = nullptr; ///< one more than units
    float* unit_dropped = nullptr;
    float* row_lse = nullptr;
    uint32_t* lost = nullptr;       ///< of the probe
    uint32_t* overflowed = nullptr; ///< rows left to the dense path

private:
    friend struct SparseStep;
    DeviceMemory memory_;
    PinnedMemory total_;
    uint64_t* offsets_ = nullptr;
    uint32_t* sorted_keys_[2] = {};
    uint2* sorted_values_[2] = {};
    uint32_t* starts_ = nullptr;
    float* head_ = nullptr;
    float* tail_ = nullptr;
    float* whole_ = nullptr;
    int groups_ = 1;
    int k_ = 0;
    void* temporary_ = nullptr;
    size_t temporary_bytes_ = 0;
};

struct SparseStep {
    int64_t entries = 0;
    int overflowed = 0;

    /// Puts entries and overflowed rows in order; waits for their numbers.
    void compact(SparseScratch&, int rows, cudaStream_t);
    /// The same once more, where rows that had overflowed have been dealt with.
    void compact_again(SparseScratch&, int rows, cudaStream_t);
    /** Adds the entries' sums. Rows are those of the block, from row_begin.
     *
     * @param lo      second halves count
     * @param narrow  of components that it says more than 1 of; nullptr: all
     */
    void accumulate(
            SparseScratch&,
            const PreparedRows&,
            int64_t row_begin,
            bool lo,
            const unsigned char* narrow,
            const DeviceSums&,
            cudaStream_t);
};

/** Evaluates (Evaluate.cuh) all entries, or those whose responsibility's error
 * may be above the tolerance (nats), and what follows from them: their rows'
 * responsibilities and log-sum-exps. */
void refine(
        const SparseScratch&,
        int rows,
        const PreparedRows&,
        int64_t row_begin,
        float power,
        const float* row_weight,
        const Model&,
        bool all,
        float tolerance,
        cudaStream_t);

/// sum of weight * value, in a fixed order; is added to *sum (device).
struct ValueSum {
    const float* values;
    const float* weight; ///< or nullptr
    int count;
    double* sum;
    double* scratch; ///< kSumBlocks doubles
};
/// A second of no values is left out.
void sum_values(const ValueSum& first, const ValueSum& second, cudaStream_t);
constexpr int kSumBlocks = 256;

} // namespace gmm::cuda
