#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "VectorSource.h"

/** The E-step of full covariances, a block of rows at a time:
 *
 *   Rows.cu              rows in the frame, and their first coordinates
 *   FullModel.cu         factors, and those of the first coordinates' marginals
 *   Bounds.cu            which components may matter to a row: bits
 *   Screen.cu, ScreenHopper.cu
 *                        the same from all coordinates, where that leaves many
 *   Lists.cu             from bits to the rows of each component
 *   Evaluate.cu          log-joints of the listed pairs, on tensor cores
 *   EvaluateExactly.cu   those again in double that rounding may have moved
 *   Responsibilities.cu  log-sum-exp of each row, responsibilities
 *   Moments.cu           sums and second moments of each component
 *   Whiten.cu            tied: rows in coordinates in which they are as those
 *                        of a tied_spherical mixture
 *   SmallShapes.cu       all of these at once where both K and D are small
 *
 * FullEngine.cpp calls them in this order. */
namespace gmm::cuda::full {

/// First coordinates: after a rotation that brings what varies most to the
/// front, or the rows' own where there are no more.
constexpr int kLead = 16;
/// Rows of a block of threads of the bounds; blocks of rows are whole ones.
constexpr int kBoundRows = 512;
/// Pairs of one component that are evaluated together.
constexpr int kTilePairs = 128;

/// Rows of a block; all that follow are padded with zeros to kBoundRows.
struct FullRows {
    float* y;      ///< the frame's units, rows * pitch
    float* lead;   ///< rows * kLead
    float* slack;  ///< how far rounding may have moved |lead|, size rows
    float* spread; ///< see project_rows, size rows
    int d;
    int pitch; ///< of y, floats; a multiple of 4

    FullRows from(int64_t row) const {
        return {y + row * pitch,
                lead + row * kLead,
                slack + row,
                spread + row,
                d,
                pitch};
    }
};

struct LoadArgs {
    const void* input; ///< device memory
    ElementType type;
    int64_t stride; ///< bytes
    int64_t rows;
    const float* center; ///< device, size d
    float scale;
    int64_t row_number;            ///< of the first row
    unsigned long long* first_bad; ///< lowered to a row that is not finite
    uint8_t* bad;                  ///< whether each is not, or nullptr
};

void load_rows(const LoadArgs& args, const FullRows& out, cudaStream_t stream);

/// What directions there are in the data: in the device's memory.
struct Directions {
    const float* basis;      ///< d * kLead; nullptr: the first coordinates
    const float* deviations; ///< of the coordinates, size d, or nullptr: 1
};

/// Fills lead, slack and spread: half the largest coordinate, in its standard
/// deviations, which is above their root mean square as a rule.
void project_rows(
        const FullRows& rows,
        const Directions& directions,
        int64_t count,
        cudaStream_t stream);

/** z = scale y U of `count` vectors, sums in double, U upper triangular:
 * coordinates in which a covariance (U U^T)^-1 is scale^2 times the identity.
 * Limited to +-kMostWhitened; raises *largest, the bits of the largest |z|. y
 * and z have `pitch` floats a vector. */
void whiten_rows(
        const float* y,
        int64_t count,
        const float* factor,
        int d,
        int pitch,
        double scale,
        float* z,
        unsigned int* largest,
        cudaStream_t stream);
constexpr float kMostWhitened = 1e18f;

/// |y|^2 of `count` rows.
void square_norms(
        const FullRows& rows, int64_t count, float* out, cudaStream_t stream);

/** What is known of a component beside its mean and factor. */
struct ComponentTerms {
    double log_norm; ///< the log-joint at the mean
    float spectrum;  ///< Frobenius norm of the factor
    /// the same with the factor's rows times the coordinates' deviations
    float weighted_spectrum;
};

/// The bound's view of a component: see bound_kernel.
struct BoundTerms {
    float log_norm;
    float error;       ///< of |lead factor| for each unit of a row's slack
    float error_shift; ///< and of the mean's part
    float unused;
};

/// Device pointers to the model of one pass.
struct FullModelView {
    int k, d, pitch;
    const float* means;      ///< k * pitch
    const float* factors;    ///< (k or 1) * d * pitch, upper triangular
    int64_t factor_stride;   ///< from one component's to the next: 0 if shared
    ComponentTerms* terms;   ///< size k
    uint4* bound_factors;    ///< fragments of four components: Bounds.cu
    float2* bound_shifts;    ///< likewise
    BoundTerms* bound_terms; ///< padded to groups of four
};

/// Fills terms and the bound_ fields. log_weights: device, or nullptr for
/// squared distances, -|y - mu|^2 / 2. scratch: bound_scratch_bytes(d).
void prepare_model(
        const FullModelView& model,
        const float* log_weights,
        const Directions& directions,
        double* scratch,
        cudaStream_t stream);
size_t bound_scratch_bytes(int d);

/// Pairs of row and component: one bit each, 64 rows a word, a component's
/// words side by side.
struct PairBits {
    uint64_t* bits;
    int64_t words; ///< of a component
};

/** Sets the bits of a few components of each row, by the bounds' view the
 * best: one of them should be the row's best. */
void guess_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const PairBits& bits,
        cudaStream_t stream);

