#include "CudaFullProblem.h"
#include "EMTrainer.h"

/** The CUDA backend's full and tied covariances against double, and against the
 * CPU backend. */
namespace {

using namespace cuda_test;

struct CudaFullTest : CudaTest {
    static void check_full(
            const Problem& p,
            EStep step = EStep::soft,
            const float* weights = nullptr,
            CudaOptions options = {}) {
        SCOPED_TRACE(
                testing::Message()
                << "n " << p.n << " d " << p.d << " k " << p.k << " "
                << to_string(p.covariance) << " hard " << (step == EStep::hard)
                << " precision " << int(options.precision));
        const SufficientStats expected = full_reference(p, step, weights);
        const Pass pass = run_pass(p, options, step, weights);
        const bool exact = options.precision == Precision::exact;
        // Responsibilities of whitened rows are sums of fp16 halves where
        // many components have a share.
        const double near = p.covariance == Covariance::tied ? 5e-5 : 1e-5;
        expect_alike(
                pass.stats,
                expected,
                exact ? near : 1e-3,
                (exact ? 1e-6 : 1e-3) * (step == EStep::hard ? p.d : 1));
        if (step == EStep::soft && options.memory_limit == 0) {
            EXPECT_LE(worst_log_prob(p, pass, weights), exact ? 1e-4 : 0.02);
        }
        SufficientStats again;
        pass.backend->accumulate(step, again);
        EXPECT_EQ(pass.stats.n_k, again.n_k);
        EXPECT_EQ(pass.stats.sum_x, again.sum_x);
        EXPECT_EQ(pass.stats.sum_x2, again.sum_x2);
        EXPECT_EQ(pass.stats.objective, again.objective);
        EXPECT_EQ(pass.stats.dropped_mass, again.dropped_mass);
    }
};

constexpr Covariance kMatrices[] = {Covariance::full, Covariance::tied};

TEST_F(CudaFullTest, ShapesAgainstDouble) {
    for (size_t d : {1, 3, 16, 17, 50, 128, 384}) {
        for (size_t k : {1, 7, 256}) {
            for (Covariance c : kMatrices) {
                const Problem p =
                        make_full_problem(d > 100 ? 700 : 1500, d, k, c);
                check_full(p);
                CudaOptions exact;
                exact.precision = Precision::exact;
                check_full(p, EStep::soft, nullptr, exact);
            }
        }
    }
}

/// What is small enough to be evaluated and summed at once is so in double.
TEST_F(CudaFullTest, SmallShapes) {
    for (size_t d : {1, 3, 8, 9, 16}) {
        for (size_t k : {1, 7, 64}) {
            for (size_t n : {5, 129, 20000}) {
                for (double ratio : {0.5, 1e-3}) {
                    SCOPED_TRACE(
                            testing::Message() << "d " << d << " k " << k
                                               << " n " << n << " " << ratio);
                    const Problem p = make_full_problem(
                            n, d, k, Covariance::full, ratio, 0.2);
                    const Pass pass = run_pass(p, {});
                    expect_alike(
                            pass.stats,
                            full_reference(p, EStep::soft),
                            1e-5,
                            1e-6);
                    EXPECT_LE(worst_log_prob(p, pass), 1e-4);
                }
            }
        }
    }
}

TEST_F(CudaFullTest, SmallShapesOfWeightedRows) {
    for (size_t n : {127, 20000}) {
        const Problem p = make_full_problem(n, 16, 64, Covariance::full);
        std::vector<float> w(p.n);
        for (size_t i = 0; i < n; i++) {
            w[i] = i % 3 ? 0.f : float(i % 7) * 0.3f;
        }
        check_full(p, EStep::soft, w.data());
        check_full(p, EStep::hard, w.data());
        check_full(p, EStep::hard);
    }
}

/// Bounds leave nothing out where all components matter.
TEST_F(CudaFullTest, DiffuseData) {
    for (size_t d : {2, 40}) {
        check_full(make_full_problem(900, d, 300, Covariance::full, 0.8, 0.05));
        check_full(make_full_problem(900, d, 300, Covariance::tied, 0.8, 0.05));
    }
}

TEST_F(CudaFullTest, NearSingularMatrices) {
    for (double ratio : {1e-3, 1e-5}) {
        for (size_t d : {3, 50, 128}) {
            for (Covariance c : kMatrices) {
                const Problem p = make_full_problem(800, d, 20, c, ratio);
                check_full(p);
            }
        }
    }
}

TEST_F(CudaFullTest, HardAssignment) {
    for (Covariance c : kMatrices) {
        check_full(make_full_problem(1500, 30, 90, c), EStep::hard);
        check_full(make_full_problem(700, 3, 200, c), EStep::hard);
    }
}

TEST_F(CudaFullTest, Weights) {
    for (Covariance c : kMatrices) {
        const Problem p = make_full_problem(2100, 30, 90, c);
        std::mt19937 random(3);
        std::vector<float> w(p.n);
        for (float& v : w) {
            v = random() % 5 * 1.7f;
        }
        check_full(p, EStep::soft, w.data());
        check_full(p, EStep::hard, w.data());
    }
}

/// Rows far from all components, and on one point.
TEST_F(CudaFullTest, FarRowsAndEqualRows) {
    Problem p = make_full_problem(1200, 20, 30, Covariance::full);
    for (size_t j = 0; j < p.d; j++) {
        place(p, 5, j, 3000.f + float(j));
        place(p, 6, j, -1e5f);
        for (size_t i = 10; i < 60; i++) {
            place(p, i, j, 0.25f);
        }
    }
    const SufficientStats expected = full_reference(p, EStep::soft);
    const Pass pass = run_pass(p, {});
    EXPECT_NEAR(
            pass.stats.objective,
            expected.objective,
            1e-5 * std::fabs(expected.objective));
    for (size_t c = 0; c < p.k; c++) {
        EXPECT_NEAR(pass.stats.n_k[c], expected.n_k[c], 1e-3 * p.n);
    }
}

/// Blocks that are fed, and lists in parts, give what one block gives.
TEST_F(CudaFullTest, LittleMemory) {
    for (Covariance c : kMatrices) {
        const Problem p = make_full_problem(40000, 8, 40, c, 0.5, 0.1);
        for (size_t mib : {72, 74, 120}) {
            CudaOptions o;
            o.memory_limit = mib << 20;
            check_full(p, EStep::soft, nullptr, o);
        }
        CudaOptions o;
        o.memory_limit = 1 << 16;
        EXPECT_THROW(run_pass(p, o), DeviceError);
    }
}

TEST_F(CudaFullTest, NaNIsNamed) {
    Problem p = make_full_problem(300, 5, 3, Covariance::full);
    p.x[7 * p.d + 2] = NAN;
    try {
        run_pass(p, {});
        FAIL() << "expected InvalidArgument";
    } catch (const InvalidArgument& e) {
        EXPECT_NE(std::string(e.what()).find("vector 7"), std::string::npos);
    }
}

/// Kinds follow one another on one binding.
TEST_F(CudaFullTest, OtherKindsBetween) {
    const Problem full = make_full_problem(900, 20, 12, Covariance::full);
    const Problem plain = make_problem(900, 20, 12, Covariance::isotropic);
    Pass pass = run_pass(full, {});
    GaussianMixture other = plain.model;
    pass.backend->set_model(other);
    SufficientStats stats;
    pass.backend->accumulate(EStep::soft, stats);
    EXPECT_EQ(stats.covariance, Covariance::isotropic);
    pass.backend->set_model(full.model);
    pass.backend->accumulate(EStep::soft, stats);
    EXPECT_EQ(stats.n_k, pass.stats.n_k);
    EXPECT_EQ(stats.sum_x2, pass.stats.sum_x2);
}

TEST_F(CudaFullTest, AgreesWithTheCpuBackend) {
    for (Covariance c : kMatrices) {
        const Problem p = make_full_problem(3000, 40, 60, c);
        const auto source = memory_source(p.x.data(), p.n, p.d);
        const auto cpu = make_cpu_backend();
        cpu->set_data(*source, nullptr, p.frame);
        cpu->set_model(p.model);
        SufficientStats expected;
        cpu->accumulate(EStep::soft, expected);
        const Pass pass = run_pass(p, {});
        expect_alike(pass.stats, expected, 1e-3, 1e-3);
    }
}

/// Blocks on their way to whitened rows, dense and long lists among them.
TEST_F(CudaFullTest, ManyTiedRows) {
    for (double apart : {0.9, 0.05}) { // groups, and all alike
        const Problem p = make_full_problem(
                450'000, 20, 70, Covariance::tied, 0.3, apart);
        std::vector<float> w(p.n);
        for (size_t i = 0; i < p.n; i++) {
            w[i] = float(i % 5) * 0.7f;
        }
        const auto source = memory_source(p.x.data(), p.n, p.d);
        for (const float* weights :
             {static_cast<const float*>(nullptr),
              static_cast<const float*>(w.data())}) {
            const auto cpu = make_cpu_backend();
            cpu->set_data(*source, weights, p.frame);
            cpu->set_model(p.model);
            SufficientStats expected;
            cpu->accumulate(EStep::soft, expected);
            const Pass pass = run_pass(p, {}, EStep::soft, weights);
            expect_alike(pass.stats, expected, 1e-4, 1e-5);
        }
    }
}

/// Groups of several components, so many deviations apart that fp16 halves of
/// whitened rows would not tell these components from one another.
TEST_F(CudaFullTest, TiedGroupsFarApart) {
    for (float apart : {30.f, 300.f}) {
        Problem p = make_full_problem(3000, 10, 40, Covariance::tied, 0.5, 0.9);
        for (size_t c = 0; c < p.k; c++) {
            p.model.means[c * p.d] += c % 4 * apart;
            for (size_t i = c; i < p.n; i += p.k) {
                place(p, i, 0, p.y[i * p.d] + c % 4 * apart);
            }
        }
        for (Kernel kernel : kernels()) {
            CudaOptions options;
            options.kernel = kernel;
            check_full(p, EStep::soft, nullptr, options);
        }
    }
}

/// The best components, by log-joint and by distance, against double.
TEST_F(CudaFullTest, TopComponents) {
    for (Covariance kind : kMatrices) {
        for (size_t d : {2, 40}) {
            Problem p = make_full_problem(1000, d, 60, kind);
            p.x[11 * d + 1] = INFINITY;
            const Pass pass = run_pass(make_full_problem(200, d, 60, kind), {});
            pass.backend->set_model(p.model);
            std::vector<double> joint(p.n * p.k), prob(p.n);
            p.model.log_joint(p.n, p.y.data(), joint.data());
            p.model.log_prob(p.n, p.y.data(), prob.data());
            const double to_user = d * std::log(double(p.frame.scale));
            const double unit = p.frame.scale * double(p.frame.scale);
            const Rows rows{
                    p.x.data(), ElementType::f32, p.n, d, d * sizeof(float)};
            for (size_t m : {1, 3, 60}) {
                for (EStep order : {EStep::soft, EStep::hard}) {
                    SCOPED_TRACE(
                            testing::Message()
                            << to_string(kind) << " d " << d << " m " << m
                            << " hard " << (order == EStep::hard));
                    std::vector<int64_t> found(p.n * m);
                    std::vector<double> found_joint(p.n * m);
                    std::vector<float> found_distance(p.n * m), found_prob(p.n);
                    pass.backend->top_components(
                            rows,
                            m,
                            found.data(),
                            found_joint.data(),
                            found_distance.data(),
                            found_prob.data(),
                            order);
                    for (size_t i = 0; i < p.n; i++) {
                        if (i == 11) {
                            EXPECT_EQ(found[i * m], -1);
                            EXPECT_EQ(found_prob[i], -INFINITY);
                            EXPECT_EQ(found_distance[i * m], INFINITY);
                            continue;
                        }
                        ASSERT_NEAR(found_prob[i], prob[i] + to_user, 0.02);
                        std::vector<double> key(p.k), distance(p.k);
                        for (size_t c = 0; c < p.k; c++) {
                            for (size_t j = 0; j < d; j++) {
                                const double t = double(p.y[i * d + j]) -
                                        p.model.means[c * d + j];
                                distance[c] += t * t;
                            }
                            key[c] = order == EStep::soft ? joint[i * p.k + c]
                                                          : -distance[c];
                        }
                        std::vector<double> sorted(key);
                        std::sort(sorted.rbegin(), sorted.rend());
                        for (size_t r = 0; r < m; r++) {
                            const size_t at = i * m + r;
                            const size_t c = size_t(found[at]);
                            ASSERT_LT(c, p.k);
                            const double size = 1 + std::fabs(sorted[r]);
                            ASSERT_NEAR(key[c], sorted[r], 1e-4 * size);
                            const double j = joint[i * p.k + c] + to_user;
                            ASSERT_NEAR(
                                    found_joint[at],
                                    j,
                                    1e-5 * (1 + std::fabs(j)));
                            ASSERT_NEAR(
                                    found_distance[at],
                                    distance[c] / unit,
                                    1e-4 * (1 + distance[c]) / unit);
                        }
                        std::sort(
                                found.begin() + i * m,
                                found.begin() + (i + 1) * m);
                        EXPECT_EQ(
                                std::adjacent_find(
                                        found.begin() + i * m,
                                        found.begin() + (i + 1) * m),
                                found.begin() + (i + 1) * m);
                    }
                }
            }
        }
    }
}

/// Screening by all coordinates leaves out nothing that matters.
TEST_F(CudaFullTest, ScreenedComponents) {
    for (size_t d : {20, 48, 90, 127}) {
        for (double ratio : {0.5, 0.02}) {
            const Problem p = make_full_problem(
                    1500, d, 300, Covariance::full, ratio, 0.4);
            check_full(p);
        }
    }
    for (size_t d : {20, 127}) {
        CudaOptions portable;
        portable.kernel = Kernel::portable;
        check_full(
                make_full_problem(1500, d, 300, Covariance::full, 0.02, 0.4),
                EStep::soft,
                nullptr,
                portable);
    }
}

/// Twenty iterations from the same start as the CPU backend's.
TEST_F(CudaFullTest, TrainingAgreesWithTheCpuBackend) {
    for (Covariance kind : kMatrices) {
        const Problem p = make_full_problem(4000, 20, 12, kind);
        const auto source = memory_source(p.x.data(), p.n, p.d);
        TrainingOptions options;
        options.covariance = kind;
        options.niter = 20;
        options.tolerance = 0;
        options.reg_covar = 1e-3;
        options.init = Initialisation::given_means;
        GaussianMixture start = p.frame.to_user(p.model);
        const auto cpu = make_cpu_backend(), cuda = make_cuda_backend();
        const TrainingResult a =
                train(*source, nullptr, p.k, options, *cpu, &start);
        const TrainingResult b =
                train(*source, nullptr, p.k, options, *cuda, &start);
        EXPECT_NEAR(
                a.lower_bound(),
                b.lower_bound(),
                1e-4 * std::fabs(a.lower_bound()));
        for (size_t c = 0; c < p.k; c++) {
            EXPECT_NEAR(
                    std::exp(a.model.log_weights[c]),
                    std::exp(b.model.log_weights[c]),
                    1e-4);
            const auto one = covariance_matrix(a.model, c);
            const auto other = covariance_matrix(b.model, c);
            for (size_t j = 0; j < one.size(); j++) {
                EXPECT_NEAR(one[j], other[j], 1e-3 * one[0]);
            }
        }
    }
}

} // namespace
