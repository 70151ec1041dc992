#pragma once

#include <random>
#include <utility>
#include <vector>

#include "SufficientStats.h"
#include "VectorSource.h"

namespace gmm {

/// sum_i w_i r_ik |y_i|^2 of component c, whatever the covariance kind.
double sum_of_squares(const SufficientStats& stats, size_t c);

/** sum_i w_i r_ik |y_i - m_k|^2 about each component's own centre m_k, size k:
 * the most that splitting it could gain. 0 where nothing but rounding is left,
 * as of vectors that are all equal.
 *
 * @param row_weight  of a vector, on average: rounding goes by their number */
std::vector<double> component_scatter(
        const SufficientStats& stats, double row_weight = 1);

/// What of a sum of n vectors' squares may be rounding, as a share of it.
double sum_rounding(double n);

/** Component `to` takes over half of `from`: both means move apart, along the
 * columns of the covariance's factor (the dimensions, where it has none), by
 * about `step` standard deviations each, size and sign at random. The weight is
 * halved between them. */
void split_component(
        GaussianMixture& model,
        size_t from,
        size_t to,
        double step,
        std::mt19937_64& random);

/** Each dead component, of n_k < min_count, takes over half of the one that has
 * most to gain by it, which the heaviest need not be: it may be many copies of
 * one vector. Weights sum to 1 afterwards.
 *
 * @param row_weight  as in component_scatter
 * @return  (from, to) of each split, in order; dead ones stay where none has
 *          anything to gain */
std::vector<std::pair<size_t, size_t>> split_for_dead(
        const SufficientStats& stats,
        double min_count,
        GaussianMixture& model,
        std::mt19937_64& random,
        double row_weight = 1);

/// Makes the weights sum to 1.
void normalise_weights(GaussianMixture& model);

/** Replaces every mean that equals an earlier one by a vector that equals none,
 * as long as there are such vectors of positive weight.
 *
 * Reads no more than k vectors where means differ already; at worst, where
 * there are fewer than k different vectors, all of them.
 *
 * @param means  in the frame's units, size k * d */
void make_distinct(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        size_t k,
        std::vector<float>& means,
        std::mt19937_64& random);

} // namespace gmm
