// The E-step over near groups of components against that over all.
#include <cmath>

#include <gtest/gtest.h>

#include "Backend.h"
#include "EMTrainer.h"
#include "ExpectInvalid.h"
#include "Initialise.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::EStep;
using gmm::SufficientStats;

namespace {

constexpr size_t kN = 8000, kD = 32, kK = 400;

gmm::GaussianMixture fitted(const RealData& data, Covariance covariance) {
    gmm::TrainingOptions options;
    options.covariance = covariance;
    options.init = gmm::Initialisation::hierarchical;
    options.niter = 1;
    const auto backend = gmm::make_cpu_backend();
    return gmm::train(*data.source(), nullptr, kK, options, *backend).model;
}

/// One E-step, of a model in the user's units.
SufficientStats e_step(
        gmm::Backend& backend,
        const RealData& data,
        const float* weights,
        const gmm::GaussianMixture& model,
        EStep step) {
    const auto source = data.source();
    const gmm::Frame frame = gmm::fit_frame(*source, weights).frame;
    backend.set_data(*source, weights, frame);
    backend.set_model(frame.to_frame(model));
    SufficientStats stats;
    backend.accumulate(step, stats);
    return stats;
}

struct Grouped : testing::TestWithParam<Covariance> {};

TEST_P(Grouped, WithAllComponentsNearIsTheWholeEStep) {
    const RealData data = sift(kN, kD);
    const auto model = fitted(data, GetParam());
    std::vector<float> weights(kN);
    for (size_t i = 0; i < kN; i++) {
        weights[i] = float(i % 4) / 2;
    }
    for (bool weighted : {false, true}) {
        const float* w = weighted ? weights.data() : nullptr;
        for (EStep step : {EStep::soft, EStep::hard}) {
            const auto a =
                    e_step(*gmm::make_cpu_backend(), data, w, model, step);
            const auto b = e_step(
                    *gmm::make_grouped_cpu_backend(1000), data, w, model, step);
            EXPECT_NEAR(b.weight, a.weight, 1e-6 * a.weight);
            EXPECT_NEAR(b.objective / a.objective, 1, 1e-6);
            for (size_t c = 0; c < kK; c++) {
                ASSERT_NEAR(b.n_k[c], a.n_k[c], 1e-4 * a.n_k[c] + 1e-4);
            }
            for (size_t i = 0; i < a.sum_x2.size(); i++) {
                ASSERT_NEAR(
                        b.sum_x2[i], a.sum_x2[i], 1e-3 * a.sum_x2[i] + 1e-3);
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
        Covariances,
        Grouped,
        testing::Values(
                Covariance::isotropic,
                Covariance::diagonal,
                Covariance::tied_spherical));

// 120 of 400 components: nearly all vectors find their nearest mean.
TEST(GroupedBackend, FewComponentsAreNearlyTheWholeEStep) {
    const RealData data = sift(kN, kD);
    const auto model = fitted(data, Covariance::isotropic);
    const auto whole = gmm::make_cpu_backend();
    const auto grouped = gmm::make_grouped_cpu_backend(6);
    const auto a = e_step(*whole, data, nullptr, model, EStep::hard);
    const auto b = e_step(*grouped, data, nullptr, model, EStep::hard);
    EXPECT_GE(b.objective / a.objective, 1 - 1e-9); // no distance is less
    EXPECT_LE(b.objective / a.objective, 1.01);
    const auto soft = e_step(*whole, data, nullptr, model, EStep::soft);
    const auto near = e_step(*grouped, data, nullptr, model, EStep::soft);
    EXPECT_LE(near.objective, soft.objective + 1e-6 * std::abs(soft.objective));
    EXPECT_NEAR(near.objective / soft.objective, 1, 0.01);
}

TEST(GroupedBackend, TrainsAsWellAndTheSameTwice) {
    const RealData data = sift(kN, kD);
    gmm::TrainingOptions options;
    options.init = gmm::Initialisation::hierarchical;
    options.niter = 3;
    options.tolerance = 0;
    auto train = [&](gmm::Backend& backend) {
        return gmm::train(*data.source(), nullptr, kK, options, backend);
    };
    const auto whole = train(*gmm::make_cpu_backend());
    const auto grouped = train(*gmm::make_grouped_cpu_backend(6));
    const auto again = train(*gmm::make_grouped_cpu_backend(6));
    EXPECT_EQ(grouped.model.means, again.model.means);
    EXPECT_EQ(grouped.model.variances, again.model.variances);
    EXPECT_NEAR(grouped.lower_bound() / whole.lower_bound(), 1, 0.01);
}

/// Components without weight, and rows that are named as the source has them.
TEST(GroupedBackend, LightComponentsAndBadRows) {
    RealData data = sift(kN, kD);
    auto model = fitted(data, Covariance::isotropic);
    for (size_t c = 0; c < kK; c += 2) {
        model.log_weights[c] = -800;
        model.log_weights[c + 1] = -std::log(kK / 2.0f);
    }
    const auto a =
            e_step(*gmm::make_cpu_backend(), data, nullptr, model, EStep::soft);
    const auto b =
            e_step(*gmm::make_grouped_cpu_backend(1000),
                   data,
                   nullptr,
                   model,
                   EStep::soft);
    EXPECT_NEAR(b.objective / a.objective, 1, 1e-6);
    const auto source = data.source();
    const gmm::Frame frame = gmm::fit_frame(*source, nullptr).frame;
    data.x[3777 * kD + 5] = NAN;
    for (const auto& backend :
         {gmm::make_cpu_backend().release(),
          gmm::make_grouped_cpu_backend(6).release()}) {
        const std::unique_ptr<gmm::Backend> owned(backend);
        owned->set_data(*source, nullptr, frame);
        owned->set_model(frame.to_frame(model));
        SufficientStats stats;
        EXPECT_INVALID(owned->accumulate(EStep::soft, stats), "row 3777 ");
    }
}

TEST(GroupedBackend, WrongInput) {
    EXPECT_INVALID(gmm::make_grouped_cpu_backend(0), "nearby = 0");
    gmm::GaussianMixture model;
    model.covariance = Covariance::full;
    EXPECT_INVALID(gmm::make_grouped_cpu_backend()->set_model(model), "full");
    SufficientStats stats;
    EXPECT_INVALID(
            gmm::make_grouped_cpu_backend()->accumulate(EStep::soft, stats),
            "must come first");
}

} // namespace
