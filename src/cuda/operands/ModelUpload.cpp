#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Model.h"

/** What the host does with a model: it goes through all of its values, in all
 * threads, on their way to the device. */
namespace gmm::cuda {

namespace {

constexpr double kLog2e = std::numbers::log2e;
constexpr int kChunk = 1 << 15; ///< values of means that a thread takes

size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

struct MeanSize {
    float top, norm; ///< largest |coordinate|, squared length
};

MeanSize size_of(const float* mean, int d) {
    constexpr int kLanes = 8; // for the compiler to vectorise
    float tops[kLanes] = {}, norms[kLanes] = {};
    int j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        for (int i = 0; i < kLanes; i++) {
            const float m = std::fabs(mean[j + i]);
            tops[i] = std::max(tops[i], m);
            norms[i] += m * m;
        }
    }
    for (; j < d; j++) {
        const float m = std::fabs(mean[j]);
        tops[0] = std::max(tops[0], m);
        norms[0] += m * m;
    }
    MeanSize out = {0, 0};
    for (int i = 0; i < kLanes; i++) {
        out.top = std::max(out.top, tops[i]);
        out.norm += norms[i];
    }
    return out;
}

} // namespace

void Model::upload(
        const GaussianMixture& model, Staging& staging, cudaStream_t stream) {
    covariance = model.covariance;
    k = int(model.k);
    d = int(model.d);
    padded_k = (k + kComponentTile - 1) / kComponentTile * kComponentTile;

    const size_t kd = size_t(k) * d;
    const size_t v = model.variances.size();
    const size_t sizes[] = {
            kd * sizeof(float),
            v * sizeof(float),
            k * sizeof(float),
            (covariance == Covariance::diagonal ? kd : k) * sizeof(float),
            k * sizeof(float),
            size_t(k),
            k * sizeof(float4),
            size_t(padded_k) * sizeof(float4),
            sizeof(ModelErrors)};
    size_t total = 0;
    for (size_t s : sizes) {
        total += aligned(s);
    }
    memory_.reserve(total);
    char* at = memory_.as<char>();
    auto take = [&, i = 0](auto*& pointer) mutable {
        pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(at);
        at += aligned(sizes[i++]);
    };
    take(means);
    take(variances_);
    take(log_weights_);
    take(half_inverse);
    take(log_constant);
    take(narrow);
    take(doubt);
    take(constants_);
    take(errors_);

    const size_t row = covariance == Covariance::diagonal ? d : 1;
    staging.upload(variances_, model.variances, row, row, stream);
    staging.upload(log_weights_, model.log_weights, 1, 1, stream);
    float top = 0;
    double inverse = 0, scaled = 0, constant = 0;
    const int64_t chunk = std::max(1, kChunk / d);
    const auto fill = [&](size_t from, size_t to, float* piece) {
        const int64_t chunks = (int64_t(to - from) + chunk - 1) / chunk;
#pragma omp parallel for schedule(static) if (chunks > 1) \
        reduction(max                                     \
                  : top, inverse, scaled, constant)
        for (int64_t i = 0; i < chunks; i++) {
            const size_t begin = from + i * chunk;
            const size_t end = std::min(begin + chunk, to);
            std::memcpy(
                    piece + (begin - from) * d,
                    model.means.data() + begin * d,
                    (end - begin) * d * sizeof(float));
            for (size_t c = begin; c < end; c++) {
                const MeanSize mean = size_of(model.means.data() + c * d, d);
                const double variance = model.variance(c, 0);
                top = std::max(top, mean.top);
                inverse = std::max(inverse, 1 / variance);
                scaled = std::max(scaled, mean.top / variance);
                constant = std::max(
                        constant,
                        std::fabs(model.log_weights[c]) +
                                0.5 * d *
                                        std::fabs(std::log(
                                                2 * std::numbers::pi *
                                                variance)) +
                                0.5 * mean.norm / variance);
            }
        }
    };
    staging.upload(means, k, d, stream, fill);
    largest_mean = top;
    largest_inverse_ = inverse;
    largest_scaled_ = scaled;
    largest_constant_ = kLog2e * constant;
}

double Model::largest_score(double q) const {
    return kLog2e * largest_inverse_ * q * augmented_scale(d, 1);
}

bool Model::can_augment(float fp16_scale) const {
    return d <= kAugmentedDimension && geometry == Geometry::product &&
            kLog2e * largest_inverse_ / (double(fp16_scale) * fp16_scale) *
                    augmented_scale(d, fp16_scale) <=
            kAugmentedLimit &&
            kLog2e * largest_scaled_ / fp16_scale <= kAugmentedLimit &&
            largest_constant_ / kAugmentedUnit <= kAugmentedLimit;
}

} // namespace gmm::cuda
