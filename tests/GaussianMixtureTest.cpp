#include "GaussianMixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "Covariances.h"
#include "ExpectInvalid.h"
#include "RealData.h"

using gmm::Covariance;
using gmm::Frame;
using gmm::GaussianMixture;

static GaussianMixture two_components(Covariance covariance) {
    GaussianMixture m;
    m.covariance = covariance;
    m.d = 2;
    m.k = 2;
    m.means = {0, 1, 3, -1};
    switch (covariance) {
        case Covariance::isotropic:
            m.variances = {2, 0.5};
            break;
        case Covariance::diagonal:
            m.variances = {2, 1, 0.5, 4};
            break;
        case Covariance::tied_spherical:
            m.variances = {2};
            break;
        case Covariance::full:
            m.precisions_cholesky = {0.5f, 0.25f, 0, 2, 1, -3, 0, 0.5f};
            break;
        case Covariance::tied:
            m.precisions_cholesky = {0.5f, 0.25f, 0, 2};
            break;
    }
    m.log_weights = {std::log(0.25f), std::log(0.75f)};
    return m;
}

static double normal(double x, double mean, double variance) {
    return std::exp(-(x - mean) * (x - mean) / (2 * variance)) /
            std::sqrt(2 * std::numbers::pi * variance);
}

TEST(GaussianMixture, LogJointIsWeightTimesOneDimensionalDensities) {
    const float x[] = {1, 0.5f, -2, 7};
    for (Covariance covariance :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical}) {
        const GaussianMixture m = two_components(covariance);
        double joint[4], prob[2];
        m.log_joint(2, x, joint);
        m.log_prob(2, x, prob);
        for (int i = 0; i < 2; i++) {
            double sum = 0;
            for (int c = 0; c < 2; c++) {
                double density = std::exp(double(m.log_weights[c]));
                for (int j = 0; j < 2; j++) {
                    density *= normal(
                            x[2 * i + j], m.means[2 * c + j], m.variance(c, j));
                }
                EXPECT_NEAR(joint[2 * i + c], std::log(density), 1e-9);
                sum += density;
            }
            EXPECT_NEAR(prob[i], std::log(sum), 1e-9);
        }
    }
}

TEST(GaussianMixture, LogJointOfMatricesIsTheDensityOfTheCovariance) {
    const float x[] = {1, 0.5f, -2, 7};
    for (Covariance covariance : {Covariance::full, Covariance::tied}) {
        const GaussianMixture m = two_components(covariance);
        double joint[4];
        m.log_joint(2, x, joint);
        for (int c = 0; c < 2; c++) {
            // P = U U^T, and its inverse by Cramer's rule.
            const float* u = m.precisions_cholesky.data() +
                    (covariance == Covariance::full ? 4 * c : 0);
            const double a = double(u[0]) * u[0] + double(u[1]) * u[1];
            const double b = double(u[1]) * u[3], e = double(u[3]) * u[3];
            const double det = a * e - b * b;
            EXPECT_NEAR(m.variance(c, 0), e / det, 1e-6);
            EXPECT_NEAR(m.variance(c, 1), a / det, 1e-6);
            for (int i = 0; i < 2; i++) {
                const double p = double(x[2 * i]) - m.means[2 * c];
                const double q = double(x[2 * i + 1]) - m.means[2 * c + 1];
                const double expected = m.log_weights[c] -
                        std::log(2 * std::numbers::pi) + 0.5 * std::log(det) -
                        0.5 * (a * p * p + 2 * b * p * q + e * q * q);
                EXPECT_NEAR(joint[2 * i + c], expected, 1e-9);
            }
        }
    }
}

TEST(GaussianMixture, NumbersOfCovarianceKindsAreThoseInFiles) {
    EXPECT_EQ(int(Covariance::isotropic), 0);
    EXPECT_EQ(int(Covariance::diagonal), 1);
    EXPECT_EQ(int(Covariance::tied_spherical), 2);
    EXPECT_EQ(int(Covariance::full), 3);
    EXPECT_EQ(int(Covariance::tied), 4);
    EXPECT_STREQ(to_string(Covariance::tied_spherical), "tied_spherical");
    EXPECT_STREQ(to_string(Covariance::full), "full");
    EXPECT_INVALID(to_string(Covariance(5)), "covariance = 5");
}

TEST(GaussianMixture, VarianceFollowsTheCovarianceKind) {
    EXPECT_EQ(two_components(Covariance::isotropic).variance(1, 0), 0.5f);
    EXPECT_EQ(two_components(Covariance::diagonal).variance(1, 1), 4.0f);
    EXPECT_EQ(two_components(Covariance::tied_spherical).variance(1, 1), 2.0f);
    EXPECT_EQ(num_variances(Covariance::isotropic, 7, 3), 7u);
    EXPECT_EQ(num_variances(Covariance::diagonal, 7, 3), 21u);
    EXPECT_EQ(num_variances(Covariance::tied_spherical, 7, 3), 1u);
    EXPECT_EQ(num_variances(Covariance::full, 7, 3), 0u);
    EXPECT_EQ(num_factors(Covariance::full, 7, 3), 63u);
    EXPECT_EQ(num_factors(Covariance::tied, 7, 3), 9u);
    EXPECT_EQ(num_factors(Covariance::diagonal, 7, 3), 0u);
}

