#pragma once

#include <cstdint>

#include "VectorSource.h"
#include "cuda/score/Score.h"

namespace gmm::cuda {

/** Rows as the kernels want them: centred, scaled by a power of two into
 * fp16's range, split into hi (+ lo) halves; diagonal models also get squares.
 *
 * Planes: hi | hi, lo | hi, hi^2 | hi, hi^2, lo, lo^2 ("lo^2" being the
 * second half of the square's split).
 */
struct PreparedRows {
    Operand operand;
    float* row_constant = nullptr; ///< -|Y|^2 / 2, Y = hi (+ lo)
    /// the same of hi alone: a score must see one Y in product and constant
    float* row_constant_hi = nullptr;
    /// |Y - hi|^2: what fp16 misses; NaN: the row holds what is not finite;
    /// infinity: what is above PrepareArgs::limit
    float* row_error = nullptr;
    __half* row_slots =
            nullptr; ///< of the constant of hi (AugmentedOperands.h)
    /// What DeviceSums::constant sums in place of row_constant, or nullptr: not
    /// laid out here.
    float* row_value = nullptr;
    int64_t capacity = 0;

    /// lo: Y = hi + lo.
    const float* summed_constant(bool lo) const {
        return row_value ? row_value : lo ? row_constant : row_constant_hi;
    }

    /// All from `memory`, which has prepared_row_bytes for each row and
    /// kPreparedSlack.
    void lay_out(void* memory, int64_t rows, int d, int planes);
};

/// What conversion found; merged over blocks by max and min.
struct RowChecks {
    unsigned long long first_bad = ~0ull; ///< row with a NaN or infinity
    unsigned int largest = 0;             ///< bits of the largest |y|, frame
    unsigned int largest_norm = 0; ///< of the largest |q| in a slot's unit
};

struct PrepareArgs {
    const void* input; ///< device memory
    ElementType type;
    int64_t stride; ///< bytes
    int64_t rows;
    int d;
    const float* center; ///< device, size d
    float scale;         ///< the frame's
    float fp16_scale;    ///< further power of two: Y = y * fp16_scale
    float limit;         ///< the largest |Y| that the operands hold
    int64_t row_begin;   ///< where in the operand these rows go
    int64_t row_number;  ///< of the first row, for the checks
    bool squares;
    bool lo;
};

void prepare_rows(
        const PrepareArgs&,
        const PreparedRows& out,
        RowChecks* checks,
        cudaStream_t);

/// Bytes that one row takes when prepared.
size_t prepared_row_bytes(int d, int planes);
constexpr size_t kPreparedSlack = 64;

/// Copies rows (all planes, constants, slots, weights) with the given numbers;
/// zeros where rows of the last tile of 128 remain.
constexpr int kGatherTile = 128;
void gather_rows(
        const PreparedRows& from,
        int64_t from_begin,
        const float* weight,
        const uint32_t* numbers,
        int count,
        const PreparedRows& to,
        float* to_weight,
        cudaStream_t);

} // namespace gmm::cuda
