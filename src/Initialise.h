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

/// k means in the frame's units, chosen from vectors of positive weight.
std::vector<float> initial_means(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        size_t k,
        Initialisation init,
        std::mt19937_64& random);

/// Uniform in [0, 1), the same on every platform.
double uniform(std::mt19937_64& random);

} // namespace gmm
