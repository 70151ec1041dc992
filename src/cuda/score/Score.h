#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

/** Scores: the logits of a block of rows against all components, and what is
 * made of them before they are forgotten.
 *
 * In log2 units, with Y the rows and M the components as the matrix units see
 * them (centred, scaled, rounded to fp16; see Model.h):
 *
 *    score_ik = a_k ((Y M^T)_ik + q_i) + b_k = log2(pi_k N(y_i; k))
 *
 * A product is a sum of terms, each a pair of operand planes: one term in
 * fp16, three when both operands are split into hi + lo (lo lo is below
 * fp32's rounding), twice as many for diagonal covariances, whose second half
 * multiplies y^2.
 */
namespace gmm::cuda {

constexpr int kMaxTerms = 6;
/// Components are padded (a = 0, b = -inf) to whole tiles of any kernel.
constexpr int kComponentTile = 128;

/// Operand planes: [planes][rows][pitch] halves, pitch a multiple of 8.
struct Operand {
    const __half* data = nullptr;
    int64_t rows = 0; ///< of one plane as allocated
    int pitch = 0;
    int planes = 0;
};

/** Constants as part of the product: its operands, where a model and its rows
 * allow it (AugmentedOperands.h). */
struct AugmentedOperands {
    Operand components;      ///< a_k M, and its second halves
    Operand component_slots; ///< for products of first halves, then of all
    Operand row_slots;
};

struct ScoreArgs {
    Operand rows_operand;
    int64_t row_begin = 0; ///< first row of this launch within the operand
    int rows = 0;          ///< rows of this launch

    Operand components_operand;
    int component_begin = 0; ///< multiple of kComponentTile
    int components = 0;      ///< padded, multiple of kComponentTile

    /// Blocks that share a row block's components, where rows are too few to
    /// fill the device. Not for SelectArgs, whose lists are one block's.
    int splits = 1;

    int d = 0;
    int num_terms = 0;
    uint8_t term_rows[kMaxTerms];       ///< plane of the rows' operand
    uint8_t term_components[kMaxTerms]; ///< plane of the components' operand

    /// q_i / row_constant_scale, from the launch's first row; or nullptr
    /// where the product has all (diagonal)
    const float* row_constant = nullptr;
    float row_constant_scale = 1;
    /// {a_2j, a_2j+1, b_2j, b_2j+1}, from component 0
    const float4* component_constants = nullptr;

    AugmentedOperands folded; ///< data: nullptr where there is none
};

/// Rows that one warp finishes together, and the room for what it emits.
constexpr int kUnitRows = 16;
constexpr int kUnitCapacity = 128;

/** Keeps, for each row, the components within `bound` of the row's maximum.
 *
 * Nearly all responsibilities of a row vanish, so this list is all that the
 * M-step needs. A row whose list overflows is marked and left to the dense
 * path. Output by unit of kUnitRows rows, a row's entries contiguous.
 */
struct SelectArgs {
    float bound; ///< in log2 units; 0: only the best (k-means)
    /// those at most this far below the best become entries, <= bound
    float keep_bound;
    const float* row_weight; ///< or nullptr, from the launch's first row

    /// Not nullptr: where nearly all rows of a first round of blocks overflow,
    /// lists are of no use, and all rows are marked. For folded operands, where
    /// there are rows for many rounds. Holds rows of the first that overflowed
    /// | its warps that are done << 32; 0 at launch.
    uint64_t* pilot = nullptr;
    int pilot_rows = 0;        ///< those of the first round; the launch knows
    float pilot_share = 0.75f; ///< of these that may overflow

    uint32_t* keys;        ///< [units][kUnitCapacity] component
    uint2* values;         ///< [units][kUnitCapacity] {row, bits of r}
    uint16_t* row_ranges;  ///< [rows] first entry * 256 + entries, in its unit
    uint64_t* unit_counts; ///< [units] entries | overflowed rows << 32
    /// [units] responsibility (weighted) of what was listed, but is no entry;
    /// refine() leaves it as it is
    float* unit_dropped;
    /// [rows] log2 of the sum of the scores' exponentials (hard: the best
    /// score); NaN marks a row that overflowed
    float* row_lse;
};

/// log2 sum exp2 of each row's scores over all components, nothing dropped.
struct LseArgs {
    float* row_lse; ///< [splits][rows], each over its part of the components
};

/// Responsibilities of one tile of components, as fp16 times kResponsibility-
/// Scale; hi + lo where lo is not null. A bounded scratch, not rows x k.
struct ResponsibilityArgs {
    const float* row_lse;    ///< [rows]
    const float* row_weight; ///< [rows] at most 1, or nullptr
    __half* hi;              ///< [rows][components of the launch]
    __half* lo;              ///< or nullptr
};
constexpr float kResponsibilityScale = 32768.f;

/// The scores themselves, for top_components.
struct LogitArgs {
    float* out; ///< [rows][components of the launch]
};

/** One launch; Out is one of the four above. The portable kernel needs sm_80,
 * the other sm_90 exactly. */
template <class Out>
void score_portable(const ScoreArgs&, const Out&, cudaStream_t);
template <class Out>
void score_hopper(const ScoreArgs&, const Out&, cudaStream_t);

/// What score_hopper hands folded operands to; Out is one of the first two.
template <class Out>
void score_folded(const ScoreArgs&, const Out&, cudaStream_t);

} // namespace gmm::cuda
