#include "MixtureTools.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "ExpectInvalid.h"
#include "FullCovariance.h"
#include "Split.h"
#include "TrainingTools.h"

namespace {

GaussianMixture fitted(const RealData& data, size_t k, Covariance covariance) {
    gmm::TrainingOptions options;
    options.covariance = covariance;
    options.niter = 3;
    options.variance_floor = 0.1;
    const auto backend = gmm::make_cpu_backend();
    return train(*data.source(), nullptr, k, options, *backend).model;
}

} // namespace

TEST(MixtureTools, ParametersAreCountedAsByScikitLearn) {
    const size_t expected[] = {
            4 + 15 + 5, 4 + 15 + 15, 4 + 15 + 1, 4 + 15 + 30, 4 + 15 + 6};
    for (Covariance covariance : kAll) {
        EXPECT_EQ(
                num_parameters(fitted(sift(200, 3), 5, covariance)),
                expected[int(covariance)]);
    }
}

TEST(MixtureTools, NoComponentsAreNoMixture) {
    GaussianMixture nothing;
    nothing.d = 3;
    const float x[3] = {};
    double out;
    EXPECT_INVALID(nothing.log_prob(1, x, &out), "k = 0");
    EXPECT_INVALID(nothing.log_joint(1, x, &out), "k = 0");
    EXPECT_INVALID(grow(nothing, 3, 1), "k = 0");
}

TEST(MixtureTools, ArraysThatAreNotThereAreNamed) {
    const RealData data = sift(100, 3);
    const auto source = data.source();
    const GaussianMixture m = fitted(data, 2, Covariance::diagonal);
    const auto backend = gmm::make_cpu_backend();
    const char* out = "out = nullptr, expected 100 rows";
    EXPECT_INVALID(predict(m, *source, *backend, nullptr), out);
    EXPECT_INVALID(predict_proba(m, *source, *backend, nullptr), out);
    EXPECT_INVALID(log_prob(m, *source, *backend, nullptr), out);
    EXPECT_INVALID(responsibility_entropy(m, *source, *backend, nullptr), out);
    EXPECT_INVALID(gmm::gather(*source, {1, 2}, nullptr), "out = nullptr");
    EXPECT_INVALID(sample(m, 5, 1, nullptr), "x = nullptr, expected 5 rows");
    std::vector<double> joint(200);
    for (auto f : {&GaussianMixture::log_joint, &GaussianMixture::log_prob}) {
        EXPECT_INVALID((m.*f)(100, nullptr, joint.data()), "x = nullptr");
        EXPECT_INVALID((m.*f)(100, data.x.data(), nullptr), out);
    }
    score(m, *source, nullptr, *backend); // binds it
    EXPECT_INVALID(
            backend->top_components(data.rows(), 1, nullptr, nullptr, nullptr),
            "components = nullptr");
    gmm::Rows none = data.rows();
    none.data = nullptr;
    int64_t one;
    EXPECT_INVALID(
            backend->top_components(none, 1, &one, nullptr, nullptr),
            "x.data = nullptr");
}

TEST(MixtureTools, CriteriaAndResponsibilitiesAreTheDoubleReferences) {
    const RealData data = sift(900, 8);
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    std::vector<float> weights(data.n);
    for (size_t i = 0; i < data.n; i++) {
        weights[i] = float(i % 3);
    }
    for (Covariance covariance : kAll) {
        const size_t k = 6;
        const GaussianMixture m = fitted(data, k, covariance);
        std::vector<double> joint(data.n * k), prob(data.n);
        m.log_joint(data.n, data.x.data(), joint.data());
        m.log_prob(data.n, data.x.data(), prob.data());
        double sum = 0, weighted = 0, n = 0;
        for (size_t i = 0; i < data.n; i++) {
            sum += prob[i];
            weighted += weights[i] * prob[i];
            n += weights[i];
        }
        std::vector<float> by_backend(data.n);
        log_prob(m, *source, *backend, by_backend.data());
        for (size_t i = 0; i < data.n; i++) {
            ASSERT_NEAR(by_backend[i], prob[i], 1e-3) << i;
        }
        const double p = double(num_parameters(m));
        EXPECT_NEAR(score(m, *source, nullptr, *backend), sum / data.n, 1e-3);
        EXPECT_NEAR(
                score(m, *source, weights.data(), *backend),
                weighted / n,
                1e-3);
        EXPECT_NEAR(aic(m, *source, nullptr, *backend), 2 * p - 2 * sum, 1);
        EXPECT_NEAR(
                bic(m, *source, weights.data(), *backend),
                p * std::log(n) - 2 * weighted,
                1);
        std::vector<int64_t> best(data.n);
        std::vector<float> r(data.n * k), entropy(data.n);
        predict(m, *source, *backend, best.data());
        predict_proba(m, *source, *backend, r.data());
        responsibility_entropy(m, *source, *backend, entropy.data());
        for (size_t i = 0; i < data.n; i++) {
            double expected = 0, largest = 0;
            for (size_t c = 0; c < k; c++) {
                const double truth = std::exp(joint[i * k + c] - prob[i]);
                ASSERT_NEAR(r[i * k + c], truth, 1e-3);
                expected -= truth > 0 ? truth * std::log(truth) : 0;
                largest = std::max(largest, truth);
            }
            ASSERT_NEAR(entropy[i], expected, 5e-3);
            ASSERT_NEAR(r[i * k + best[i]], largest, 2e-3);
        }
    }
}