/// Writes the bits of all components whose log-joint may be at least `least` of
/// the row (rows in whole kBoundRows: +infinity beyond the last).
void bound_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* least,
        const PairBits& bits,
        cudaStream_t stream);

/// The rows of each component, in order; those of component c are
/// row[begin[c * segments]] up to begin[(c + 1) * segments].
struct PairLists {
    int k;
    int segments;
    uint32_t* counts; ///< k * segments + 1
    uint32_t* begin;  ///< likewise
    uint32_t* tiles;  ///< tiles of each component, k + 1
    uint32_t* tile_begin;
    void* scratch;
    size_t scratch_bytes;
    int32_t* row;  ///< in the block
    double* value; ///< log-joint
    float* error;  ///< how far rounding may have moved it, nats
    float* r;      ///< responsibility times weight; 0: not to be summed
};

constexpr int kSegmentWords = 64;
inline int segments_of(int64_t words) {
    return int((words + kSegmentWords - 1) / kSegmentWords);
}
size_t list_scratch_bytes(int k, int segments);

/// Counts the pairs of words [begin, end) and their tiles: fills all but row.
/// Totals are in lists.begin[k * segments] and lists.tile_begin[k].
void count_pairs(
        const PairBits& bits,
        int64_t begin,
        int64_t end,
        PairLists& lists,
        cudaStream_t stream);
void list_pairs(
        const PairBits& bits,
        int64_t begin,
        int64_t end,
        const PairLists& lists,
        cudaStream_t stream);

/// Of each row of a block.
struct RowTotals {
    int* best;               ///< a log-joint its best reaches, as ordered()
    float* least;            ///< log-joints below do not matter
    unsigned long long* top; ///< the largest log-joint, as ordered()
    unsigned long long* sum; ///< of exp(log-joint - top), in 2^-40
    double* log_prob;
    uint32_t* winner; ///< hard: the first pair that has it
};

void start_rows(const RowTotals& rows, int64_t count, cudaStream_t stream);
/// least = best - reach; +infinity from `count` to whole kBoundRows.
void set_least(
        const RowTotals& rows, int64_t count, float reach, cudaStream_t stream);

/// Fills value and error of all pairs, raises best.
void evaluate_pairs(
        const FullModelView& model,
        const FullRows& rows,
        const PairLists& lists,
        uint32_t tiles,
        const RowTotals& totals,
        cudaStream_t stream);
/// Replaces values that may matter and may be wrong by more than tolerance.
void evaluate_exactly(
        const FullModelView& model,
        const FullRows& rows,
        const PairLists& lists,
        uint32_t tiles,
        const RowTotals& totals,
        float tolerance,
        cudaStream_t stream);

/// Sums over rows, added up over the blocks of a pass.
struct PassTotals {
    double* objective;
    unsigned long long* dropped; ///< in 1 / dropped_unit
    unsigned long long* kept;    ///< responsibilities
    double* partial;             ///< scratch, kPartials
    double dropped_unit;
    static constexpr int kPartials = 4096;
};

