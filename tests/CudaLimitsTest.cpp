#include "CudaProblem.h"

/** The CUDA backend where something ends: precision's range, memory, sizes, one
 * device. */
namespace {

using namespace cuda_test;

struct CudaLimitsTest : CudaTest {};

/// Rows far apart in time and place: what a race would spoil is one in many.
TEST_F(CudaLimitsTest, KernelsAgreeOnEveryRow) {
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

/// What cannot be folded into the product (AugmentedOperands.h): rows and means
/// far out, components of almost no width.
TEST_F(CudaLimitsTest, LeavesTheFoldedRange) {
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

TEST_F(CudaLimitsTest, ManyComponentsAndDimensions) {
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

TEST_F(CudaLimitsTest, SharesRowsAmongDevices) {
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

TEST_F(CudaLimitsTest, SaysWhatMemoryWasMissing) {
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

/// Before a device is looked for.
TEST(CudaOptionsTest, SaysWhatCannotBe) {
    for (double tolerance : {-1., std::nan("")}) {
        CudaOptions o;
        o.tolerance = tolerance;
        EXPECT_THROW(make_cuda_backend(o), InvalidArgument);
    }
    for (const std::vector<int>& devices :
         {std::vector{-3}, std::vector{0, 0}}) {
        CudaOptions o;
        o.devices = devices;
        EXPECT_THROW(make_cuda_backend(o), InvalidArgument);
    }
}

} // namespace