TEST(MixtureTools, SamplesHaveTheMomentsOfTheMixture) {
    const RealData data = sift(2000, 4);
    for (Covariance covariance : kAll) {
        const size_t k = 3, d = 4, n = 60000;
        const GaussianMixture m = fitted(data, k, covariance);
        std::vector<float> x(n * d), again(n * d);
        std::vector<int64_t> from(n);
        gmm::sample(m, n, 5, x.data(), from.data());
        gmm::sample(m, n, 5, again.data());
        EXPECT_EQ(x, again);
        gmm::sample(m, n, 6, again.data());
        EXPECT_NE(x, again);
        for (size_t c = 0; c < k; c++) {
            const std::vector<double> wanted = covariance_matrix(m, c);
            double trace = 0, count = 0;
            for (size_t j = 0; j < d; j++) {
                trace += wanted[j * (d + 1)];
            }
            std::vector<double> found(d * d), mean(d);
            for (size_t i = 0; i < n; i++) {
                if (from[i] != int64_t(c)) {
                    continue;
                }
                count++;
                for (size_t j = 0; j < d * d; j++) {
                    found[j] += (x[i * d + j / d] - m.means[c * d + j / d]) *
                            (x[i * d + j % d] - m.means[c * d + j % d]);
                }
                for (size_t j = 0; j < d; j++) {
                    mean[j] += x[i * d + j];
                }
            }
            EXPECT_NEAR(count / n, std::exp(m.log_weights[c]), 0.01);
            for (size_t j = 0; j < d; j++) {
                EXPECT_NEAR(
                        mean[j] / count,
                        m.means[c * d + j],
                        5 * std::sqrt(trace / count));
            }
            for (size_t j = 0; j < d * d; j++) {
                EXPECT_NEAR(found[j] / count, wanted[j], 0.03 * trace);
            }
        }
    }
}

/// Their log-densities are large and alike: floats would lose the difference.
TEST(MixtureTools, ResponsibilitiesOfFarRows) {
    const auto backend = gmm::make_cpu_backend();
    for (gmm::Covariance kind :
         {gmm::Covariance::isotropic,
          gmm::Covariance::tied_spherical,
          gmm::Covariance::diagonal,
          gmm::Covariance::full,
          gmm::Covariance::tied}) {
        GaussianMixture m;
        m.covariance = kind;
        m.d = m.k = 2;
        m.means = {-0.5f, 0, 0.5f, 0};
        m.log_weights.assign(2, std::log(0.5f));
        m.variances.assign(gmm::num_variances(kind, 2, 2), 1);
        const size_t n_matrices = gmm::num_factors(kind, 2, 2) / 4;
        for (size_t c = 0; c < n_matrices; c++) {
            m.precisions_cholesky.insert(
                    m.precisions_cholesky.end(), {1, 0, 0, 1});
        }
        for (float far : {1e2f, 1e3f, 1e4f, 1e5f}) {
            for (float t : {-2.f, -0.5f, 0.f, 1.f, 3.f}) {
                const float x[] = {t, far};
                float p[2], entropy;
                const auto source = gmm::memory_source(x, 1, 2);
                predict_proba(m, *source, *backend, p);
                responsibility_entropy(m, *source, *backend, &entropy);
                const double expected = 1 / (1 + std::exp(-double(t)));
                EXPECT_NEAR(p[1], expected, 1e-6) << int(kind) << " " << far;
                EXPECT_NEAR(
                        entropy,
                        -expected * std::log(expected) -
                                (1 - expected) * std::log(1 - expected),
                        2e-6)
                        << int(kind) << " " << far;
            }
        }
    }
}

