#include "SufficientStats.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ExpectInvalid.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::GaussianMixture;
using gmm::SufficientStats;

static const Covariance kAll[] = {
        Covariance::isotropic,
        Covariance::diagonal,
        Covariance::tied_spherical};

/// Hard statistics: row i belongs to component i % k with weight i % 3 + 1.
static SufficientStats hard_stats(
        const RealData& data, Covariance covariance, size_t k) {
    SufficientStats s(covariance, k, data.d);
    for (size_t i = 0; i < data.n; i++) {
        const size_t c = i % k;
        const double w = i % 3 + 1;
        s.n_k[c] += w;
        s.weight += w;
        for (size_t j = 0; j < data.d; j++) {
            const double x = data.x[i * data.d + j];
            s.sum_x[c * data.d + j] += w * x;
            s.sum_x2[covariance == Covariance::diagonal ? c * data.d + j : c] +=
                    w * x * x;
        }
    }
    return s;
}

static GaussianMixture empty_model(Covariance covariance, size_t k, size_t d) {
    GaussianMixture m;
    m.covariance = covariance;
    m.k = k;
    m.d = d;
    m.means.assign(k * d, -7);
    m.variances.assign(num_variances(covariance, k, d), 0.125f);
    m.log_weights.assign(k, -std::log(float(k)));
    return m;
}

TEST(SufficientStats, MStepGivesWeightedMeansAndVariances) {
    const RealData data = sift(1001, 5);
    const size_t k = 4;
    for (Covariance covariance : kAll) {
        const SufficientStats s = hard_stats(data, covariance, k);
        GaussianMixture m = empty_model(covariance, k, data.d);
        m_step(s, {1e-9}, 1, true, m);
        EXPECT_NO_THROW(m.validate());
        double all = 0;
        std::vector<double> squares(k * data.d);
        for (size_t i = 0; i < data.n; i++) {
            for (size_t j = 0; j < data.d; j++) {
                const size_t at = i % k * data.d + j;
                const double mean = s.sum_x[at] / s.n_k[i % k];
                EXPECT_NEAR(m.means[at], mean, 1e-4);
                const double diff = data.x[i * data.d + j] - mean;
                squares[at] += (i % 3 + 1) * diff * diff;
                all += (i % 3 + 1) * diff * diff;
            }
        }
        for (size_t c = 0; c < k; c++) {
            EXPECT_NEAR(std::exp(m.log_weights[c]), s.n_k[c] / s.weight, 1e-6);
            double component = 0;
            for (size_t j = 0; j < data.d; j++) {
                component += squares[c * data.d + j];
            }
            for (size_t j = 0; j < data.d; j++) {
                double expected = all / (s.weight * data.d);
                if (covariance == Covariance::isotropic) {
                    expected = component / (s.n_k[c] * data.d);
                } else if (covariance == Covariance::diagonal) {
                    expected = squares[c * data.d + j] / s.n_k[c];
                }
                EXPECT_NEAR(m.variance(c, j), expected, 1e-4 * expected);
            }
        }
    }
}

TEST(SufficientStats, FixedMeansGetTheVarianceAroundThem) {
    const RealData data = sift(500, 3);
    for (Covariance covariance : kAll) {
        GaussianMixture m = empty_model(covariance, 1, data.d);
        m_step(hard_stats(data, covariance, 1), {1e-9}, 1, false, m);
        EXPECT_EQ(m.means, std::vector<float>(3, -7));
        double total = 0, weight = 0;
        for (size_t i = 0; i < data.n; i++) {
            weight += i % 3 + 1;
            for (size_t j = 0; j < data.d; j++) {
                const double diff = data.x[i * data.d + j] + 7;
                total += (i % 3 + 1) * diff * diff;
            }
        }
        double sum = 0;
        for (size_t j = 0; j < data.d; j++) {
            sum += m.variance(0, j);
        }
        EXPECT_NEAR(sum, total / weight, 1e-4 * sum);
    }
}

