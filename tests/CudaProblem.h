#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "CudaOptions.h"
#include "Error.h"

/** Problems, references in double and the comparison with them: what the CUDA
 * backend's tests share. */
namespace cuda_test {

using namespace gmm;

struct Problem {
    size_t n, d, k;
    Covariance covariance;
    std::vector<float> x; ///< user's units
    Frame frame;
    std::vector<float> y;  ///< the frame's units
    GaussianMixture model; ///< in the frame's units
};

/// Makes a coordinate what is nearest to y in the user's units.
inline void place(Problem& p, size_t i, size_t j, float y) {
    float& x = p.x[i * p.d + j];
    x = y / p.frame.scale + p.frame.center[j];
    p.y[i * p.d + j] = (x - p.frame.center[j]) * p.frame.scale;
}

/** Clusters around the model's means. spread: of the vectors about their mean,
 * in standard deviations of the model; 1 is data that the model fits, less is
 * a model so wide that responsibilities are spread over many components. */
inline Problem make_problem(
        size_t n,
        size_t d,
        size_t k,
        Covariance covariance,
        double spread = 1,
        unsigned seed = 1) {
    Problem p{n, d, k, covariance, {}, {}, {}, {}};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0, 1);
    p.frame.scale = 0.25f;
    p.frame.center.resize(d);
    for (float& c : p.frame.center) {
        c = 50 + 5 * normal(random);
    }
    GaussianMixture& m = p.model;
    m.covariance = covariance;
    m.d = d;
    m.k = k;
    m.means.resize(k * d);
    for (float& v : m.means) {
        v = 0.9f * normal(random);
    }
    m.variances.resize(num_variances(covariance, k, d));
    for (float& v : m.variances) {
        v = 0.2f + 0.3f * uniform(random);
    }
    std::vector<double> weights(k);
    for (double& w : weights) {
        w = 0.2 + uniform(random);
    }
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.);
    for (double w : weights) {
        m.log_weights.push_back(float(std::log(w / sum)));
    }
    if (spread < 1) { // wide: means close together
        for (float& v : m.means) {
            v *= float(spread);
        }
    }
    p.x.resize(n * d);
    p.y.resize(n * d);
    for (size_t i = 0; i < n; i++) {
        const size_t c = random() % k;
        for (size_t j = 0; j < d; j++) {
            const float y = m.means[c * d + j] +
                    std::sqrt(m.variance(c, j)) * normal(random);
            place(p, i, j, y);
        }
    }
    return p;
}

/// Statistics in double, blockwise: never n x k.
inline SufficientStats reference(
        const Problem& p, EStep step, const float* weights = nullptr) {
    SufficientStats s(p.covariance, p.k, p.d);
    const size_t block = std::max<size_t>(1, (size_t(1) << 21) / p.k);
    std::vector<double> joint(block * p.k);
    for (size_t begin = 0; begin < p.n; begin += block) {
        const size_t count = std::min(block, p.n - begin);
        p.model.log_joint(count, p.y.data() + begin * p.d, joint.data());
        for (size_t i = 0; i < count; i++) {
            const float* y = p.y.data() + (begin + i) * p.d;
            double* l = joint.data() + i * p.k;
            const double w = weights ? weights[begin + i] : 1.;
            s.weight += w;
            if (step == EStep::hard) {
                for (size_t c = 0; c < p.k; c++) {
                    double sum = 0;
                    for (size_t j = 0; j < p.d; j++) {
                        const double t =
                                double(y[j]) - p.model.means[c * p.d + j];
                        sum -= t * t;
                    }
                    l[c] = sum;
                }
            }
            const double top = *std::max_element(l, l + p.k);
            const size_t best = std::max_element(l, l + p.k) - l;
            double z = 0;
            for (size_t c = 0; c < p.k; c++) {
                z += std::exp(l[c] - top);
            }
            s.objective += w * (step == EStep::hard ? top : top + std::log(z));
            for (size_t c = 0; c < p.k; c++) {
                const double r = step == EStep::hard
                        ? w * (c == best)
                        : w * std::exp(l[c] - top) / z;
                if (r < 1e-12) {
                    continue;
                }
                s.n_k[c] += r;
                for (size_t j = 0; j < p.d; j++) {
                    s.sum_x[c * p.d + j] += r * y[j];
                    const double square = r * y[j] * double(y[j]);
                    s
                            .sum_x2[p.covariance == Covariance::diagonal
                                            ? c * p.d + j
                                            : c] += square;
                }
            }
        }
    }
    return s;
}

struct Tolerance {
    double mass;      ///< of n_k, relative to n_k + 1
    double sum;       ///< of sums, relative to n_k + 1
    double objective; ///< of the mean log-likelihood, nats
};

