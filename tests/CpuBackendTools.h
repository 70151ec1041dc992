#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "Backend.h"
#include "EMTrainer.h"
#include "RealData.h"

inline gmm::Frame frame_of(const RealData& data, float scale) {
    gmm::Frame frame;
    frame.scale = scale;
    frame.center.resize(data.d);
    for (size_t i = 0; i < data.x.size(); i++) {
        frame.center[i % data.d] += data.x[i] / float(data.n);
    }
    return frame;
}

inline float unit_scale(const RealData& data) {
    double sum = 0, squares = 0;
    for (float x : data.x) {
        sum += x;
        squares += double(x) * x;
    }
    const double n = double(data.x.size());
    return float(1 / std::sqrt(squares / n - sum / n * sum / n));
}

inline gmm::GaussianMixture trained(
        const RealData& data,
        size_t k,
        gmm::Covariance covariance,
        int niter = 2) {
    gmm::TrainingOptions options;
    options.covariance = covariance;
    options.hard_iterations = 2;
    options.niter = niter;
    const auto backend = gmm::make_cpu_backend();
    return train(*data.source(), nullptr, k, options, *backend).model;
}

/// The double reference's statistics in the user's units.
struct Reference {
    std::vector<double> n_k;
    std::vector<double> sum_x;
    std::vector<double> log_prob;
    double objective = 0;

    Reference(const RealData& data, const gmm::GaussianMixture& model)
            : n_k(model.k), sum_x(model.k * model.d), log_prob(data.n) {
        const size_t step = 64, k = model.k, d = model.d;
        std::vector<double> joint(step * k);
        for (size_t begin = 0; begin < data.n; begin += step) {
            const size_t count = std::min(step, data.n - begin);
            const float* x = data.x.data() + begin * d;
            model.log_joint(count, x, joint.data());
            for (size_t i = 0; i < count; i++) {
                const double* row = joint.data() + i * k;
                const double top = *std::max_element(row, row + k);
                double sum = 0;
                for (size_t c = 0; c < k; c++) {
                    sum += std::exp(row[c] - top);
                }
                log_prob[begin + i] = top + std::log(sum);
                objective += log_prob[begin + i];
                for (size_t c = 0; c < k; c++) {
                    const double r = std::exp(row[c] - log_prob[begin + i]);
                    n_k[c] += r;
                    for (size_t j = 0; r > 1e-9 && j < d; j++) {
                        sum_x[c * d + j] += r * x[i * d + j];
                    }
                }
            }
        }
    }
};

/// The same of a hard step: vectors of each mean, and the sum of the squared
/// distances to the nearest.
struct HardReference {
    std::vector<double> n_k;
    double distances = 0;

    HardReference(const RealData& data, const gmm::GaussianMixture& model)
            : n_k(model.k) {
        for (size_t i = 0; i < data.n; i++) {
            double nearest = HUGE_VAL;
            size_t best = 0;
            for (size_t c = 0; c < model.k; c++) {
                double sum = 0;
                for (size_t j = 0; j < data.d; j++) {
                    const double diff = double(data.x[i * data.d + j]) -
                            model.means[c * data.d + j];
                    sum += diff * diff;
                }
                if (sum < nearest) {
                    nearest = sum;
                    best = c;
                }
            }
            n_k[best]++;
            distances += nearest;
        }
    }
};