TEST(GaussianMixture, FrameKeepsTheMixtureWhatItIs) {
    const RealData data = sift(300, 2);
    Frame frame;
    frame.center = {17.5f, -3.25f};
    frame.scale = 0.37f;
    for (Covariance covariance : kAll) {
        const GaussianMixture user = two_components(covariance);
        const GaussianMixture inside = frame.to_frame(user);
        std::vector<float> y = data.x;
        for (size_t i = 0; i < y.size(); i++) {
            y[i] = (y[i] - frame.center[i % 2]) * frame.scale;
        }
        std::vector<double> expected(data.n), found(data.n);
        user.log_prob(data.n, data.x.data(), expected.data());
        inside.log_prob(data.n, y.data(), found.data());
        for (size_t i = 0; i < data.n; i++) {
            EXPECT_NEAR(
                    found[i] + 2 * std::log(frame.scale),
                    expected[i],
                    1e-5 * std::abs(expected[i]));
        }
        const GaussianMixture back = frame.to_user(inside);
        for (size_t i = 0; i < user.means.size(); i++) {
            EXPECT_NEAR(back.means[i], user.means[i], 1e-5);
        }
        for (size_t i = 0; i < user.variances.size(); i++) {
            EXPECT_NEAR(back.variances[i], user.variances[i], 1e-6);
        }
    }
}

TEST(GaussianMixture, FrameOfAnotherShapeIsWrongInput) {
    const GaussianMixture m = two_components(Covariance::tied_spherical);
    Frame frame;
    frame.center = {1, 2, 3};
    EXPECT_INVALID(frame.to_frame(m), "frame.center.size() = 3");
    EXPECT_INVALID(frame.to_user(m), "frame.center.size() = 3");
    frame.center.resize(2);
    frame.scale = 0;
    EXPECT_INVALID(frame.to_frame(m), "frame.scale = 0");
}

TEST(GaussianMixture, ArraysThatAreTooShortAreNotReadBeyond) {
    const float x[] = {1, 2};
    double joint[2], prob[1];
    for (Covariance covariance : {Covariance::diagonal, Covariance::full}) {
        GaussianMixture m = two_components(covariance);
        m.means.pop_back();
        EXPECT_INVALID(m.log_joint(1, x, joint), "means.size() = 3");
        EXPECT_INVALID(m.log_prob(1, x, prob), "means.size() = 3");
    }
    GaussianMixture m = two_components(Covariance::full);
    m.precisions_cholesky.pop_back();
    EXPECT_INVALID(m.log_prob(1, x, prob), "precisions_cholesky.size() = 7");
    EXPECT_INVALID(GaussianMixture().log_joint(0, nullptr, nullptr), "d = 0");
}

TEST(GaussianMixture, ValidateNamesWhatIsWrong) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const GaussianMixture good = two_components(Covariance::diagonal);
    EXPECT_NO_THROW(good.validate());
    GaussianMixture m = good;
    m.covariance = Covariance(77);
    EXPECT_INVALID(m.validate(), "covariance = 77");
    m = good;
    m.d = 0;
    EXPECT_INVALID(m.validate(), "d = 0");
    m = good;
    m.k = 0;
    EXPECT_INVALID(m.validate(), "k = 0");
    m = good;
    m.means.pop_back();
    EXPECT_INVALID(m.validate(), "means.size() = 3, expected 4");
    m = good;
    m.means[2] = nan;
    EXPECT_INVALID(m.validate(), "means[2] = nan");
    m = good;
    m.variances.push_back(1);
    EXPECT_INVALID(m.validate(), "variances.size() = 5, expected 4");
    m = good;
    m.variances[3] = 0;
    EXPECT_INVALID(m.validate(), "variances[3] = 0");
    m = good;
    m.variances[1] = -1;
    EXPECT_INVALID(m.validate(), "variances[1] = -1");
    m = good;
    m.log_weights.clear();
    EXPECT_INVALID(m.validate(), "log_weights.size() = 0");
    m = good;
    m.log_weights[0] = -std::numeric_limits<float>::infinity();
    EXPECT_INVALID(m.validate(), "log_weights[0] = -inf");
    m = good;
    m.log_weights[0] = 0;
    EXPECT_INVALID(m.validate(), "sum to 1.75");
    m = two_components(Covariance::full);
    EXPECT_NO_THROW(m.validate());
    m.precisions_cholesky[6] = 1;
    EXPECT_INVALID(m.validate(), "precisions_cholesky[6] = 1, expected upper");
    m = two_components(Covariance::full);
    m.precisions_cholesky[3] = 0;
    EXPECT_INVALID(m.validate(), "precisions_cholesky[3] = 0");
    m.precisions_cholesky.pop_back();
    EXPECT_INVALID(m.validate(), "precisions_cholesky.size() = 7, expected 8");
    m = good;
    m.precisions_cholesky = {1};
    EXPECT_INVALID(m.validate(), "precisions_cholesky.size() = 1, expected 0");
}