/// A row that overflows is harmless in all kinds: no NaN.
TEST(MixtureTools, RowsTooFarForFloats) {
    const auto backend = gmm::make_cpu_backend();
    for (gmm::Covariance kind :
         {gmm::Covariance::isotropic,
          gmm::Covariance::tied_spherical,
          gmm::Covariance::diagonal,
          gmm::Covariance::full,
          gmm::Covariance::tied}) {
        constexpr size_t d = 70;
        GaussianMixture m;
        m.covariance = kind;
        m.d = d;
        m.k = 2;
        m.means.assign(2 * d, 0.1f);
        m.means[3] = -0.2f;
        m.log_weights.assign(2, std::log(0.5f));
        m.variances.assign(gmm::num_variances(kind, 2, d), 1);
        m.precisions_cholesky.assign(gmm::num_factors(kind, 2, d), 0);
        for (size_t i = 0; i < m.precisions_cholesky.size(); i++) {
            const size_t row = i / d % d, column = i % d;
            m.precisions_cholesky[i] = row == column ? 1
                    : row < column && (row + column) % 3 == 0
                    ? (column % 2 ? 0.5f : -0.5f)
                    : 0;
        }
        gmm::Frame frame;
        frame.center.assign(d, 0);
        for (float far : {1e18f, 1e30f, 3e35f, 3e38f}) {
            std::vector<float> x(d);
            for (size_t j = 0; j < d; j++) {
                x[j] = j % 2 ? far : -far;
            }
            const auto source = gmm::memory_source(x.data(), 1, d);
            backend->set_data(*source, nullptr, frame);
            backend->set_model(m);
            int64_t components[2];
            double joint[2];
            float square[2], log_prob;
            const gmm::Rows rows{
                    x.data(), gmm::ElementType::f32, 1, d, d * sizeof(float)};
            backend->top_components(
                    rows, 2, components, joint, square, &log_prob);
            EXPECT_FALSE(std::isnan(log_prob)) << int(kind) << " " << far;
            EXPECT_FALSE(std::isnan(joint[0])) << int(kind) << " " << far;
            gmm::SufficientStats stats;
            backend->accumulate(gmm::EStep::soft, stats);
            EXPECT_FALSE(std::isnan(stats.n_k[0] + stats.n_k[1]))
                    << int(kind) << " " << far;
        }
    }
}

TEST(MixtureTools, ResponsibilitiesOfFarRowsSumToOne) {
    GaussianMixture m;
    m.d = m.k = 2;
    m.means = {0, -1, 0, 1};
    m.variances = {1, 1};
    m.log_weights.assign(2, std::log(0.5f));
    const std::vector<float> far = {1e3f, 3e3f, 1e4f, 1e6f, 1e12f, 3e38f};
    std::vector<float> x, p(far.size() * 2), entropy(far.size());
    for (float f : far) {
        x.insert(x.end(), {f, 0});
    }
    const auto source = gmm::memory_source(x.data(), far.size(), 2);
    const auto backend = gmm::make_cpu_backend();
    predict_proba(m, *source, *backend, p.data());
    responsibility_entropy(m, *source, *backend, entropy.data());
    for (size_t i = 0; i < far.size(); i++) {
        EXPECT_NEAR(p[2 * i] + p[2 * i + 1], 1, 1e-6) << far[i];
        double expected = 0;
        for (size_t c = 0; c < 2; c++) {
            const double r = p[2 * i + c];
            expected -= r > 0 ? r * std::log(r) : 0;
        }
        EXPECT_NEAR(entropy[i], expected, 1e-6) << far[i];
    }
}