TEST(SufficientStats, MergedPartsEqualTheWhole) {
    const RealData data = sift(90, 3), half = sift(90, 3);
    for (Covariance covariance : kAll) {
        const SufficientStats part = hard_stats(half, covariance, 2);
        SufficientStats sum = hard_stats(data, covariance, 2);
        sum.objective = 3;
        sum.dropped_mass = 0.5;
        sum.merge(part);
        for (size_t c = 0; c < 2; c++) {
            EXPECT_EQ(sum.n_k[c], 2 * part.n_k[c]);
        }
        for (size_t i = 0; i < sum.sum_x.size(); i++) {
            EXPECT_EQ(sum.sum_x[i], 2 * part.sum_x[i]);
        }
        for (size_t i = 0; i < sum.sum_x2.size(); i++) {
            EXPECT_EQ(sum.sum_x2[i], 2 * part.sum_x2[i]);
        }
        EXPECT_EQ(sum.weight, 2 * part.weight);
        EXPECT_EQ(sum.objective, 3);
        EXPECT_EQ(sum.dropped_mass, 0.5);
        sum.clear();
        EXPECT_EQ(sum.n_k, std::vector<double>(2));
        EXPECT_EQ(sum.weight, 0);
        EXPECT_EQ(sum.objective, 0);
    }
}

TEST(SufficientStats, DeadComponentsKeepMeansAndVariances) {
    for (Covariance covariance : kAll) {
        SufficientStats s = hard_stats(sift(60, 2), covariance, 3);
        s.n_k[1] = 0.25;
        GaussianMixture m = empty_model(covariance, 3, 2);
        m_step(s, {1e-9}, 1, true, m);
        EXPECT_EQ(m.means[2], -7);
        EXPECT_EQ(m.means[3], -7);
        EXPECT_NE(m.means[0], -7);
        if (covariance != Covariance::tied_spherical) {
            EXPECT_EQ(m.variance(1, 0), 0.125f);
        }
        EXPECT_NO_THROW(m.validate());
        EXPECT_LT(m.log_weights[1], m.log_weights[0]);
    }
}

TEST(SufficientStats, EmptyComponentsHaveAWeightThatHasALogarithm) {
    const SufficientStats s(Covariance::isotropic, 3, 2);
    GaussianMixture m = empty_model(Covariance::isotropic, 3, 2);
    m_step(s, {1e-3}, 0, true, m);
    EXPECT_NO_THROW(m.validate());
}

TEST(SufficientStats, VarianceHasAFloor) {
    for (Covariance covariance : kAll) {
        SufficientStats s(covariance, 1, 2);
        s.n_k[0] = s.weight = 4;
        s.sum_x = {4, 8}; // four times the vector (1, 2)
        s.sum_x2[0] = covariance == Covariance::diagonal ? 4 : 20;
        if (covariance == Covariance::diagonal) {
            s.sum_x2[1] = 16;
        }
        GaussianMixture m = empty_model(covariance, 1, 2);
        m_step(s, {0.01}, 1, true, m);
        EXPECT_EQ(m.variance(0, 1), 0.01f);
    }
}

TEST(SufficientStats, ShapesThatDifferAreWrongInput) {
    SufficientStats s(Covariance::tied_spherical, 3, 2);
    EXPECT_INVALID(
            s.merge(SufficientStats(Covariance::tied_spherical, 4, 2)),
            "k = 4");
    EXPECT_INVALID(
            s.merge(SufficientStats(Covariance::tied_spherical, 3, 1)),
            "d = 1");
    EXPECT_INVALID(
            s.merge(SufficientStats(Covariance::isotropic, 3, 2)),
            "covariance kind");
    GaussianMixture m = empty_model(Covariance::tied_spherical, 2, 2);
    EXPECT_INVALID(m_step(s, {1}, 1, true, m), "model: k = 2");
    m = empty_model(Covariance::tied_spherical, 3, 2);
    EXPECT_INVALID(m_step(s, {0}, 1, true, m), "variance_floor = 0");
}
