#include "CudaProblem.h"
#include "EMTrainer.h"

/** The CUDA backend against the mixture's own arithmetic in double. */
namespace {

using namespace cuda_test;

struct CudaBackendTest : CudaTest {};

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
        check(p, EStep::soft, Precision::fast, kernel);
        CudaOptions o;
        o.kernel = kernel;
        const Pass pass = run_pass(p, o);
        EXPECT_TRUE(cuda_report(*pass.backend).exact);
        EXPECT_NEAR(
                pass.stats.objective,
                reference(p, EStep::soft).objective,
                0.02 * double(p.n));
    }
}

/// The variance that sums say a component has in a dimension.
double found_variance(const SufficientStats& s, size_t at) {
    const double n = s.n_k[at / s.d], mean = s.sum_x[at] / n;
    return s.sum_x2[at] / n - mean * mean;
}

/// The same of diagonal models, whose squares are rounded as well: errors do
/// not vanish at the mean, nor for vectors that lie on it.
TEST_F(CudaBackendTest, NarrowDiagonalComponents) {
    for (float deviation : {0.1f, 0.03f, 0.01f}) {
        for (float spread : {1.f, 0.1f}) {
            Problem p = make_problem(3000, 8, 40, Covariance::diagonal);
            std::mt19937 random(7);
            std::normal_distribution<float> normal;
            std::fill(
                    p.model.variances.begin(),
                    p.model.variances.end(),
                    deviation * deviation);
            for (size_t i = 0; i < p.n; i++) {
                for (size_t j = 0; j < p.d; j++) {
                    place(p,
                          i,
                          j,
                          p.model.means[i % p.k * p.d + j] +
                                  spread * deviation * normal(random));
                }
            }
            const SufficientStats expected = reference(p, EStep::soft);
            for (Kernel kernel : kernels()) {
                CudaOptions o;
                o.kernel = kernel;
                SCOPED_TRACE(
                        testing::Message()
                        << "deviation " << deviation << " spread " << spread
                        << " kernel " << int(kernel));
                const Pass pass = run_pass(p, o);
                EXPECT_LE(worst_log_prob(p, pass), 0.05);
                for (size_t at = 0; at < p.k * p.d; at++) {
                    const double n = expected.n_k[at / p.d];
                    const double mean = expected.sum_x[at] / n;
                    // Second halves are summed where rounding Y may move a
                    // mean by more; without any it is 0.009 to 0.019.
                    if (deviation < 0.02f) {
                        EXPECT_NEAR(
                                pass.stats.sum_x[at] / pass.stats.n_k[at / p.d],
                                mean,
                                0.006 * deviation);
                    }
                    // A difference of sums, whose terms are added in fp32.
                    EXPECT_NEAR(
                            found_variance(pass.stats, at),
                            found_variance(expected, at),
                            0.01 * deviation * deviation +
                                    2e-6 * expected.sum_x2[at] / n);
                }
            }
        }
    }
}

/// Candidates from a few to most of the components: lists that stay, overflow,
/// and lose one of the rows that share them.
TEST_F(CudaBackendTest, ListsOfEveryLength) {
    for (double spread : {0.15, 0.3, 0.45, 0.6, 0.8}) {
        const Problem p =
                make_problem(5000, 24, 400, Covariance::isotropic, spread);
        for (Kernel kernel : kernels()) {
            CudaOptions o;
            o.kernel = kernel;
            o.precision = Precision::exact;
            EXPECT_LE(worst_log_prob(p, run_pass(p, o)), 2e-4)
                    << "spread " << spread << " kernel " << int(kernel);
        }
    }
}

