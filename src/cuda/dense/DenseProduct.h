#pragma once

#include <cstdint>

#include "cuda/score/Score.h"

namespace gmm::cuda {

constexpr int kDenseProductTile = 128; ///< components, dimensions

/// R^T Y of gathered rows: each split of the rows has sums of its own. With
/// second halves hi hi + hi lo + lo hi, else of first halves alone.
struct DenseProductArgs {
    const __half* r[2]; ///< [rows][components]: hi, and lo or nullptr
    int components;
    int component_begin;
    /// Gathered rows, zeros up to a whole kGatherTile: hi of each part, then
    /// lo.
    Operand y;
    int rows;
    int d;
    int padded_k;
    int splits, parts;
    float* partial; ///< [split][part][padded_k][d] is added to
};

/// Rows of a split: whole stages of `depth` rows.
__host__ __device__ inline int rows_of_split(
        const DenseProductArgs& args, int depth) {
    return (args.rows + args.splits * depth - 1) / (args.splits * depth) *
            depth;
}

/// Splits of the rows of so many tiles. An H100 has two blocks of a processor
/// at a time: the fewest, since each has sums to add to, that leave a tenth of
/// the device idle at most; or those that leave the least. No split has more
/// than kRows: the matrix units round towards zero, and that adds up.
inline int product_splits(int tiles, int rows, int most) {
    constexpr int kAtATime = 264;
    const auto share = [&](int splits) {
        const int blocks = tiles * splits;
        return double(blocks) / ((blocks + kAtATime - 1) / kAtATime * kAtATime);
    };
    constexpr int kRows = 6336;
    int best = (rows + kRows - 1) / kRows;
    for (int s = best + 1; s <= most && share(best) < 0.9; s++) {
        best = share(s) > share(best) ? s : best;
    }
    return best;
}

void dense_product_hopper(const DenseProductArgs& args, cudaStream_t stream);

} // namespace gmm::cuda
