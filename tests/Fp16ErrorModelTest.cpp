#include "cuda/operands/Fp16ErrorModel.h"

#include <gtest/gtest.h>
#include <cmath>

#include "EMTrainer.h"
#include "Initialise.h"
#include "RealData.h"

/** What dimensions that are not alike do to fp16's errors: of the CUDA backend,
 * without a device. */
namespace {

using namespace gmm;

/// What rounding to fp16 moves x by, x in its range.
double miss(double x) {
    int exponent;
    std::frexp(x, &exponent);
    const double unit = std::ldexp(1., exponent - 11);
    return std::nearbyint(x / unit) * unit - x;
}

/// sum_k pi_k m_kj^2.
std::vector<double> explained(const GaussianMixture& model) {
    std::vector<double> out(model.d);
    for (size_t i = 0; i < model.means.size(); i++) {
        out[i % model.d] += std::exp(double(model.log_weights[i / model.d])) *
                model.means[i] * model.means[i];
    }
    return out;
}

struct Ratios {
    double true_error; ///< to the estimate from lengths, root mean square
    double fp16_error_factor;
};

/// Of a mixture's scores, each row's with its best component.
Ratios ratios(const RealData& data, size_t k, Covariance covariance) {
    const auto source = data.source();
    const auto backend = make_cpu_backend();
    TrainingOptions options;
    options.covariance = covariance;
    options.niter = 5;
    const GaussianMixture user =
            train(*source, nullptr, k, options, *backend).model;
    const Frame frame = fit_frame(*source, nullptr).frame;
    const GaussianMixture model = frame.to_frame(user);
    std::vector<int64_t> best(data.n);
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    backend->top_components(data.rows(), 1, best.data(), nullptr, nullptr);
    double sum = 0;
    for (size_t i = 0; i < data.n; i++) {
        const float* const mean = model.means.data() + best[i] * data.d;
        double error = 0, delta2 = 0, distance2 = 0;
        for (size_t j = 0; j < data.d; j++) {
            const double y = (data.x[i * data.d + j] - frame.center[j]) *
                    double(frame.scale);
            const double delta = miss(y) - miss(mean[j]);
            error += delta * (mean[j] - y);
            delta2 += delta * delta;
            distance2 += (mean[j] - y) * (mean[j] - y);
        }
        sum += error * error / (delta2 * distance2 / data.d);
    }
    return {std::sqrt(sum / data.n),
            cuda::fp16_error_factor(frame.variances, explained(model))};
}

TEST(Fp16ErrorModelTest, TellsHowFarEstimatesAreOff) {
    const Ratios of_sift = ratios(sift(3000), 24, Covariance::isotropic);
    const Ratios of_patches =
            ratios(patches(3000), 24, Covariance::tied_spherical);
    // Patches: much in few dimensions. What is left is that components differ.
    EXPECT_LT(of_sift.fp16_error_factor, 1.2);
    EXPECT_GT(of_patches.fp16_error_factor, 1.5);
    for (const Ratios& r : {of_sift, of_patches}) {
        EXPECT_GT(r.true_error / r.fp16_error_factor, 0.9);
        EXPECT_LT(r.true_error / r.fp16_error_factor, 1.7);
    }
}

TEST(Fp16ErrorModelTest, OneWhereDimensionsAreAlikeOrUnknown) {
    const std::vector<double> nothing(4);
    EXPECT_EQ(cuda::fp16_error_factor({2, 2, 2, 2}, nothing), 1);
    EXPECT_EQ(cuda::fp16_error_factor({}, nothing), 1);
    EXPECT_EQ(cuda::fp16_error_factor({0, 0, 0, 0}, nothing), 1);
    EXPECT_DOUBLE_EQ(cuda::fp16_error_factor({4, 0, 0, 0}, nothing), 2);
    // The means explain the first dimension.
    EXPECT_EQ(cuda::fp16_error_factor({4, 1, 1, 1}, {4, 0, 0, 0}), 1);
    EXPECT_EQ(cuda::fp16_error_factor({1, 0, 0, 0}, {4, 0, 0, 0}), 1);
}

} // namespace
