#pragma once

#include <cstdint>

#include "cuda/score/Score.h"

namespace gmm::cuda {

constexpr int kDenseProductTile = 128; ///< components, dimensions

/// R^T Y of gathered rows: each split of the rows has sums of its own.
struct DenseProductArgs {
    const __half* r[2]; ///< hi, lo: [rows][components]
    int components;
    int component_begin;
    Operand y; ///< gathered rows, zeros up to a whole kGatherTile
    int rows;
    int d;
    int padded_k;
    int splits, parts, terms; ///< terms: of each part
    uint8_t term_r[3];
    uint8_t term_y[2][3];
    float* partial; ///< [split][part][padded_k][d] is added to
};

/// Rows of a split: whole stages of `depth` rows.
__host__ __device__ inline int rows_of_split(
        const DenseProductArgs& args, int depth) {
    return (args.rows + args.splits * depth - 1) / (args.splits * depth) *
            depth;
}

void dense_product_hopper(const DenseProductArgs& args, cudaStream_t stream);

} // namespace gmm::cuda
