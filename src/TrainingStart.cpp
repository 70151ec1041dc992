#include "TrainingStart.h"

#include <cfloat>
#include <cmath>

#include "Error.h"

namespace gmm {

void check_options(const TrainingOptions& options) {
    auto require = [](bool holds,
                      const char* name,
                      double value,
                      const char* expected) {
        if (!holds) {
            throw_invalid("%s = %g, expected %s", name, value, expected);
        }
    };
    require(options.hard_iterations >= 0,
            "hard_iterations",
            options.hard_iterations,
            "at least 0");
    require(options.niter >= 0, "niter", options.niter, "at least 0");
    require(options.last_hard_iterations >= 0,
            "last_hard_iterations",
            options.last_hard_iterations,
            "at least 0");
    require(options.tolerance >= 0 && std::isfinite(options.tolerance),
            "tolerance",
            options.tolerance,
            "at least 0");
    require(options.variance_floor > 0 && std::isfinite(options.variance_floor),
            "variance_floor",
            options.variance_floor,
            "a positive value");
    require(options.reg_covar >= 0 && options.reg_covar <= FLT_MAX,
            "reg_covar",
            options.reg_covar,
            "a float of at least 0");
    require(options.min_count >= 0 && std::isfinite(options.min_count),
            "min_count",
            options.min_count,
            "at least 0");
    check_covariance(options.covariance);
    const int init = int(options.init);
    require(init >= 0 && init <= int(Initialisation::given_means),
            "init",
            init,
            "a value of the enumeration");
    require(options.init != Initialisation::hierarchical ||
                    !has_matrices(options.covariance),
            "init",
            init,
            "one of the other starts with full or tied covariances, for which "
            "the hierarchical one has no second moments");
}

bool has_spread(const GaussianMixture& model) {
    return !model.variances.empty() || !model.precisions_cholesky.empty();
}

void set_unit_variances(GaussianMixture& model) {
    const size_t k = model.k, d = model.d;
    model.variances.assign(num_variances(model.covariance, k, d), 1);
    model.precisions_cholesky.assign(num_factors(model.covariance, k, d), 0);
    for (size_t at = 0; at < model.precisions_cholesky.size(); at += d * d) {
        for (size_t j = 0; j < d; j++) {
            model.precisions_cholesky[at + j * (d + 1)] = 1;
        }
    }
}

void check_start(
        const GaussianMixture* start,
        const TrainingOptions& options,
        size_t k,
        size_t d) {
    if (!start || start->k != k || start->d != d ||
        start->means.size() != k * d) {
        throw_invalid(
                "start: k = %zu, d = %zu, %zu means, expected k = %zu, d = "
                "%zu for Initialisation::given_means",
                start ? start->k : 0,
                start ? start->d : 0,
                start ? start->means.size() : 0,
                k,
                d);
    }
    GaussianMixture complete = *start;
    complete.covariance = options.covariance;
    if (!has_spread(*start)) {
        set_unit_variances(complete);
    } else if (start->covariance != options.covariance) {
        throw_invalid(
                "start: variances of another covariance kind than "
                "options.covariance");
    }
    if (complete.log_weights.empty()) {
        complete.log_weights.assign(k, -std::log(float(k)));
    }
    complete.validate();
}

} // namespace gmm
