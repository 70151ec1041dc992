#include <algorithm>
#include <cmath>
#include <limits>

#include "../FullCovariance.h"
#include "FullScorer.h"

/** Few dimensions: rows lie side by side in the lanes of a vector, and all
 * components are evaluated, which costs less than to find those that matter. */
namespace gmm {

void FullScorer::prepare_small(const GaussianMixture& model) {
    pitch = (d + 3) / 4 * 4;
    small_factors.assign(k * d * pitch, 0.0f);
    for (size_t c = 0; c < k; c++) {
        const std::vector<float> factor = scaled_factor(model, c);
        for (size_t i = 0; i < d; i++) {
            std::copy(
                    factor.begin() + i * d + i,
                    factor.begin() + (i + 1) * d,
                    small_factors.data() + (c * d + i) * pitch + i);
        }
    }
}

void FullScorer::start_small(
        size_t n, const float* y, SmallScratch& scratch) const {
    const size_t padded = (n + kLanes - 1) / kLanes * kLanes;
    scratch.padded = padded;
    scratch.r.resize(k * padded);
    scratch.log_prob.resize(n);
    scratch.transposed.assign(d * padded, 0.0f);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            scratch.transposed[j * padded + i] = in_unit(y[i * d + j], j);
        }
    }
    const float lowest = -std::numeric_limits<float>::infinity();
    scratch.top.assign(padded, lowest);
    scratch.known.assign(padded, lowest);
    scratch.length.resize(padded);
    scratch.scale.resize(padded);
    scratch.sum.assign(padded, 0.0);
    scratch.nats.clear();
    scratch.nats_at.assign(k, -1);
}

void FullScorer::log_joints_small(SmallScratch& scratch) const {
    const size_t padded = scratch.padded;
    scratch.square.resize(padded);
    float* const top = scratch.top.data();
    float* const known = scratch.known.data();
    const float* const length = scratch.length.data();
    float* const nats = scratch.square.data();
    for (size_t c = 0; c < k; c++) {
        float* const value = scratch.r.data() + c * padded;
        kernel.mahalanobis(
                padded,
                d,
                scratch.transposed.data(),
                means.data() + c * d,
                small_factors.data() + c * d * pitch,
                pitch,
                value,
                scratch.length.data());
        const float peak = float(log_norm[c]);
        const float unit = float(rounding) * spectrum[c];
        const float last_digit = 0x1p-23f;
        float worst = 0;
#pragma omp simd reduction(max : worst)
        for (size_t i = 0; i < padded; i++) {
            const float error = unit * std::sqrt(length[i]);
            const float half = 0.5f * value[i];
            const float wrong = error * (std::sqrt(value[i]) + 0.5f * error) +
                    last_digit * (half + std::fabs(peak));
            value[i] = peak - half;
            nats[i] = wrong;
            worst = worst > wrong ? worst : wrong;
            top[i] = top[i] > value[i] ? top[i] : value[i];
            const float least = value[i] - wrong;
            known[i] = known[i] > least ? known[i] : least;
        }
        if (!(worst <= float(kMostWrong))) {
            scratch.nats_at[c] = int64_t(scratch.nats.size());
            scratch.nats.insert(scratch.nats.end(), nats, nats + padded);
        }
    }
}

// Rows with a log-joint that matters and may be wrong.
void FullScorer::repeat_in_double(
        size_t n, const float* y, double reach, SmallScratch& scratch) const {
    const size_t padded = scratch.padded;
    auto error_of = [&](size_t c, size_t i) {
        const int64_t at = scratch.nats_at[c];
        return at < 0 ? float(kMostWrong) : scratch.nats[size_t(at) + i];
    };
    auto matters = [&](size_t c, size_t i, float error) {
        return !(scratch.r[c * padded + i] + error < scratch.known[i] - reach);
    };
    std::vector<char> wrong(n);
    for (size_t c = 0; c < k; c++) {
        for (size_t i = 0; scratch.nats_at[c] >= 0 && i < n; i++) {
            const float error = error_of(c, i);
            wrong[i] |= !(error <= float(kMostWrong)) && matters(c, i, error);
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (!wrong[i]) {
            continue;
        }
        const double lowest = -std::numeric_limits<double>::infinity();
        scratch.joint.assign(k, lowest);
        double best = lowest, sum = 0;
        for (size_t c = 0; c < k; c++) {
            if (matters(c, i, error_of(c, i))) {
                scratch.joint[c] = exact(y + i * d, c);
                best = std::max(best, scratch.joint[c]);
            }
        }
        for (double& v : scratch.joint) {
            v = std::exp(v - best);
            sum += v;
        }
        for (size_t c = 0; c < k; c++) {
            scratch.r[c * padded + i] = float(scratch.joint[c] / sum);
        }
        scratch.log_prob[i] = best + std::log(sum);
        scratch.scale[i] = 0; // its responsibilities are there
    }
}

void FullScorer::evaluate_small(
        size_t n, const float* y, double reach, SmallScratch& scratch) const {
    start_small(n, y, scratch);
    log_joints_small(scratch);
    std::fill(scratch.scale.begin(), scratch.scale.end(), 1.0f);
    if (!scratch.nats.empty()) {
        repeat_in_double(n, y, reach, scratch);
    }
    const size_t padded = scratch.padded;
    const float* const top = scratch.top.data();
    float* const scale = scratch.scale.data();
    double* const sum = scratch.sum.data();
    float* const powers = scratch.length.data();
    for (size_t c = 0; c < k; c++) {
        float* const r = scratch.r.data() + c * padded;
#pragma omp simd
        for (size_t i = 0; i < padded; i++) {
            powers[i] = r[i] - top[i];
        }
        kernel.exp(padded, powers);
#pragma omp simd
        for (size_t i = 0; i < padded; i++) {
            sum[i] += double(powers[i]);
            r[i] = scale[i] != 0 ? powers[i] : r[i];
        }
    }
    for (size_t i = 0; i < padded; i++) {
        if (scale[i] == 0) {
            scale[i] = 1;
            continue;
        }
        scale[i] = float(1 / sum[i]);
        if (i < n) {
            scratch.log_prob[i] = top[i] + std::log(sum[i]);
        }
    }
    for (size_t c = 0; c < k; c++) {
        float* const r = scratch.r.data() + c * padded;
#pragma omp simd
        for (size_t i = 0; i < padded; i++) {
            r[i] *= scale[i];
        }
    }
}

} // namespace gmm
