#include "Covariances.h"
#include "CudaProblem.h"
#include "RealData.h"

/** The best components of vectors, by the CUDA backend, against double. */
namespace {

using namespace cuda_test;

struct CudaTopTest : CudaTest {};

TEST_F(CudaTopTest, TopComponents) {
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
                    std::vector<double> joint(p.n * m);
                    std::vector<float> distance(p.n * m), all(p.n);
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

TEST_F(CudaTopTest, TopComponentsOfWhatIsNotFinite) {
    const Problem p = make_problem(300, 20, 50, Covariance::isotropic);
    std::vector<float> x(p.x);
    x[7 * p.d + 3] = std::numeric_limits<float>::quiet_NaN();
    x[290 * p.d] = std::numeric_limits<float>::infinity();
    CudaOptions o;
    const auto backend = make_cuda_backend(o);
    const auto source = memory_source(p.x.data(), p.n, p.d);
    backend->set_data(*source, nullptr, p.frame);
    backend->set_model(p.model);
    for (size_t m : {1, 3}) {
        std::vector<int64_t> good(p.n * m), found(p.n * m);
        std::vector<double> joint(p.n * m);
        std::vector<float> distance(p.n * m), all(p.n);
        Rows rows{p.x.data(), ElementType::f32, p.n, p.d, p.d * sizeof(float)};
        backend->top_components(rows, m, good.data(), nullptr, nullptr);
        rows.data = x.data();
        backend->top_components(
                rows,
                m,
                found.data(),
                joint.data(),
                distance.data(),
                all.data());
        for (size_t i = 0; i < p.n; i++) {
            const bool bad = i == 7 || i == 290;
            EXPECT_EQ(std::isinf(all[i]), bad) << i;
            for (size_t j = i * m; j < (i + 1) * m; j++) {
                EXPECT_EQ(found[j], bad ? -1 : good[j]) << i;
                EXPECT_EQ(std::isinf(joint[j]), bad) << i;
                EXPECT_EQ(std::isinf(distance[j]), bad) << i;
            }
        }
    }
}

/// Far from all means log-joints are large and alike; their differences stay.
TEST_F(CudaTopTest, TopComponentsOfFarRows) {
    for (Covariance kind : kAll) {
        GaussianMixture m;
        m.covariance = kind;
        m.d = m.k = 2;
        m.means = {-0.5f, 0, 0.5f, 0};
        m.log_weights.assign(2, std::log(0.5f));
        m.variances.assign(num_variances(kind, 2, 2), 1);
        for (size_t i = 0; i < num_factors(kind, 2, 2); i++) {
            m.precisions_cholesky.push_back(i % 4 == 0 || i % 4 == 3 ? 1 : 0);
        }
        Frame frame;
        frame.center.assign(2, 0);
        const float x[] = {-1, 1e3f, 2, 1e3f, -1, 3e3f, 0.5f, 1e4f};
        const auto backend = make_cuda_backend();
        const auto source = memory_source(x, 4, 2);
        backend->set_data(*source, nullptr, frame);
        backend->set_model(m);
        int64_t found[8];
        double joint[8];
        backend->top_components(
                {x, ElementType::f32, 4, 2, 2 * sizeof(float)},
                2,
                found,
                joint,
                nullptr);
        for (size_t i = 0; i < 4; i++) {
            EXPECT_EQ(found[2 * i], x[2 * i] > 0) << int(kind) << " " << i;
            EXPECT_NEAR(
                    joint[2 * i] - joint[2 * i + 1], std::abs(x[2 * i]), 2e-3)
                    << int(kind) << " " << i;
        }
    }
}

TEST_F(CudaTopTest, FarRowsDoNotChangeWhatOthersGet) {
    const size_t k = 20, d = 16, n = 100, far = 50;
    for (Covariance kind :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical}) {
        const RealData data = patches(n + k, d);
        GaussianMixture m;
        m.covariance = kind;
        m.d = d;
        m.k = k;
        m.means.assign(data.x.begin(), data.x.begin() + k * d);
        m.log_weights.assign(k, -std::log(float(k)));
        m.variances.assign(num_variances(kind, k, d), 0.05f);
        Frame frame;
        frame.center.assign(d, 0);
        const std::vector<float> x(data.x.begin() + k * d, data.x.end());
        std::vector<float> with_far = x;
        for (size_t j = 0; j < d; j++) {
            with_far[far * d + j] = 1e9f * x[far * d + j] + 1e9f;
        }
        const auto backend = make_cuda_backend();
        const auto source = memory_source(x.data(), n, d);
        backend->set_data(*source, nullptr, frame);
        backend->set_model(m);
        for (size_t count : {size_t(1), size_t(3)}) {
            std::vector<int64_t> found[2];
            std::vector<double> joint[2];
            std::vector<float> all[2];
            for (int i = 0; i < 2; i++) {
                found[i].resize(n * count);
                joint[i].resize(n * count);
                all[i].resize(n);
                backend->top_components(
                        {i ? with_far.data() : x.data(),
                         ElementType::f32,
                         n,
                         d,
                         d * sizeof(float)},
                        count,
                        found[i].data(),
                        joint[i].data(),
                        nullptr,
                        all[i].data());
            }
            EXPECT_LT(all[1][far], -1e15f) << int(kind);
            for (size_t i = 0; i < n * count; i++) {
                if (i / count != far) {
                    EXPECT_EQ(found[0][i], found[1][i]) << int(kind);
                    EXPECT_EQ(joint[0][i], joint[1][i]) << int(kind);
                    EXPECT_EQ(all[0][i / count], all[1][i / count]);
                }
            }
        }
    }
}

} // namespace
