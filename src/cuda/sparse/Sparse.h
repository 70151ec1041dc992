#pragma once

#include <algorithm>
#include <bit>

#include "cuda/engine/Check.h"
#include "cuda/operands/Data.h"
#include "cuda/operands/Model.h"

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
    double* n_k = nullptr; ///< [k]
    /// [k] sum of r (-|Y|^2 / 2), or of r times the rows' values
    double* constant = nullptr;
    double* y = nullptr;  ///< [k][d] sum of r Y
    double* y2 = nullptr; ///< [k][d] sum of r Y^2, or nullptr
    int k = 0, d = 0;

    size_t count() const { ///< doubles, contiguous from n_k
        return size_t(k) * (2 + size_t(d) * (y2 ? 2 : 1));
    }
};

/// Groups of rows that entries are sorted by, at most.
constexpr int kMaxGroups = 64;
/// Sorted entries that one warp sums.
constexpr int kRange = 128;

/// A piece: sums of a run of entries of one component. [r, r q, r y (d),
/// r y^2 (d)]
__host__ __device__ constexpr int piece_size(int d, bool squares) {
    return (2 + d * (squares ? 2 : 1) + 3) / 4 * 4;
}

/** Entries as they are sorted: one word. From the top group of rows,
 * component (both together: the key), row within the group, responsibility.
 *
 * Rows and components take their number of bits. What these leave is the
 * responsibility's, a float without its sign: all of it up to 2^30 pairs of row
 * and component, and for 2^22 rows of 2^16, 2^20 and 2^23 components it is
 * rounded to 2^-19, 2^-15 and 2^-12 of itself. ResponsibilityTriple.cuh reads
 * and writes them.
 */
struct TripleLayout {
    int group_rows; ///< whole units
    int component_bits, row_bits, value_bits;
};

inline int units_of(int rows) {
    return (rows + kUnitRows - 1) / kUnitRows;
}

/// For a block of `rows` rows in so many groups of equal size.
inline TripleLayout entry_layout(int rows, int k, int groups) {
    TripleLayout layout;
    layout.group_rows = (units_of(rows) + groups - 1) / groups * kUnitRows;
    layout.component_bits = std::bit_width(unsigned(k - 1));
    layout.row_bits = std::bit_width(unsigned(layout.group_rows - 1));
    const int group_bits = std::bit_width(unsigned(groups - 1));
    layout.value_bits = std::min(
            31, 64 - group_bits - layout.component_bits - layout.row_bits);
    return layout;
}

/** Where entries of overflowed rows go: behind those of the block. */
struct TripleRoom {
    uint64_t* entries;
    float* scores; ///< scratch, one for each entry
    uint32_t used, size;
    int k;
    TripleLayout layout;
};

/// From select's units to a block's entries and overflowed rows, in order.
struct CompactArgs {
    int units, rows;
    const uint32_t* keys; ///< as select writes them
    const uint2* values;
    const float* row_lse;    ///< NaN: the row has overflowed
    const uint64_t* offsets; ///< [units + 1] entries | overflowed rows << 32
    TripleLayout layout;
    uint64_t* entries;
    uint32_t* overflowed;
};

/// Scratch for a block of at most `rows` rows.
struct SparseScratch {
    SparseScratch() = default;
    SparseScratch(const SparseScratch&) = delete;
    SparseScratch& operator=(const SparseScratch&) = delete;
    ~SparseScratch();

    void reserve(int rows, int k, int d, bool squares);
    void release();
    size_t bytes() const;
    static size_t bytes_for(int rows, int k, int d, bool squares);
    /// Of a block, at most, if its groups are to stay in L2.
    static int64_t good_rows(int k, int d, bool squares);
    /// Behind the `used` entries of a block of `rows` rows.
    TripleRoom room(int rows, uint32_t used) const;
    CompactArgs compaction(int rows) const;

    uint32_t* keys = nullptr; ///< as select writes them
    uint2* values = nullptr;
    uint16_t* row_ranges = nullptr;
    uint64_t* unit_counts = nullptr; ///< one more than units
    float* unit_dropped = nullptr;
    float* row_lse = nullptr;
    uint64_t* pilot = nullptr;      ///< SelectArgs's
    uint32_t* rejected = nullptr;   ///< rows, by refine()
    uint32_t* overflowed = nullptr; ///< rows left to the dense path

private:
    friend struct SparseStep;
    TripleLayout layout(int rows) const;
    DeviceMemory memory_;
    PinnedMemory total_;
    cudaStream_t copies_ = nullptr;
    cudaEvent_t placed_ = nullptr;  ///< offsets_ are there
    cudaEvent_t counted_ = nullptr; ///< total_ is
    uint64_t* offsets_ = nullptr;
    uint64_t* entries_[2] = {}; ///< the second is the sort's
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

    /// Finds the places of entries and overflowed rows, and sends for their
    /// numbers.
    void place(SparseScratch&, int rows, cudaStream_t);
    /// Puts them there. refine() does so itself.
    void compact(const SparseScratch&, int rows, cudaStream_t);
    /// Waits for the numbers, not for what was launched since place().
    void wait(const SparseScratch&);
    /// All that once more, where rows that had overflowed have been dealt with.
    void compact_again(SparseScratch&, int rows, cudaStream_t);
    /** Adds the entries' sums. Rows are the block's, `count` from row_begin.
     *
     * @param lo      second halves count
     * @param narrow  of components that it says more than 1 of; nullptr: all
     */
    void accumulate(
            SparseScratch&,
            const PreparedRows&,
            int64_t row_begin,
            int count,
            bool lo,
            const unsigned char* narrow,
            const DeviceSums&,
            cudaStream_t);
};

/** Evaluates (Evaluate.cuh) all entries, or those whose responsibility's error
 * may be above the tolerance (nats), and what follows from them: their rows'
 * responsibilities and log-sum-exps. Then puts entries in order, as compact().
 *
 * @param most_fall  of a row's log-sum-exp, bits. Where it falls further, what
 *                   is listed was chosen by a score far too large: the row
 *                   loses its entries and is rejected, marked as overflowed
 */
void refine(
        const SparseScratch&,
        int rows,
        const PreparedRows&,
        int64_t row_begin,
        float fp16_scale,
        const float* row_weight,
        const Model&,
        bool all,
        float tolerance,
        float most_fall,
        cudaStream_t);
/// How many rows the last refine() rejected; compact_again() counts them.
int rows_rejected(const SparseScratch&, cudaStream_t);

/// sum of weight * value, in a fixed order; is added to *sum (device).
struct ValueSum {
    const float* values;
    const float* weight; ///< or nullptr
    int count;
    double* sum;
    double* scratch; ///< kSumBlocks doubles
    uint32_t* done;  ///< 0, and afterwards again
};
/// A second of no values is left out.
void sum_values(const ValueSum& first, const ValueSum& second, cudaStream_t);
constexpr int kSumBlocks = 256;

} // namespace gmm::cuda
