#include <algorithm>
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
    const double inverse = least_variance > 0
            ? std::min(survey.largest_inverse, 1 / least_variance)
            : survey.largest_inverse;
    return kLog2e * inverse * q * augmented_scale(d, 1);
}

double Model::least_foldable(float fp16_scale, double largest_q) const {
    const double room =
            double(kAugmentedUnit) * kAugmentedLimit - survey.largest_peak;
    if (covariance != Covariance::isotropic || d > kAugmentedDimension ||
        room <= 0) {
        return 0;
    }
    const double score = largest_q * augmented_scale(d, 1);
    if (can_augment(fp16_scale) &&
        kLog2e * survey.largest_inverse * score <= kAugmentedScoreLimit) {
        return 0;
    }
    // Rounding must not bring what is at a limit beyond it.
    return 1.001 * kLog2e *
            std::max(
                    {augmented_scale(d, fp16_scale) /
                             (double(fp16_scale) * fp16_scale) /
                             kAugmentedLimit,
                     survey.largest_mean / fp16_scale / kAugmentedLimit,
                     0.5 * survey.largest_norm / room,
                     score / kAugmentedScoreLimit});
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

ScoreArgs Model::score_args(bool want_split) const {
    ScoreArgs args;
    args.components_operand = operand_;
    args.component_begin = 0;
    args.components = padded_k;
    args.d = d;
    const bool split = lo && want_split;
    args.component_constants = constants_ + (split ? padded_k / 2 : 0);
    args.row_constant_scale = operand_scale;
    // Planes of rows: [hi, lo] or [hi, hi^2, lo, lo^2], by how the rows were
    // prepared; of components: by geometry.
    if (folded && !split) {
        args.folded = folded_;
    }
    const bool squares = geometry == Geometry::squares;
    const bool row_squares = covariance == Covariance::diagonal;
    const int halves = squares ? 2 : 1;
    // Small terms first: the matrix units truncate each sum to its own size.
    auto add = [&](int row_plane, int component_plane) {
        args.term_rows[args.num_terms] = uint8_t(row_plane);
        args.term_components[args.num_terms++] = uint8_t(component_plane);
    };
    const int row_lo = row_squares ? 2 : 1;
    for (int h = 0; h < halves && split; h++) {
        add(h, halves + h);
        add(row_lo + h, h);
    }
    for (int h = 0; h < halves; h++) {
        add(h, h);
    }
    return args;
}

} // namespace gmm::cuda
