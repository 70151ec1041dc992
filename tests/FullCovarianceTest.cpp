#include "FullCovariance.h"

#include <gtest/gtest.h>

#include <cmath>

#include "CpuBackendTools.h"
#include "EMTrainer.h"
#include "ExpectInvalid.h"
#include "RealData.h"
#include "SklearnNumbers.h"

using gmm::Covariance;
using gmm::EStep;
using gmm::GaussianMixture;
using gmm::SufficientStats;

namespace {

/// Weighted statistics in which row i belongs to component i % k for a share of
/// 3 / 4 and to the next one for the rest.
SufficientStats soft_stats(
        const RealData& data, Covariance covariance, size_t k) {
    SufficientStats s(covariance, k, data.d);
    const size_t d = data.d, triangle = d * (d + 1) / 2;
    for (size_t i = 0; i < data.n; i++) {
        for (int part = 0; part < 2; part++) {
            const size_t c = (i + part) % k;
            const double r = (i % 3 + 1) * (part == 0 ? 0.75 : 0.25);
            s.n_k[c] += r;
            s.weight += r;
            double* out = s.sum_x2.data() +
                    (covariance == Covariance::tied ? k : c * triangle);
            for (size_t j = 0; j < d; j++) {
                const double x = data.x[i * d + j];
                s.sum_x[c * d + j] += r * x;
                for (size_t l = 0; l <= j; l++) {
                    *out++ += r * x * data.x[i * d + l];
                }
                if (covariance == Covariance::tied) {
                    s.sum_x2[c] += r * x * x;
                }
            }
        }
    }
    return s;
}

GaussianMixture unit_model(Covariance covariance, size_t k, size_t d) {
    GaussianMixture m;
    m.covariance = covariance;
    m.k = k;
    m.d = d;
    m.means.assign(k * d, -7);
    m.precisions_cholesky.assign(num_factors(covariance, k, d), 0);
    for (size_t i = 0; i < m.precisions_cholesky.size(); i++) {
        m.precisions_cholesky[i] = i / d % d == i % d;
    }
    m.log_weights.assign(k, -std::log(float(k)));
    return m;
}

} // namespace

TEST(FullCovariance, CholeskyAndInverse) {
    const size_t d = 7;
    std::vector<double> l(d * d), a(d * d), inverse(d * d);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            l[i * d + j] = i == j ? 1 + 0.5 * i : std::sin(3.0 * i + j);
        }
    }
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < d; j++) {
            for (size_t m = 0; m < d; m++) {
                a[i * d + j] += l[i * d + m] * l[j * d + m];
            }
        }
    }
    std::vector<double> factor = a;
    ASSERT_TRUE(gmm::cholesky(d, factor.data()));
    for (size_t i = 0; i < d * d; i++) {
        EXPECT_NEAR(factor[i], l[i], 1e-12);
    }
    gmm::invert_lower(d, l.data(), inverse.data());
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < d; j++) {
            double sum = 0;
            for (size_t m = 0; m < d; m++) {
                sum += l[i * d + m] * inverse[m * d + j];
            }
            EXPECT_NEAR(sum, i == j, 1e-12);
        }
    }
    a[0] = -1;
    EXPECT_FALSE(gmm::cholesky(d, a.data()));
}