/// Fills r, the rows' log_prob (up to `count` from row `first`), the totals.
/// weight: of the block's rows, or nullptr.
void responsibilities(
        const PairLists& lists,
        uint32_t pairs,
        int64_t first,
        int64_t count,
        const float* weight,
        float least,
        bool hard,
        const RowTotals& rows,
        const PassTotals& totals,
        cudaStream_t stream);

/// objective += the first n partial sums, in their order.
void add_objective(const PassTotals& totals, int n, cudaStream_t stream);

/// Fills top and winner of the rows that the pairs are of.
void find_best(
        const PairLists& lists,
        uint32_t pairs,
        const RowTotals& rows,
        cudaStream_t stream);

/// The components of the winners of rows [first, first + count).
void best_components(
        const PairLists& lists,
        const RowTotals& rows,
        int64_t first,
        int64_t count,
        int32_t* components,
        cudaStream_t stream);
/// The m best components of rows [first, first + count), best first; all pairs
/// of these rows (in whole words) are listed.
void select_components(
        const PairLists& lists,
        int64_t first,
        int64_t count,
        int m,
        int32_t* components,
        cudaStream_t stream);
/// Squared distances, and log-joints in double, of m components of each row.
void describe_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        int m,
        const int32_t* components,
        float* distances,
        double* log_joint,
        cudaStream_t stream);

/// Sums in double: n_k (k), sum_x (k * d), then moments, each component's
/// lower triangle row by row, or without moments the squares (k * d).
struct MomentSums {
    double* sums;
    int k, d;
    bool moments;
    __host__ __device__ size_t size() const {
        return size_t(k) * (1 + d + per());
    }
    __host__ __device__ size_t per() const {
        return moments ? size_t(d) * (d + 1) / 2 : size_t(d);
    }
};

/// Pieces that each component's pairs are summed in, so that the device is
/// full; more than one need scratch of so many times sums.size().
int moment_pieces(int k, int d, bool moments);

/// Adds the listed pairs of the block's rows, in an order that pairs and pieces
/// alone decide.
void add_moments(
        const FullRows& rows,
        const PairLists& lists,
        const MomentSums& sums,
        int pieces,
        double* scratch,
        cudaStream_t stream);
/// Adds `pieces` times sums.size() doubles to the sums, piece by piece.
void add_pieces(
        const double* from,
        int pieces,
        const MomentSums& sums,
        cudaStream_t stream);
/// Adds all of `count` rows to one component's sums.
void add_all_moments(
        const FullRows& rows,
        int64_t count,
        const float* weight,
        const MomentSums& sums,
        int pieces,
        double* scratch,
        cudaStream_t stream);

/// Blocks of threads that accumulate_small divides the rows among: fixed, since
/// it shows in the bits of the sums.
constexpr int kSmallPieces = 132;

/// Whether accumulate_small can be used: full covariances of up to 64
/// components and 16 dimensions, on a device that is fast in double and has 171
/// KB of shared memory for a block: sm_90 (not sm_80's 163 KB).
bool has_small_shape(int k, int d, int device);

/** Adds a block's rows to sums and totals without bounds and lists: all pairs
 * are evaluated in double. Fills log_prob of RowTotals.
 *
 * @param scratch  kSmallPieces times sums.size() */
void accumulate_small(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* weight,
        float least,
        bool hard,
        const RowTotals& totals,
        const PassTotals& pass,
        const MomentSums& sums,
        double* scratch,
        cudaStream_t stream);

#ifdef __CUDACC__
/// Eight bits, 4 apart, side by side.
__device__ __forceinline__ uint32_t gather_bits(uint32_t x) {
    x &= 0x11111111u;
    x = (x | x >> 3) & 0x03030303u;
    x = (x | x >> 6) & 0x000f000fu;
    return (x | x >> 12) & 0xffu;
}

/// The component whose tile this is.
__device__ __forceinline__ int component_of_tile(
        const PairLists& lists, uint32_t tile) {
    int low = 0, high = lists.k; // tile_begin[low] <= tile < tile_begin[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (lists.tile_begin[middle] <= tile ? low : high) = middle;
    }
    return low;
}
#endif

} // namespace gmm::cuda::full
