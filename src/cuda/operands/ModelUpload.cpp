#include <numbers>
#include <type_traits>

#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Model.h"

namespace gmm::cuda {

namespace {

constexpr double kLog2e = std::numbers::log2e;

size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
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
    staging.upload(means, model.means, d, d, stream);
    survey.start(means, variances_, log_weights_, k, d, int(v / k), stream);
}

double Model::largest_score(double q) const {
    return kLog2e * survey.largest_inverse * q * augmented_scale(d, 1);
}

bool Model::can_augment(float fp16_scale) const {
    return d <= kAugmentedDimension && geometry == Geometry::product &&
            kLog2e * survey.largest_inverse /
                    (double(fp16_scale) * fp16_scale) *
                    augmented_scale(d, fp16_scale) <=
            kAugmentedLimit &&
            kLog2e * survey.largest_scaled / fp16_scale <= kAugmentedLimit &&
            survey.largest_constant / kAugmentedUnit <= kAugmentedLimit;
}

} // namespace gmm::cuda