TEST(FullCovariance, MStepGivesTheWeightedCovariance) {
    const RealData data = sift(901, 6);
    const size_t k = 3, d = data.d;
    const double reg = 0.5;
    for (Covariance covariance : {Covariance::full, Covariance::tied}) {
        for (bool update_means : {true, false}) {
            const SufficientStats s = soft_stats(data, covariance, k);
            GaussianMixture m = unit_model(covariance, k, d);
            m_step(s, {0.2}, 1, update_means, m, 0.3);
            EXPECT_NO_THROW(m.validate());
            std::vector<double> expected(k * d * d), all(d * d);
            for (size_t i = 0; i < data.n; i++) {
                for (int part = 0; part < 2; part++) {
                    const size_t c = (i + part) % k;
                    const double r = (i % 3 + 1) * (part == 0 ? 0.75 : 0.25);
                    for (size_t j = 0; j < d * d; j++) {
                        const double p = data.x[i * d + j / d] -
                                double(m.means[c * d + j / d]);
                        const double q = data.x[i * d + j % d] -
                                double(m.means[c * d + j % d]);
                        expected[c * d * d + j] += r * p * q / s.n_k[c];
                        all[j] += r * p * q / s.weight;
                    }
                }
            }
            for (size_t c = 0; c < k; c++) {
                const std::vector<double> found = covariance_matrix(m, c);
                const std::vector<double> diagonal = component_variances(m, c);
                for (size_t j = 0; j < d * d; j++) {
                    const double wanted = (covariance == Covariance::tied
                                                   ? all[j]
                                                   : expected[c * d * d + j]) +
                            (j / d == j % d ? reg : 0);
                    EXPECT_NEAR(found[j], wanted, 1e-4 * all[0]);
                    if (j / d == j % d) {
                        EXPECT_NEAR(found[j], diagonal[j / d], 1e-9 * wanted);
                        EXPECT_NEAR(
                                m.variance(c, j / d), wanted, 1e-3 * wanted);
                    }
                }
            }
        }
    }
}

TEST(FullCovariance, DeadComponentsKeepTheirMatrix) {
    SufficientStats s = soft_stats(sift(90, 2), Covariance::full, 3);
    s.n_k[1] = 0.25;
    GaussianMixture m = unit_model(Covariance::full, 3, 2);
    const std::vector<float> unit(
            m.precisions_cholesky.begin(), m.precisions_cholesky.begin() + 4);
    m_step(s, {1e-9}, 1, true, m);
    EXPECT_TRUE(std::equal(
            unit.begin(), unit.end(), m.precisions_cholesky.begin() + 4));
    EXPECT_NE(m.precisions_cholesky[0], 1);
    EXPECT_EQ(m.means[2], -7);
}

TEST(FullCovariance, SingularDataNeedAFloor) {
    RealData data = sift(300, 3);
    for (size_t i = 0; i < data.n; i++) { // a plane
        data.x[3 * i + 2] = data.x[3 * i] + data.x[3 * i + 1];
    }
    const SufficientStats s = soft_stats(data, Covariance::full, 2);
    GaussianMixture m = unit_model(Covariance::full, 2, 3);
    EXPECT_NO_THROW(m_step(s, {1e-3}, 1, true, m));
    EXPECT_NO_THROW(m.validate());
    EXPECT_INVALID(m_step(s, {1e-30}, 1, true, m), "not positive definite");
    EXPECT_INVALID(m_step(s, {1e-3}, 1, true, m, -1), "reg_covar = -1");
}

/// Log-joints of -1e9, whose differences a float does not hold.
TEST(FullCovariance, RowsFarAway) {
    for (const size_t d : {3, 16, 40}) {
        RealData data = sift(600, d);
        for (size_t j = 0; j < d; j++) {
            data.x[5 * d + j] = 1e5f + 1e3f * float(j);
            data.x[70 * d + j] = j == 0 ? -2e5f : 0.0f;
        }
        const size_t k = 4;
        GaussianMixture model = unit_model(Covariance::full, k, d);
        for (size_t i = 0; i < k * d; i++) {
            model.means[i] = 10 * float(i % 3) + float(i / d);
        }
        gmm::Frame frame;
        frame.center.assign(d, 0);
        frame.scale = 1;
        const auto source = data.source();
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, frame);
        backend->set_model(model);
        SufficientStats found;
        backend->accumulate(EStep::soft, found);
        std::vector<double> joint(data.n * k), prob(data.n), n_k(k);
        model.log_joint(data.n, data.x.data(), joint.data());
        model.log_prob(data.n, data.x.data(), prob.data());
        double objective = 0;
        for (size_t i = 0; i < data.n; i++) {
            objective += prob[i];
            for (size_t c = 0; c < k; c++) {
                n_k[c] += std::exp(joint[i * k + c] - prob[i]);
            }
        }
        EXPECT_NEAR(found.objective, objective, 1e-9 * std::fabs(objective));
        for (size_t c = 0; c < k; c++) {
            EXPECT_NEAR(found.n_k[c], n_k[c], 2e-3);
        }
    }
}

