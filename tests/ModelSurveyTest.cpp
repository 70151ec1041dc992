#include "cuda/operands/ModelSurvey.h"

#include <cmath>
#include <numbers>

#include "CudaProblem.h"
#include "cuda/operands/Model.h"

/** What is found of a model on the device, against double. */
namespace {

using namespace cuda_test;

struct ModelSurveyTest : CudaTest {};

void expect_near(double value, double expected, const char* what) {
    EXPECT_NEAR(value, expected, 1e-6 * std::fabs(expected)) << what;
}

void check_survey(const cuda::ModelSurvey& survey, const GaussianMixture& m) {
    double mean = 0, inverse = 0, scaled = 0, constant = 0;
    std::vector<double> explained(m.d);
    for (size_t c = 0; c < m.k; c++) {
        const double v = m.variance(c, 0);
        double top = 0, norm = 0;
        for (size_t j = 0; j < m.d; j++) {
            const double x = m.means[c * m.d + j];
            top = std::max(top, std::fabs(x));
            norm += x * x;
            explained[j] += std::exp(double(m.log_weights[c])) * x * x;
        }
        mean = std::max(mean, top);
        inverse = std::max(inverse, 1 / v);
        scaled = std::max(scaled, top / v);
        constant = std::max(
                constant,
                std::fabs(m.log_weights[c]) +
                        0.5 * m.d *
                                std::fabs(std::log(2 * std::numbers::pi * v)) +
                        0.5 * norm / v);
    }
    expect_near(survey.largest_mean, mean, "mean");
    expect_near(survey.largest_inverse, inverse, "1 / v");
    expect_near(survey.largest_scaled, scaled, "mean / v");
    expect_near(survey.largest_constant, constant / std::numbers::ln2, "b");
    ASSERT_EQ(survey.explained.size(), m.d);
    for (size_t j = 0; j < m.d; j++) {
        expect_near(survey.explained[j], explained[j], "explained");
    }
}

TEST_F(ModelSurveyTest, AgainstDouble) {
    cudaStream_t stream;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    {
        cuda::Staging staging;
        cuda::Model model; // one after the other: nothing of the last is left
        for (Covariance covariance :
             {Covariance::isotropic,
              Covariance::tied_spherical,
              Covariance::diagonal}) {
            for (const auto& [k, d] : std::vector<std::pair<size_t, size_t>>{
                         {1000, 384}, {1, 1}, {7, 33}, {5000, 50}}) {
                SCOPED_TRACE(
                        std::to_string(k) + " x " + std::to_string(d) + ", " +
                        to_string(covariance));
                const Problem p = make_problem(1, d, k, covariance);
                model.upload(p.model, staging, stream);
                model.survey.wait(stream);
                check_survey(model.survey, p.model);
            }
        }
        // Begun twice, asked for once.
        const Problem a = make_problem(1, 64, 300, Covariance::isotropic);
        const Problem b = make_problem(1, 96, 20, Covariance::isotropic);
        model.upload(a.model, staging, stream);
        model.upload(b.model, staging, stream);
        model.survey.wait(stream);
        check_survey(model.survey, b.model);
    }
    cudaStreamDestroy(stream);
}

} // namespace