/// Hard assignments are compared by what they cost: rounding decides ties.
inline void expect_near(
        const SufficientStats& a,
        const SufficientStats& b,
        const Tolerance& t) {
    EXPECT_NEAR(a.weight, b.weight, 1e-6 * b.weight);
    EXPECT_NEAR(a.objective, b.objective, t.objective * b.weight);
    double mass = 0, sum = 0, sum2 = 0;
    const size_t per = b.sum_x2.size() / b.k;
    for (size_t c = 0; c < b.k; c++) {
        const double n = b.n_k[c] + 1;
        mass = std::max(mass, std::fabs(a.n_k[c] - b.n_k[c]) / n);
        for (size_t j = 0; j < b.d; j++) {
            sum = std::max(
                    sum,
                    std::fabs(a.sum_x[c * b.d + j] - b.sum_x[c * b.d + j]) / n);
        }
        for (size_t j = 0; j < per; j++) {
            sum2 = std::max(
                    sum2,
                    std::fabs(a.sum_x2[c * per + j] - b.sum_x2[c * per + j]) /
                            (n * (per == 1 ? b.d : 1)));
        }
    }
    EXPECT_LE(mass, t.mass);
    EXPECT_LE(sum, t.sum);
    EXPECT_LE(sum2, 4 * t.sum);
}

/// One pass over a problem, and what made it.
struct Pass {
    std::unique_ptr<VectorSource> source;
    std::unique_ptr<Backend> backend;
    SufficientStats stats;
};

inline Pass run_pass(
        const Problem& p,
        const CudaOptions& options,
        EStep step = EStep::soft,
        const float* weights = nullptr) {
    Pass pass{
            memory_source(p.x.data(), p.n, p.d),
            make_cuda_backend(options),
            {}};
    pass.backend->set_data(*pass.source, weights, p.frame);
    pass.backend->set_model(p.model);
    pass.backend->accumulate(step, pass.stats);
    return pass;
}

/// Of the pass's only block, against double: the worst row's, nats.
/// Of rows that have a weight.
inline double worst_log_prob(
        const Problem& p, const Pass& pass, const float* weights = nullptr) {
    std::vector<double> expected(p.n);
    p.model.log_prob(p.n, p.y.data(), expected.data());
    const std::vector<float> found = cuda_row_log_prob(*pass.backend);
    EXPECT_EQ(found.size(), p.n);
    double worst = 0;
    for (size_t i = 0; i < std::min(p.n, found.size()); i++) {
        EXPECT_FALSE(std::isnan(found[i])) << "row " << i;
        if (!weights || weights[i] > 0) {
            worst = std::max(worst, std::fabs(found[i] - expected[i]));
        }
    }
    return worst;
}

constexpr Tolerance kFast{0.01, 0.02, 0.01};
constexpr Tolerance kExact{2e-4, 4e-4, 5e-4};

struct CudaTest : testing::Test {
    void SetUp() override {
        std::string why;
        if (!cuda_available(&why)) {
            GTEST_SKIP() << "skipped, " << why;
        }
    }

    static std::vector<Kernel> kernels() {
        std::vector<Kernel> all{Kernel::portable};
        try {
            CudaOptions o;
            o.kernel = Kernel::hopper;
            make_cuda_backend(o);
            all.push_back(Kernel::hopper);
        } catch (const DeviceError&) {
        }
        return all;
    }

    static void check(
            const Problem& p,
            EStep step,
            Precision precision,
            Kernel kernel,
            const float* weights = nullptr,
            double slack = 1) {
        SCOPED_TRACE(
                testing::Message()
                << "n " << p.n << " d " << p.d << " k " << p.k << " covariance "
                << int(p.covariance) << " hard " << (step == EStep::hard)
                << " precision " << int(precision) << " kernel "
                << int(kernel));
        CudaOptions o;
        o.precision = precision;
        o.kernel = kernel;
        const Pass pass = run_pass(p, o, step, weights);
        const SufficientStats& stats = pass.stats;
        Tolerance t = precision == Precision::exact ? kExact : kFast;
        t.mass *= slack;
        t.sum *= slack;
        t.objective *= slack;
        // The matrix units truncate as they add up.
        t.objective += precision == Precision::exact ? 0 : 4e-5 * double(p.d);
        if (step == EStep::hard) {
            t.objective *= double(p.d);
        }
        const SufficientStats expected = reference(p, step, weights);
        expect_near(stats, expected, t);
        SufficientStats again;
        pass.backend->accumulate(step, again);
        EXPECT_EQ(stats.n_k, again.n_k);
        EXPECT_EQ(stats.sum_x, again.sum_x);
        EXPECT_EQ(stats.sum_x2, again.sum_x2);
        EXPECT_EQ(stats.objective, again.objective);
    }
};

constexpr Covariance kCovariances[] = {
        Covariance::isotropic,
        Covariance::diagonal,
        Covariance::tied_spherical};

} // namespace cuda_test