/// Bounds of rounding errors, by which log-joints are computed again in double,
/// go by each dimension's own unit.
TEST(FullCovariance, UnitsOfDimensionsDoNotShow) {
    for (const size_t d : {4, 16, 40}) {
        const RealData data = sift(900, d);
        const size_t k = 12;
        const GaussianMixture model = trained(data, k, Covariance::full);
        const gmm::Frame frame{std::vector<float>(d), 1, {}};
        SufficientStats stats[2];
        for (const int power : {0, 10}) {
            RealData scaled = data;
            GaussianMixture m = model;
            const auto unit = [&](size_t j) { // their product is 1
                return float(std::exp2(j % 2 ? power : -power));
            };
            for (size_t i = 0; i < scaled.x.size(); i++) {
                scaled.x[i] *= unit(i % d);
            }
            for (size_t i = 0; i < m.means.size(); i++) {
                m.means[i] *= unit(i % d);
            }
            for (size_t i = 0; i < m.precisions_cholesky.size(); i++) {
                m.precisions_cholesky[i] /= unit(i / d % d);
            }
            const auto source = scaled.source();
            const auto backend = gmm::make_cpu_backend();
            backend->set_data(*source, nullptr, frame);
            backend->set_model(m);
            backend->accumulate(EStep::soft, stats[power > 0]);
        }
        EXPECT_NEAR(stats[0].objective, stats[1].objective, 1e-9 * data.n);
        for (size_t c = 0; c < k; c++) {
            EXPECT_NEAR(stats[0].n_k[c], stats[1].n_k[c], 1e-9);
        }
    }
}

TEST(FullCovariance, StatisticsAreTheDoubleReferences) {
    // Near-singular: the last dimension nearly repeats the first.
    for (const auto& [d, k] : std::initializer_list<std::pair<size_t, size_t>>{
                 {1, 9}, {3, 9}, {20, 9}, {50, 9}, {128, 7}, {384, 1}}) {
        RealData data = sift(1500, d);
        for (size_t i = 0; d > 3 && i < data.n; i++) {
            data.x[i * d + d - 1] =
                    data.x[i * d] + 1e-2f * data.x[i * d + d - 1];
        }
        for (Covariance covariance : {Covariance::full, Covariance::tied}) {
            gmm::TrainingOptions options;
            options.covariance = covariance;
            options.niter = 2;
            options.variance_floor = 1e-7;
            const auto backend = gmm::make_cpu_backend();
            const auto source = data.source();
            const GaussianMixture model =
                    train(*source, nullptr, k, options, *backend).model;
            gmm::Frame frame;
            frame.center.assign(d, 20);
            frame.scale = 0.03f;
            const GaussianMixture inside = frame.to_frame(model);
            RealData y = data;
            for (float& v : y.x) {
                v = (v - 20) * frame.scale;
            }
            std::vector<float> weights(data.n);
            for (size_t i = 0; i < data.n; i++) {
                weights[i] = float(i % 4) / 2;
            }
            SufficientStats expected(covariance, k, d);
            std::vector<double> joint(data.n * k), prob(data.n);
            inside.log_joint(data.n, y.x.data(), joint.data());
            inside.log_prob(data.n, y.x.data(), prob.data());
            const size_t triangle = d * (d + 1) / 2;
            for (size_t i = 0; i < data.n; i++) {
                expected.objective += weights[i] * prob[i];
                expected.weight += weights[i];
                for (size_t c = 0; c < k; c++) {
                    const double r =
                            weights[i] * std::exp(joint[i * k + c] - prob[i]);
                    double* out = expected.sum_x2.data() +
                            (covariance == Covariance::tied ? k : c * triangle);
                    expected.n_k[c] += r;
                    for (size_t j = 0; j < d; j++) {
                        const double v = y.x[i * d + j];
                        expected.sum_x[c * d + j] += r * v;
                        for (size_t l = 0; l <= j; l++) {
                            *out++ += r * v * y.x[i * d + l];
                        }
                        if (covariance == Covariance::tied) {
                            expected.sum_x2[c] += r * v * v;
                        }
                    }
                }
            }
            SufficientStats found;
            backend->set_data(*source, weights.data(), frame);
            backend->set_model(inside);
            backend->accumulate(EStep::soft, found);
            EXPECT_EQ(found.weight, expected.weight);
            EXPECT_NEAR(found.objective, expected.objective, 1e-3 * data.n);
            ASSERT_EQ(found.sum_x2.size(), expected.sum_x2.size());
            const double near = 1e-4 * expected.weight;
            for (size_t c = 0; c < k; c++) {
                EXPECT_NEAR(found.n_k[c], expected.n_k[c], near);
            }
            for (size_t i = 0; i < k * d; i++) {
                EXPECT_NEAR(found.sum_x[i], expected.sum_x[i], near * 3);
            }
            for (size_t i = 0; i < found.sum_x2.size(); i++) {
                ASSERT_NEAR(found.sum_x2[i], expected.sum_x2[i], near * 9);
            }
        }
    }
}