TEST(MixtureTools, WrongWeightsAreNamed) {
    const RealData data = sift(200, 3);
    const GaussianMixture m = fitted(data, 5, Covariance::isotropic);
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    for (float wrong : {-1.0f, HUGE_VALF}) {
        std::vector<float> weights(data.n, 1.0f);
        weights[7] = wrong;
        const float* w = weights.data();
        EXPECT_INVALID(score(m, *source, w, *backend), "weights[7] = ");
        EXPECT_INVALID(aic(m, *source, w, *backend), "weights[7] = ");
        EXPECT_INVALID(bic(m, *source, w, *backend), "weights[7] = ");
    }
    const std::vector<float> none(data.n, 0.0f);
    EXPECT_INVALID(
            score(m, *source, none.data(), *backend),
            "weights: 0 are positive");
}

TEST(MixtureTools, RowsThatAreNotFiniteAreNamed) {
    RealData data = sift(100, 3);
    const GaussianMixture m = fitted(data, 2, Covariance::full);
    data.x[3 * 7] = std::nanf("");
    const auto backend = gmm::make_cpu_backend();
    EXPECT_INVALID(score(m, *data.source(), nullptr, *backend), "row 7");
    EXPECT_INVALID(
            score(m, *sift(9, 2).source(), nullptr, *backend), "source.d = 2");
}

TEST(MixtureTools, VariancesOfAllSizes) {
    for (bool swapped : {false, true}) {
        GaussianMixture m;
        m.d = 2;
        m.k = 2;
        m.means.assign(4, 0);
        m.log_weights.assign(2, std::log(0.5f));
        m.variances = {1e15f, 1e-15f};
        if (swapped) {
            std::swap(m.variances[0], m.variances[1]);
        }
        const std::vector<float> x = {0, 0, 1e7f, -1e7f};
        const auto source = gmm::memory_source(x.data(), 2, 2);
        double expected = 0;
        for (size_t i = 0; i < 2; i++) {
            const double r2 = 2.0 * x[2 * i] * x[2 * i];
            double p = 0;
            for (double v : m.variances) {
                p += 0.5 * std::exp(-r2 / (2 * v)) / (2 * std::numbers::pi * v);
            }
            expected += std::log(p) / 2;
        }
        const auto backend = gmm::make_cpu_backend();
        EXPECT_NEAR(score(m, *source, nullptr, *backend), expected, 1e-3);
        // what floats cannot hold beside each other is refused
        m.variances[swapped] = 1e22f;
        EXPECT_INVALID(score(m, *source, nullptr, *backend), "variances");
    }
}

TEST(Split, CopiesHaveNothingToSplit) {
    gmm::SufficientStats s(Covariance::isotropic, 2, 2);
    s.n_k = {1000, 2};
    s.sum_x = {300, 100, 2, 0};
    s.sum_x2 = {1000 * (0.09 + 0.01), 3};
    const std::vector<double> scatter = component_scatter(s);
    EXPECT_EQ(scatter[0], 0);
    EXPECT_NEAR(scatter[1], 1, 1e-12);
}

TEST(Split, MeansAreDistinctAsLongAsVectorsAre) {
    // Sixty percent are one vector.
    RealData data = sift(4000, 16);
    for (size_t i = 0; i < data.n; i++) {
        if (i * 7919 % 10 < 6) {
            std::copy_n(data.x.begin(), data.d, data.x.begin() + i * data.d);
        }
    }
    for (Covariance covariance : kAll) {
        gmm::TrainingOptions options;
        options.covariance = covariance;
        const auto backend = gmm::make_cpu_backend();
        const auto source = data.source();
        const size_t k = 64;
        const GaussianMixture m =
                train(*source, nullptr, k, options, *backend).model;
        std::set<std::vector<float>> means;
        for (size_t c = 0; c < k; c++) {
            means.emplace(
                    m.means.begin() + c * data.d,
                    m.means.begin() + (c + 1) * data.d);
        }
        EXPECT_EQ(means.size(), k) << to_string(covariance);
        std::vector<int64_t> nearest(data.n);
        gmm::Frame frame;
        frame.center.resize(data.d);
        backend->set_data(*source, nullptr, frame);
        backend->set_model(m);
        backend->top_components(
                data.rows(),
                1,
                nearest.data(),
                nullptr,
                nullptr,
                nullptr,
                gmm::EStep::hard);
        const std::set<int64_t> used(nearest.begin(), nearest.end());
        // The heaviest component has nothing to split.
        EXPECT_GE(used.size(), k - 4) << to_string(covariance);
    }
}
