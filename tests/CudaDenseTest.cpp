#include "CudaProblem.h"

/** Rows with many components: clusters, long lists and the dense path. */
namespace {

using namespace cuda_test;

struct CudaDenseTest : CudaTest {};

TEST_F(CudaDenseTest, DiffuseResponsibilities) {
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

/// Many tiles of rows and components for the dense path's own loops, a last
/// tile of each that is not full, weights; and a row so far away that the path
/// of folded operands (Fold.h) must be left.
TEST_F(CudaDenseTest, DiffuseResponsibilitiesOfManyRows) {
    for (const auto& [d, k] : {std::pair{70, 400}, std::pair{128, 290}}) {
        Problem p = make_problem(9001, d, k, Covariance::isotropic, 0.05);
        std::mt19937 random(3);
        std::vector<float> w(p.n);
        for (float& v : w) {
            v = random() % 5 * 1.7f;
        }
        check(p, EStep::soft, Precision::fast, Kernel::automatic, w.data());
        check(p, EStep::soft, Precision::exact, Kernel::automatic, w.data());
        CudaOptions o;
        o.precision = Precision::fast;
        // But for the last ones, which are few enough for long lists.
        EXPECT_GE(
                cuda_report(*run_pass(p, o).backend).dense_rows, p.n / 64 * 64);
        for (size_t j = 0; j < p.d; j++) {
            p.x[j] += 160;
            p.y[j] = (p.x[j] - p.frame.center[j]) * p.frame.scale;
        }
        check(p, EStep::soft, Precision::fast, Kernel::automatic, w.data());
        check(p, EStep::soft, Precision::exact, Kernel::automatic, w.data());
    }
}

/// One to eight tiles of components, each a block of a cluster; rows enough for
/// several rounds of its buffers.
TEST_F(CudaDenseTest, DiffuseResponsibilitiesByTilesOfComponents) {
    for (int tiles = 1; tiles <= 8; tiles++) {
        const size_t k = tiles * 128 - 28 * (tiles % 2);
        Problem p = make_problem(
                96000 / tiles + 37,
                tiles % 3 ? 20 : 100,
                k,
                Covariance::isotropic,
                0.05);
        CudaOptions o;
        const Pass pass = run_pass(p, o);
        EXPECT_GE(cuda_report(*pass.backend).dense_rows, p.n / 100 * 99);
        EXPECT_LE(worst_log_prob(p, pass), 0.02) << tiles << " tiles";
        check(p, EStep::soft, Precision::fast, Kernel::automatic);
    }
}

/// More tiles of rows than are summed in registers; rows for many rounds of the
/// first kernel, which then gives up lists, with one tile of components as
/// well.
TEST_F(CudaDenseTest, DiffuseResponsibilitiesOfVeryManyRows) {
    for (int k : {1000, 100}) {
        const Problem p =
                make_problem(300000, 3, k, Covariance::isotropic, 0.05);
        check(p, EStep::soft, Precision::fast, Kernel::automatic);
    }
}

/// More dimensions than the fused kernel takes: more rows than a step, and more
/// components than a step keeps the scores of.
TEST_F(CudaDenseTest, DiffuseResponsibilitiesOfManyDimensions) {
    for (const auto& [n, d, k] :
         {std::tuple{26001, 150, 500}, std::tuple{700, 200, 4300}}) {
        const Problem p = make_problem(n, d, k, Covariance::isotropic, 0.05);
        for (Precision precision : {Precision::fast, Precision::exact}) {
            check(p, EStep::soft, precision, Kernel::automatic);
        }
        CudaOptions o;
        EXPECT_GE(cuda_report(*run_pass(p, o).backend).dense_rows, p.n / 2);
    }
}

/// Components collapsed onto single vectors among wide ones: lists overflow
/// before these rows' only component is found.
TEST_F(CudaDenseTest, NarrowComponentsAmongWideOnes) {
    Problem p = make_problem(3000, 96, 1000, Covariance::isotropic, 0.05);
    for (size_t c = 0; c < 20; c++) {
        const size_t at = c * 51 + 7, row = c * 37;
        std::copy(
                p.y.begin() + row * p.d,
                p.y.begin() + (row + 1) * p.d,
                p.model.means.begin() + at * p.d);
        p.model.variances[at] = 1e-3f;
    }
    std::vector<double> expected(p.n);
    p.model.log_prob(p.n, p.y.data(), expected.data());
    for (Kernel kernel : kernels()) {
        for (Precision precision : {Precision::fast, Precision::exact}) {
            CudaOptions o;
            o.kernel = kernel;
            o.precision = precision;
            const Pass pass = run_pass(p, o);
            EXPECT_GT(cuda_report(*pass.backend).dense_rows, p.n / 2);
            const std::vector<float> found = cuda_row_log_prob(*pass.backend);
            ASSERT_EQ(found.size(), p.n);
            for (size_t i = 0; i < p.n; i++) {
                EXPECT_NEAR(
                        found[i],
                        expected[i],
                        precision == Precision::fast ? 0.05 : 0.01)
                        << "row " << i << " kernel " << int(kernel)
                        << " precision " << int(precision);
            }
        }
    }
}

/// Narrow components whose rows need hundreds of wide ones as well: the dense
/// path must notice that first halves do not do, before most of its rows where
/// such components are many, afterwards where they are few.
TEST_F(CudaDenseTest, NarrowComponentsInTheDensePath) {
    for (size_t narrow : {50, 200}) {
        Problem p = make_problem(3000, 2, 1000, Covariance::isotropic, 0.05);
        std::mt19937 random(5);
        std::normal_distribution<float> normal;
        const float at[2] = {1.2f, -0.9f}, deviation = 0.005f;
        for (size_t c = 0; c < narrow; c++) {
            for (size_t j = 0; j < p.d; j++) {
                p.model.means[c * p.d + j] = at[j] + deviation * normal(random);
            }
            p.model.variances[c] = deviation * deviation;
        }
        std::fill(
                p.model.variances.begin() + narrow,
                p.model.variances.end(),
                1.f);
        for (size_t i = 0; i < 300; i++) {
            for (size_t j = 0; j < p.d; j++) {
                place(p, i, j, at[j] + 2 * deviation * normal(random));
            }
        }
        for (Kernel kernel : kernels()) {
            SCOPED_TRACE(
                    testing::Message()
                    << narrow << " narrow, kernel " << int(kernel));
            CudaOptions o;
            o.kernel = kernel;
            const Pass pass = run_pass(p, o);
            EXPECT_GT(cuda_report(*pass.backend).dense_rows, p.n / 2);
            EXPECT_LE(worst_log_prob(p, pass), 0.02);
            check(p, EStep::soft, Precision::fast, kernel);
        }
    }
}

/// Many narrow components that no row is near, until the last ones, whose lists
/// overflow with them alone: first halves do for all rows, or only seem to when
/// the first have been tried.
TEST_F(CudaDenseTest, ManyNarrowComponentsElsewhere) {
    Problem p = make_problem(200000, 3, 600, Covariance::isotropic, 0.05);
    const size_t narrow = 120;
    const float at = 2.43f, deviation = 0.01f; // fp16 does not hold these
    for (size_t c = 0; c < narrow; c++) {
        std::fill_n(p.model.means.begin() + c * p.d, p.d, c % 2 ? at : -at);
        p.model.variances[c] = deviation * deviation;
    }
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> weights(p.n);
    for (size_t i = 0; i < p.n; i++) {
        weights[i] = float(i % 3);
    }
    for (size_t late : {0, 100}) {
        for (size_t i = p.n - late; i < p.n; i++) {
            for (size_t j = 0; j < p.d; j++) {
                place(p,
                      i,
                      j,
                      (i % 2 ? at : -at) + 2 * deviation * normal(random));
            }
        }
        for (Kernel kernel : kernels()) {
            SCOPED_TRACE(
                    testing::Message()
                    << late << " late, kernel " << int(kernel));
            CudaOptions o;
            o.kernel = kernel;
            const Pass pass = run_pass(p, o);
            EXPECT_GE(cuda_report(*pass.backend).dense_rows, p.n / 100 * 99);
            // Two ulps of scores' parts, 2.6e5 in units of log2; first halves
            // alone are off by 0.2, root mean square, and 0.6 at worst
            // (emulated in double).
            EXPECT_LE(worst_log_prob(p, pass), 0.05);
            check(p, EStep::soft, Precision::fast, kernel, weights.data());
        }
    }
}

/// The first rows need no lists, so that the others get none, and then three in
/// ten turn out to be of narrow components.
TEST_F(CudaDenseTest, NarrowComponentsOfRowsThatComeLate) {
    Problem p = make_problem(210000, 12, 500, Covariance::isotropic, 0.05);
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const size_t narrow = 20;
    const float deviation = 0.01f;
    for (size_t c = 0; c < narrow; c++) {
        for (size_t j = 0; j < p.d; j++) {
            p.model.means[c * p.d + j] = normal(random);
        }
        p.model.variances[c] = deviation * deviation;
    }
    for (size_t i = p.n / 10 * 7; i < p.n; i++) {
        for (size_t j = 0; j < p.d; j++) {
            place(p,
                  i,
                  j,
                  p.model.means[i % narrow * p.d + j] +
                          deviation * normal(random));
        }
    }
    const Pass pass = run_pass(p, CudaOptions());
    const CudaReport report = cuda_report(*pass.backend);
    if (kernels().size() > 1) { // lists are asked for afterwards
        EXPECT_GE(report.long_rows, p.n / 4);
    }
    EXPECT_GE(report.dense_rows, p.n / 2);
    EXPECT_LE(worst_log_prob(p, pass), 0.02);
    check(p, EStep::soft, Precision::fast, Kernel::automatic);
}

/// Components that have collapsed onto a vector: beyond what operands hold, so
/// that these have them wider. Rows in the mean, and from near it to where they
/// are nearer to others, among many components that matter and among few.
TEST_F(CudaDenseTest, CollapsedComponents) {
    struct Shape {
        size_t d, k;
        double spread;
    };
    for (const Shape& s :
         {Shape{32, 700, 0.05},
          {32, 300, 1},
          {100, 1000, 0.05},
          {16, 1500, 0.05},
          {7, 200, 1}}) {
        Problem p =
                make_problem(20000, s.d, s.k, Covariance::isotropic, s.spread);
        std::mt19937 random(5);
        std::normal_distribution<float> normal;
        constexpr size_t kCollapsed = 6, kNear = 60;
        for (size_t c = 0; c < kCollapsed; c++) {
            const size_t at = c * s.k / kCollapsed + 3, first = c * kNear + 100;
            float* const mean = p.model.means.data() + at * s.d;
            std::copy_n(p.y.data() + first * s.d, s.d, mean);
            p.model.variances[at] = c % 2 ? 1e-6f : 1e-7f;
            for (size_t i = 0; i < kNear; i++) {
                std::vector<float> direction(s.d);
                float norm = 0;
                for (float& x : direction) {
                    x = normal(random);
                    norm += x * x;
                }
                // The first third are copies of the mean.
                const float length = i < kNear / 3
                        ? 0
                        : std::pow(10.f, -5 + 5.5f * float(i) / kNear);
                for (size_t j = 0; j < s.d; j++) {
                    place(p,
                          first + i,
                          j,
                          mean[j] + length * direction[j] / std::sqrt(norm));
                }
            }
            // As the row is rounded, so is the mean.
            std::copy_n(p.y.data() + first * s.d, s.d, mean);
        }
        for (Kernel kernel : kernels()) {
            for (Precision precision : {Precision::fast, Precision::exact}) {
                SCOPED_TRACE(
                        testing::Message()
                        << "d " << s.d << " k " << s.k << " kernel "
                        << int(kernel) << " precision " << int(precision));
                CudaOptions o;
                o.kernel = kernel;
                o.precision = precision;
                EXPECT_LE(worst_log_prob(p, run_pass(p, o)), 0.06);
                check(p, EStep::soft, precision, kernel);
            }
        }
    }
}

} // namespace