// Twenty iterations from the same start, reg_covar added alike.
TEST(FullCovariance, TrainingsAgreeWithScikitLearn) {
    const size_t k = kSklearnK, d = kSklearnD;
    const RealData data = sift(kSklearnN, d);
    for (const SklearnNumbers& expected : kSklearn) {
        SCOPED_TRACE(expected.kind);
        const std::string kind = expected.kind;
        gmm::TrainingOptions options;
        options.covariance = kind == "full" ? Covariance::full
                : kind == "tied"            ? Covariance::tied
                : kind == "diag"            ? Covariance::diagonal
                                            : Covariance::isotropic;
        options.init = gmm::Initialisation::given_means;
        options.niter = 20;
        options.tolerance = 0;
        options.variance_floor = 1e-12;
        options.reg_covar = kSklearnReg;
        GaussianMixture start = unit_model(options.covariance, k, d);
        start.means.assign(data.x.begin(), data.x.begin() + k * d);
        start.variances.assign(
                num_variances(options.covariance, k, d),
                float(kSklearnVariance));
        for (float& factor : start.precisions_cholesky) {
            factor /= std::sqrt(float(kSklearnVariance));
        }
        const auto backend = gmm::make_cpu_backend();
        const gmm::TrainingResult found =
                train(*data.source(), nullptr, k, options, *backend, &start);
        EXPECT_EQ(found.n_iter(), 20);
        EXPECT_EQ(found.stop, gmm::Stop::max_iterations);
        EXPECT_NEAR(
                found.lower_bound(),
                expected.lower_bound,
                1e-4 * std::abs(expected.lower_bound));
        for (size_t c = 0; c < k; c++) {
            EXPECT_NEAR(
                    std::exp(found.model.log_weights[c]),
                    expected.weights[c],
                    1e-4 * expected.weights[c]);
            const std::vector<double> matrix =
                    covariance_matrix(found.model, c);
            double scale = 0;
            for (size_t j = 0; j < d; j++) {
                scale = std::max(scale, matrix[j * (d + 1)]);
                EXPECT_NEAR(
                        found.model.means[c * d + j],
                        expected.means[c * d + j],
                        1e-4 * std::abs(expected.means[c * d + j]));
            }
            for (size_t j = 0; j < d * d; j++) {
                const bool diagonal = j / d == j % d;
                const double wanted = kind == "full"
                        ? expected.covariances[c * d * d + j]
                        : kind == "tied" ? expected.covariances[j]
                        : !diagonal      ? 0
                        : kind == "diag" ? expected.covariances[c * d + j / d]
                                         : expected.covariances[c];
                EXPECT_NEAR(matrix[j], wanted, 1e-4 * scale);
            }
        }
    }
}
