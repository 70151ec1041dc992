#pragma once

#include <random>
#include <vector>

#include "EMTrainer.h"

namespace gmm {

/// The units that training works in, and the data's spread in them.
struct DataFrame {
    Frame frame;
    double variance; ///< mean over dimensions, in the frame's units; 1 if the
                     ///< data are constant
};

/** One pass over the data: center = the mean and scale = 1 / the standard
 * deviation, both rounded to few bits so that converting integers is exact.
 *
 * Throws InvalidArgument naming the first row that is not finite. */
DataFrame fit_frame(const VectorSource& source, const float* weights);

struct CheckedWeights {
    double sum;
    double lightest; ///< the least that is positive
    double mean;     ///< of the positive ones
};

/// Of n vectors, or nullptr: 1 each. Throws InvalidArgument unless all are
/// finite and at least 0, and `positive` of them above it.
CheckedWeights check_weights(size_t n, const float* weights, size_t positive);

/// k means in the frame's units, chosen from vectors of positive weight.
std::vector<float> initial_means(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        size_t k,
        Initialisation init,
        std::mt19937_64& random);

/** count different rows of positive weight, ascending: Floyd's algorithm; with
 * weights, those with the largest keys (Efraimidis and Spirakis 2006).
 *
 * @param weights    size n, or nullptr: all rows are alike
 * @param count      at most the number of rows of positive weight
 * @param by_weight  false: rows of positive weight are alike
 */
std::vector<size_t> sample_rows(
        size_t n,
        const float* weights,
        size_t count,
        bool by_weight,
        std::mt19937_64& random);

/// Uniform in [0, 1), the same on every platform.
double uniform(std::mt19937_64& random);

} // namespace gmm
