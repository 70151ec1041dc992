#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

/** How the rows of a device are taken: all of them stay there, or they are fed
 * to it; in blocks of how many. */
namespace gmm::cuda {

constexpr int kWave = 132 * 192; ///< rows of a full grid, H100
/// A block's rows, about at most: of rows that stay, where small blocks cost a
/// tenth more, and of rows that are fed, whose first block is waited for.
constexpr int kResidentBlock = 132 * kWave; ///< 3.3 million
constexpr int kFedBlock = 48 * kWave;       ///< 1.2 million
/// Of rows on their way to where they stay.
constexpr int kStagedBlock = 8 * kWave;

/// In bytes of device memory, where they are bytes.
struct BlockNeeds {
    size_t n, d;
    size_t row;        ///< of a prepared row
    size_t row_lo;     ///< and with second halves
    size_t raw;        ///< of a row on its way
    size_t fixed;      ///< whatever the blocks
    size_t budget;     ///< in all
    int64_t good_rows; ///< SparseScratch's
};

struct BlockPlan {
    bool resident;
    int64_t rows; ///< of a block; fed ones may still be too many
};

/** @param scratch_bytes  of a block of so many rows
 *
 * Whether the present model needs second halves does not change the blocks of
 * rows that stay, for blocks decide in which order sums are added.
 */
template <class ScratchBytes>
BlockPlan plan_blocks(
        const BlockNeeds& needs, const ScratchBytes& scratch_bytes) {
    const int64_t n = int64_t(needs.n);
    // As many elements as in rows of 128.
    const auto by_dimension = [&](int64_t rows) {
        const int64_t d = std::max<int64_t>(int64_t(needs.d), 128);
        return std::max<int64_t>(rows * 128 / d, kWave);
    };
    // Blocks of equal size, whole waves.
    const auto equal_blocks = [&](int64_t most) {
        const int64_t blocks = (n + most - 1) / most;
        return blocks > 1 ? (n / blocks + kWave) / kWave * kWave
                          : std::max<int64_t>(n, 1);
    };
    const auto all_fit = [&](int64_t rows, size_t of_row) {
        return needs.fixed + needs.n * of_row + scratch_bytes(rows) +
                std::min<size_t>(needs.n, kStagedBlock) * needs.raw <=
                needs.budget;
    };
    const int64_t large = equal_blocks(std::clamp(
            needs.good_rows,
            by_dimension(kFedBlock),
            by_dimension(kResidentBlock)));
    if (all_fit(large, needs.row_lo)) {
        return {true, large};
    }
    const int64_t small = equal_blocks(by_dimension(kFedBlock));
    return {all_fit(small, needs.row), small};
}

} // namespace gmm::cuda
