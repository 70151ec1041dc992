#pragma once

// What tests of training share.

#include <numeric>
#include <vector>

#include "Covariances.h"
#include "EMTrainer.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::GaussianMixture;
using gmm::Initialisation;
using gmm::TrainingOptions;
using gmm::TrainingResult;

inline TrainingResult fit(
        const gmm::VectorSource& source,
        size_t k,
        const TrainingOptions& options,
        const float* weights = nullptr,
        const GaussianMixture* start = nullptr) {
    const auto backend = gmm::make_cpu_backend();
    return train(source, weights, k, options, *backend, start);
}

inline double mean_log_prob(
        const RealData& data, const GaussianMixture& model) {
    std::vector<double> log_prob(data.n);
    model.log_prob(data.n, data.x.data(), log_prob.data());
    return std::accumulate(log_prob.begin(), log_prob.end(), 0.0) / data.n;
}

inline GaussianMixture means_only(const RealData& data, size_t k) {
    GaussianMixture m;
    m.k = k;
    m.d = data.d;
    m.means.assign(data.x.begin(), data.x.begin() + k * data.d);
    return m;
}
