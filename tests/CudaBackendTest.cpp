#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "CudaOptions.h"
#include "Error.h"

/** The CUDA backend against the mixture's own arithmetic in double. */
namespace {

using namespace gmm;

struct Problem {
    size_t n, d, k;
    Covariance covariance;
    std::vector<float> x; ///< user's units
    Frame frame;
    std::vector<float> y;  ///< the frame's units
    GaussianMixture model; ///< in the frame's units
};

/** Clusters around the model's means. spread: of the vectors about their mean,
 * in standard deviations of the model; 1 is data that the model fits, less is
 * a model so wide that responsibilities are spread over many components. */
Problem make_problem(
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
            const float x = y / p.frame.scale + p.frame.center[j];
            p.x[i * d + j] = x;
            p.y[i * d + j] = (x - p.frame.center[j]) * p.frame.scale;
        }
    }
    return p;
}

/// Statistics in double, blockwise: never n x k.
SufficientStats reference(
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
void expect_near(
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

const Tolerance kFast{0.01, 0.02, 0.01};
const Tolerance kExact{2e-4, 4e-4, 5e-4};

struct CudaBackendTest : testing::Test {
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
        const auto backend = make_cuda_backend(o);
        const auto source = memory_source(p.x.data(), p.n, p.d);
        backend->set_data(*source, weights, p.frame);
        backend->set_model(p.model);
        SufficientStats stats;
        backend->accumulate(step, stats);
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
        backend->accumulate(step, again);
        EXPECT_EQ(stats.n_k, again.n_k);
        EXPECT_EQ(stats.sum_x, again.sum_x);
        EXPECT_EQ(stats.sum_x2, again.sum_x2);
        EXPECT_EQ(stats.objective, again.objective);
    }
};

const Covariance kCovariances[] = {
        Covariance::isotropic, Covariance::diagonal, Covariance::tied};

TEST_F(CudaBackendTest, OddShapes) {
    const size_t shapes[][3] = {
            {1, 1, 1},
            {1, 100, 1000},
            {127, 3, 1},
            {127, 100, 65537},
            {500, 1, 7},
            {1000, 3, 300},
            {3000, 100, 257},
            {2000, 128, 1000},
            {600, 960, 33},
            {300, 1536, 70}};
    for (Kernel kernel : kernels()) {
        for (const auto& s : shapes) {
            for (Covariance c : kCovariances) {
                const Problem p = make_problem(s[0], s[1], s[2], c);
                check(p, EStep::soft, Precision::fast, kernel);
                check(p, EStep::soft, Precision::exact, kernel);
            }
        }
    }
}

TEST_F(CudaBackendTest, DiffuseResponsibilities) {
    for (Kernel kernel : kernels()) {
        for (Covariance c : kCovariances) {
            const Problem p = make_problem(3000, 96, 1000, c, 0.05);
            check(p, EStep::soft, Precision::fast, kernel);
            check(p, EStep::soft, Precision::exact, kernel);
            const Problem half = make_problem(3000, 20, 1500, c, 0.5);
            check(half, EStep::soft, Precision::fast, kernel);
            check(half, EStep::soft, Precision::exact, kernel);
        }
    }
}

TEST_F(CudaBackendTest, HardAssignment) {
    for (Kernel kernel : kernels()) {
        for (Covariance c : kCovariances) {
            const Problem p = make_problem(2500, 100, 700, c);
            check(p, EStep::hard, Precision::fast, kernel);
            check(p, EStep::hard, Precision::exact, kernel);
        }
    }
}

TEST_F(CudaBackendTest, Weights) {
    const Problem p = make_problem(2100, 30, 90, Covariance::isotropic);
    const Problem q = make_problem(2100, 30, 300, Covariance::diagonal, 0.05);
    std::mt19937 random(3);
    std::vector<float> w(p.n);
    for (float& v : w) {
        v = random() % 5 * 1.7f;
    }
    for (Kernel kernel : kernels()) {
        check(p, EStep::soft, Precision::exact, kernel, w.data());
        check(p, EStep::hard, Precision::exact, kernel, w.data());
        check(q, EStep::soft, Precision::exact, kernel, w.data());
    }
}

/// One component collapsed onto a few vectors: fp16 cannot resolve it.
TEST_F(CudaBackendTest, NarrowComponentsAreFound) {
    Problem p = make_problem(2000, 64, 50, Covariance::isotropic);
    for (size_t i = 0; i < 100; i++) {
        for (size_t j = 0; j < p.d; j++) {
            p.x[i * p.d + j] = 61 + 0.01f * float((i * 7 + j * 3) % 11);
            p.y[i * p.d + j] =
                    (p.x[i * p.d + j] - p.frame.center[j]) * p.frame.scale;
        }
    }
    std::copy(p.y.begin(), p.y.begin() + p.d, p.model.means.begin());
    p.model.variances[0] = 1e-4f;
    for (Kernel kernel : kernels()) {
        check(p, EStep::soft, Precision::automatic, kernel);
        CudaOptions o;
        o.kernel = kernel;
        const auto backend = make_cuda_backend(o);
        const auto source = memory_source(p.x.data(), p.n, p.d);
        backend->set_data(*source, nullptr, p.frame);
        backend->set_model(p.model);
        SufficientStats stats;
        backend->accumulate(EStep::soft, stats);
        EXPECT_TRUE(cuda_report(*backend).exact);
        EXPECT_NEAR(
                stats.objective,
                reference(p, EStep::soft).objective,
                0.02 * double(p.n));
    }
}

TEST_F(CudaBackendTest, StreamsWhatDoesNotFit) {
    const Problem p = make_problem(90000, 40, 60, Covariance::isotropic);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    SufficientStats resident, streamed;
    CudaOptions o;
    auto backend = make_cuda_backend(o);
    backend->set_data(*source, nullptr, p.frame);
    backend->set_model(p.model);
    backend->accumulate(EStep::soft, resident);
    EXPECT_TRUE(cuda_report(*backend).resident);
    o.memory_limit = size_t(80) << 20;
    backend = make_cuda_backend(o);
    backend->set_data(*source, nullptr, p.frame);
    backend->set_model(p.model);
    backend->accumulate(EStep::soft, streamed);
    EXPECT_FALSE(cuda_report(*backend).resident);
    EXPECT_EQ(cuda_report(*backend).rows, p.n);
    expect_near(streamed, resident, {1e-6, 1e-6, 1e-6});
}

/// Rows far apart in time and place: what a race would spoil is one in many.
TEST_F(CudaBackendTest, KernelsAgreeOnEveryRow) {
    if (kernels().size() < 2) {
        GTEST_SKIP() << "skipped, the Hopper kernel cannot run here";
    }
    const Problem p = make_problem(150000, 100, 1000, Covariance::isotropic);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    CudaOptions o;
    o.precision = Precision::fast;
    o.kernel = Kernel::portable;
    const auto portable = make_cuda_backend(o);
    o.kernel = Kernel::hopper;
    const auto hopper = make_cuda_backend(o);
    SufficientStats stats;
    for (Backend* backend : {portable.get(), hopper.get()}) {
        backend->set_data(*source, nullptr, p.frame);
        backend->set_model(p.model);
    }
    portable->accumulate(EStep::soft, stats);
    const std::vector<float> expected = cuda_row_log_prob(*portable);
    ASSERT_EQ(expected.size(), p.n);
    for (int pass = 0; pass < 5; pass++) {
        hopper->accumulate(EStep::soft, stats);
        const std::vector<float> rows = cuda_row_log_prob(*hopper);
        ASSERT_EQ(rows.size(), p.n);
        size_t wrong = 0;
        for (size_t i = 0; i < p.n; i++) {
            wrong += !(std::fabs(rows[i] - expected[i]) < 0.1f);
        }
        EXPECT_EQ(wrong, 0u) << "in pass " << pass;
    }
}

/// What cannot be folded into the product (Fold.h): rows and means far out,
/// components of almost no width.
TEST_F(CudaBackendTest, LeavesTheFoldedRange) {
    for (Kernel kernel : kernels()) {
        Problem p = make_problem(3000, 24, 130, Covariance::isotropic);
        for (size_t i = 0; i < p.n; i += 97) { // 40 deviations away
            for (size_t j = 0; j < p.d; j++) {
                p.x[i * p.d + j] += i % 2 ? 160.f : -160.f;
                p.y[i * p.d + j] =
                        (p.x[i * p.d + j] - p.frame.center[j]) * p.frame.scale;
            }
        }
        // Their log-densities are -50,000: fp32 has 0.01 of that.
        check(p, EStep::soft, Precision::exact, kernel, nullptr, 40);
        for (size_t c = 0; c < p.k; c += 13) {
            p.model.variances[c] = 1e-7f;
        }
        check(p, EStep::soft, Precision::exact, kernel, nullptr, 40);
    }
}

TEST_F(CudaBackendTest, ManyComponentsAndDimensions) {
    for (Kernel kernel : kernels()) {
        const Problem many =
                make_problem(40, 6, 1000000, Covariance::isotropic, 0.5);
        check(many, EStep::soft, Precision::exact, kernel);
        check(many, EStep::hard, Precision::exact, kernel);
        for (Covariance c : kCovariances) {
            const Problem wide = make_problem(500, 2048, 40, c);
            check(wide, EStep::soft, Precision::fast, kernel);
            check(wide, EStep::soft, Precision::exact, kernel);
        }
    }
}

TEST_F(CudaBackendTest, SharesRowsAmongDevices) {
    CudaOptions o;
    o.precision = Precision::exact;
    o.devices = {0, 1};
    std::unique_ptr<Backend> two;
    try {
        two = make_cuda_backend(o);
    } catch (const DeviceError& e) {
        GTEST_SKIP() << "skipped, two devices are needed: " << e.what();
    }
    o.devices = {0};
    const auto one = make_cuda_backend(o);
    const Problem p = make_problem(60001, 70, 300, Covariance::diagonal);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    for (EStep step : {EStep::soft, EStep::hard}) {
        SufficientStats shared, again, alone;
        for (auto [backend, stats] :
             {std::pair{two.get(), &shared},
              std::pair{two.get(), &again},
              std::pair{one.get(), &alone}}) {
            backend->set_data(*source, nullptr, p.frame);
            backend->set_model(p.model);
            backend->accumulate(step, *stats);
        }
        EXPECT_EQ(cuda_report(*two).rows, p.n);
        EXPECT_EQ(shared.n_k, again.n_k);
        EXPECT_EQ(shared.sum_x, again.sum_x);
        EXPECT_EQ(shared.sum_x2, again.sum_x2);
        EXPECT_EQ(shared.objective, again.objective);
        expect_near(shared, alone, {1e-5, 1e-5, 1e-6});
    }
    std::vector<int64_t> both(p.n * 3), single(p.n * 3);
    const Rows rows{
            p.x.data(), ElementType::f32, p.n, p.d, p.d * sizeof(float)};
    two->top_components(rows, 3, both.data(), nullptr, nullptr);
    one->top_components(rows, 3, single.data(), nullptr, nullptr);
    EXPECT_EQ(both, single);
}

TEST_F(CudaBackendTest, SaysWhatMemoryWasMissing) {
    const Problem p = make_problem(20000, 100, 500, Covariance::isotropic);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    CudaOptions o;
    o.memory_limit = size_t(1) << 20;
    auto backend = make_cuda_backend(o);
    backend->set_data(*source, nullptr, p.frame);
    const GaussianMixture before = p.model;
    backend->set_model(p.model);
    SufficientStats stats(p.covariance, p.k, p.d);
    stats.n_k[3] = 17;
    try {
        backend->accumulate(EStep::soft, stats);
        FAIL() << "1 MiB was enough";
    } catch (const DeviceError& e) {
        const std::string what = e.what();
        // A smaller block was tried first; both sides are told.
        EXPECT_NE(what.find("block of 1024 vectors"), std::string::npos)
                << what;
        EXPECT_NE(what.find("asked for"), std::string::npos) << what;
        EXPECT_NE(what.find(std::to_string(o.memory_limit)), std::string::npos)
                << what;
    }
    EXPECT_EQ(stats.n_k[3], 17);
    EXPECT_EQ(p.model.means, before.means);
    EXPECT_EQ(p.model.variances, before.variances);
    EXPECT_EQ(p.model.log_weights, before.log_weights);
    // The device is as good as before.
    check(p, EStep::soft, Precision::exact, Kernel::automatic);
}

TEST_F(CudaBackendTest, TopComponents) {
    const size_t shapes[][4] = {// n, d, k, m
                                {1, 1, 1, 1},
                                {300, 20, 500, 1},
                                {300, 100, 1000, 10},
                                {127, 3, 65537, 5},
                                {40, 16, 6000, 5000},
                                {200, 130, 33, 33}};
    for (Kernel kernel : kernels()) {
        for (const auto& s : shapes) {
            for (Covariance c : kCovariances) {
                for (EStep order : {EStep::soft, EStep::hard}) {
                    const Problem p = make_problem(s[0], s[1], s[2], c);
                    const size_t m = s[3];
                    SCOPED_TRACE(
                            testing::Message()
                            << "n " << p.n << " d " << p.d << " k " << p.k
                            << " m " << m << " covariance " << int(c)
                            << " hard " << (order == EStep::hard) << " kernel "
                            << int(kernel));
                    CudaOptions o;
                    o.kernel = kernel;
                    const auto backend = make_cuda_backend(o);
                    const auto source = memory_source(p.x.data(), p.n, p.d);
                    backend->set_data(*source, nullptr, p.frame);
                    backend->set_model(p.model);
                    std::vector<int64_t> found(p.n * m);
                    std::vector<float> joint(p.n * m), distance(p.n * m),
                            all(p.n);
                    Rows rows{
                            p.x.data(),
                            ElementType::f32,
                            p.n,
                            p.d,
                            p.d * sizeof(float)};
                    backend->top_components(
                            rows,
                            m,
                            found.data(),
                            joint.data(),
                            distance.data(),
                            all.data(),
                            order);
                    const double to_user =
                            double(p.d) * std::log(double(p.frame.scale));
                    double worst = 0, worst_rank = 0;
                    std::vector<double> l(p.k), log_prob(1), gap(p.k);
                    for (size_t i = 0; i < p.n; i++) {
                        const float* y = p.y.data() + i * p.d;
                        p.model.log_joint(1, y, l.data());
                        p.model.log_prob(1, y, log_prob.data());
                        worst = std::max(
                                worst,
                                std::fabs(all[i] - (log_prob[0] + to_user)));
                        std::vector<double> key(p.k);
                        for (size_t k = 0; k < p.k; k++) {
                            double sum = 0;
                            for (size_t j = 0; j < p.d; j++) {
                                const double t = double(y[j]) -
                                        p.model.means[k * p.d + j];
                                sum += t * t;
                            }
                            gap[k] = sum;
                            key[k] = order == EStep::hard ? sum : -l[k];
                        }
                        std::vector<double> sorted = key;
                        std::sort(sorted.begin(), sorted.end());
                        for (size_t r = 0; r < m; r++) {
                            const size_t k = size_t(found[i * m + r]);
                            ASSERT_LT(k, p.k);
                            worst_rank = std::max(
                                    worst_rank, std::fabs(key[k] - sorted[r]));
                            worst = std::max(
                                    worst,
                                    std::fabs(
                                            joint[i * m + r] -
                                            (l[k] + to_user)) /
                                            (1 + std::fabs(l[k]) / 100));
                            worst = std::max(
                                    worst,
                                    std::fabs(
                                            distance[i * m + r] * 0.0625 -
                                            gap[k]) /
                                            (1 + gap[k]));
                        }
                        std::vector<int64_t> ids(
                                found.begin() + i * m,
                                found.begin() + (i + 1) * m);
                        std::sort(ids.begin(), ids.end());
                        ASSERT_TRUE(
                                std::adjacent_find(ids.begin(), ids.end()) ==
                                ids.end());
                    }
                    EXPECT_LE(worst, 1e-3);
                    EXPECT_LE(worst_rank, 2e-3);
                }
            }
        }
    }
}

TEST_F(CudaBackendTest, SaysWhatIsWrong) {
    Problem p = make_problem(100, 5, 4, Covariance::isotropic);
    const auto backend = make_cuda_backend();
    p.x[37 * 5 + 2] = NAN;
    const auto source = memory_source(p.x.data(), p.n, p.d);
    backend->set_data(*source, nullptr, p.frame);
    backend->set_model(p.model);
    SufficientStats stats;
    try {
        backend->accumulate(EStep::soft, stats);
        FAIL() << "a NaN went through";
    } catch (const InvalidArgument& e) {
        EXPECT_NE(std::string(e.what()).find("37"), std::string::npos)
                << e.what();
    }
    p.x[37 * 5 + 2] = 0;
    backend->set_data(*source, nullptr, p.frame);
    EXPECT_NO_THROW(backend->accumulate(EStep::soft, stats));
    p.model.d = 6;
    EXPECT_THROW(backend->set_model(p.model), InvalidArgument);
    CudaOptions o;
    o.devices = {99};
    EXPECT_THROW(make_cuda_backend(o), DeviceError);
}

/// Values far beyond the usual range change the scale, not the result.
TEST_F(CudaBackendTest, Outliers) {
    for (Covariance c : {Covariance::isotropic, Covariance::diagonal}) {
        Problem p = make_problem(600, 10, 20, c);
        for (size_t j = 0; j < p.d; j++) {
            p.x[5 * p.d + j] = 100000;
            p.y[5 * p.d + j] =
                    (p.x[5 * p.d + j] - p.frame.center[j]) * p.frame.scale;
        }
        const auto backend = make_cuda_backend();
        const auto source = memory_source(p.x.data(), p.n, p.d);
        backend->set_data(*source, nullptr, p.frame);
        backend->set_model(p.model);
        SufficientStats stats;
        backend->accumulate(EStep::soft, stats);
        const SufficientStats expected = reference(p, EStep::soft);
        for (size_t k = 0; k < p.k; k++) {
            EXPECT_NEAR(stats.n_k[k], expected.n_k[k], 0.02 * expected.n_k[k]);
        }
    }
}

} // namespace
