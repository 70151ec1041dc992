#pragma once

#include <cstddef>

#include "EMTrainer.h"

/// What train() is given to begin with.
namespace gmm {

/// Throws InvalidArgument naming an option that is out of its range.
void check_options(const TrainingOptions& options);

/// Throws InvalidArgument where `start` is no mixture of k components in d
/// dimensions to begin with; weights may be missing, and so may variances and
/// factors.
void check_start(
        const GaussianMixture* start,
        const TrainingOptions& options,
        size_t k,
        size_t d);

/// Whether there are variances or factors.
bool has_spread(const GaussianMixture& model);

void set_unit_variances(GaussianMixture& model);

} // namespace gmm
