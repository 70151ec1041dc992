#pragma once

#include <memory>
#include <mutex>

#include "../Backend.h"
#include "FullScorer.h"
#include "Scorer.h"

namespace gmm {

/// A block of vectors in the frame's units.
struct FrameBlock {
    std::vector<float> y;     ///< size n * d
    std::vector<double> norm; ///< |y|^2, size n; not finite if y is not

    void load(const Rows& rows, const Frame& frame);
};

/// A responsibility, times the row's weight.
struct Found {
    int32_t component;
    int32_t row;
    float r;
};

/// A block of vectors and the responsibilities found for it.
struct ScoredBlock : FrameBlock {
    struct Entry {
        int32_t row;
        float r; ///< times the row's weight
    };

    std::vector<Entry> entries; ///< in order of components, then of rows
    /// Sums over the rows that most components have a share of, with weights
    /// w = r_ik times the row's: sum w y_j at [j * k + c], then sum w, then
    /// sum w |y|^2, of diagonal covariances sum w y_j^2; empty: there are no
    /// such rows
    std::vector<float> diffuse;
    std::vector<int32_t> offset; ///< of a component's entries, size k + 1
    double weight = 0;
    double objective = 0;
    double dropped_mass = 0;

    /// Takes over what was found in the order of the rows.
    void sort(const std::vector<Found>& found, size_t k);
};

/// What one thread needs to score a block.
struct Scratch : HardScratch { // v: log-joints, size rows * stride
    std::vector<std::byte> raw;
    std::vector<Found> found;
    std::vector<int32_t> nearest; ///< mean of each row
    /// Of each row, what v is to be multiplied by for responsibilities times
    /// the row's weight; 0: the row is in found
    std::vector<float> scale;
    std::vector<float> scaled; ///< what is summed, as in ScoredBlock::diffuse
    PackedMeans shares;

    using HardScratch::HardScratch;
};

/// Rows that a thread takes at a time: their log-joints stay in the
/// second-level cache.
size_t block_rows(size_t k, size_t d);

struct CpuBackend : Backend {
    /// Responsibilities below this are left out; 0: by the number of vectors
    /// and components (Scorer.h).
    float least_kept = 0;

    std::string name() const override {
        return "cpu";
    }

    void set_data(
            const VectorSource& source,
            const float* weights,
            const Frame& frame) override;

    void set_model(const GaussianMixture& model) override;

    void accumulate(EStep step, SufficientStats& stats) override;

    void top_components(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob,
            EStep order) override;

    /// Rows of the source, of which those that have weight must be finite in
    /// the frame; others are zero where they are not.
    void load_block(
            size_t begin,
            size_t count,
            std::vector<std::byte>& raw,
            FrameBlock& block) const;

private:
    const VectorSource* source = nullptr;
    const float* weights = nullptr;
    Frame frame;
    GaussianMixture model;
    std::unique_ptr<const Scorer> scorers[2];
    std::mutex scorers_mutex; // top_components may run in several threads

    const Scorer& scorer(EStep step);
    float least() const;
    float weight_of(size_t row) const {
        return weights ? weights[row] : 1;
    }

    // full and tied, in Matrices.cpp
    struct MatrixBlock;
    struct MatrixScratch;
    struct MatrixTop;
    std::unique_ptr<const FullScorer> full_scorer;

    const FullScorer& matrix_scorer();
    void accumulate_matrices(EStep step, SufficientStats& stats);
    void score_matrices(
            EStep step,
            size_t begin,
            size_t count,
            MatrixScratch& scratch,
            MatrixBlock& block);
    void score_small(size_t begin, MatrixScratch& scratch, MatrixBlock& block);
    void score_full(size_t begin, MatrixScratch& scratch, MatrixBlock& block);
    void score_tied(size_t begin, MatrixScratch& scratch, MatrixBlock& block);
    void top_of_matrices(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob,
            EStep order);

    void score(
            EStep step,
            const Scorer& scorer,
            size_t begin,
            size_t count,
            Scratch& scratch,
            ScoredBlock& block) const;
    /// Of every kind of mixture.
    void score_hard(
            const Scorer& scorer,
            size_t begin,
            Scratch& scratch,
            ScoredBlock& block) const;
    bool score_rows(
            const Scorer& scorer,
            bool screened,
            size_t begin,
            Scratch& scratch,
            ScoredBlock& block) const;
};

} // namespace gmm