/// What a block finds must be added to what those before it found, by its own
/// rows' weights.
TEST_F(CudaBackendTest, MoreRowsThanABlock) {
    const Problem p = make_problem(3400000, 3, 5, Covariance::isotropic);
    std::vector<float> weights(p.n);
    for (size_t i = 0; i < p.n; i++) {
        weights[i] = float(i % 3);
    }
    CudaOptions o;
    const Pass pass = run_pass(p, o, EStep::soft, weights.data());
    const CudaReport report = cuda_report(*pass.backend);
    EXPECT_TRUE(report.resident);
    EXPECT_EQ(report.rows, p.n);
    const SufficientStats expected = reference(p, EStep::soft, weights.data());
    expect_near(pass.stats, expected, {1e-3, 1e-3, 1e-3});
    const std::vector<float> found = cuda_row_log_prob(*pass.backend);
    ASSERT_GT(found.size(), size_t(0));
    ASSERT_LT(found.size(), p.n); // the last block's
    std::vector<double> last(found.size());
    p.model.log_prob(
            last.size(), p.y.data() + (p.n - last.size()) * p.d, last.data());
    double worst = 0;
    for (size_t i = 0; i < last.size(); i++) {
        worst = std::max(worst, std::fabs(found[i] - last[i]));
    }
    EXPECT_LT(worst, 0.05);
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

/// A dimension far narrower than the others keeps its variance. Diagonal
/// covariances read rows as two halves of fp16, which do not reach as far.
TEST_F(CudaBackendTest, ANarrowDimensionBesideAWideOne) {
    const size_t n = 4000;
    for (float unit : {1e3f, 1e6f}) {
        std::mt19937_64 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> x(2 * n);
        for (size_t i = 0; i < n; i++) {
            x[2 * i] = unit * normal(random);
            x[2 * i + 1] = (i % 2 ? 1 : 5) + 0.3f * normal(random);
        }
        const auto source = memory_source(x.data(), n, 2);
        for (Covariance kind : {Covariance::diagonal, Covariance::full}) {
            if (kind == Covariance::diagonal && unit > 1e4f) {
                continue;
            }
            TrainingOptions options;
            options.covariance = kind;
            options.init = Initialisation::given_means;
            options.hard_iterations = 0;
            options.niter = 20;
            GaussianMixture start;
            start.d = start.k = 2;
            start.covariance = kind;
            start.means = {0, 1, 0, 5};
            const auto backend = make_cuda_backend();
            const GaussianMixture model =
                    train(*source, nullptr, 2, options, *backend, &start).model;
            for (size_t c = 0; c < 2; c++) {
                EXPECT_NEAR(model.means[2 * c + 1], c ? 5 : 1, 0.05)
                        << unit << " " << int(kind);
                EXPECT_NEAR(model.variance(c, 1), 0.09, 0.015)
                        << unit << " " << int(kind);
            }
        }
    }
}

/// A model that needs second halves in between leaves no trace.
TEST_F(CudaBackendTest, HistoryHasNoSay) {
    const Problem p = make_problem(3000, 40, 60, Covariance::isotropic);
    GaussianMixture narrow = p.model;
    for (float& v : narrow.variances) {
        v *= 1e-4f;
    }
    CudaOptions o;
    o.tolerance = 0.02; // p's own model needs none
    const auto backend = make_cuda_backend(o);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    backend->set_data(*source, nullptr, p.frame);
    for (EStep step : {EStep::soft, EStep::hard}) {
        SufficientStats first, between, again;
        backend->set_model(p.model);
        backend->accumulate(step, first);
        EXPECT_FALSE(cuda_report(*backend).exact);
        backend->set_model(narrow);
        backend->accumulate(EStep::soft, between);
        EXPECT_TRUE(cuda_report(*backend).exact);
        const SufficientStats taken = std::move(between);
        EXPECT_EQ(taken.n_k.size(), p.k);
        backend->set_model(p.model);
        backend->accumulate(step, again);
        EXPECT_EQ(first.n_k, again.n_k);
        EXPECT_EQ(first.sum_x, again.sum_x);
        EXPECT_EQ(first.sum_x2, again.sum_x2);
        EXPECT_EQ(first.objective, again.objective);
        // What was moved from is filled anew.
        backend->accumulate(step, between);
        EXPECT_EQ(first.sum_x, between.sum_x);
        backend->accumulate(step, between);
        EXPECT_EQ(first.sum_x, between.sum_x);
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
    p.frame.variances.resize(4);
    EXPECT_THROW(backend->set_data(*source, nullptr, p.frame), InvalidArgument);
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
