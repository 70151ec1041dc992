#include "Backend.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <ctime>
#include <limits>
#include <random>
#include <thread>

#include "Covariances.h"
#include "CpuBackendTools.h"
#include "ExpectInvalid.h"
#include "TrainingStart.h"

using gmm::Backend;
using gmm::Covariance;
using gmm::ElementType;
using gmm::EStep;
using gmm::Frame;
using gmm::GaussianMixture;
using gmm::Rows;
using gmm::SufficientStats;

static constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(CpuBackend, HardStepSendsEachVectorToTheNearestMean) {
    const RealData data = sift(3001, 128);
    const size_t k = 100;
    const GaussianMixture model =
            trained(data, k, Covariance::isotropic, /*niter=*/1);
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    const Frame frame = frame_of(data, unit_scale(data));
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    SufficientStats stats;
    backend->accumulate(EStep::hard, stats);

    const HardReference nearest(data, model);
    EXPECT_EQ(stats.n_k, nearest.n_k);
    EXPECT_NEAR(
            -stats.objective / frame.scale / frame.scale,
            nearest.distances,
            1e-6 * nearest.distances);
    EXPECT_EQ(stats.dropped_mass, 0);
}

namespace {

/// Two groups about -1 and 1 whose vectors are about `spread` apart.
RealData two_groups(size_t n, size_t d, float spread) {
    std::mt19937_64 random(d);
    std::normal_distribution<float> normal;
    std::vector<float> x(n * d);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = (i / d % 2 ? 1.0f : -1.0f) + spread * normal(random);
    }
    return {n, d, x};
}

GaussianMixture first_as_means(
        const RealData& data, size_t k, Covariance covariance) {
    GaussianMixture m;
    m.covariance = covariance;
    m.k = k;
    m.d = data.d;
    m.means.assign(data.x.begin(), data.x.begin() + k * data.d);
    m.log_weights.assign(k, -std::log(float(k)));
    gmm::set_unit_variances(m);
    return m;
}

/// Processor time of a hard step, the least of five.
double hard_seconds(const RealData& data, size_t k) {
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, {std::vector<float>(data.d), 1.0f, {}});
    backend->set_model(first_as_means(data, k, Covariance::isotropic));
    SufficientStats stats;
    double least = kInfinity;
    for (int i = 0; i < 5; i++) {
        const std::clock_t begin = std::clock();
        backend->accumulate(EStep::hard, stats);
        least = std::min(least, double(std::clock() - begin) / CLOCKS_PER_SEC);
    }
    return least;
}

} // namespace

TEST(CpuBackend, HardStepOfMeansFarCloserToEachOtherThanToTheOrigin) {
    for (size_t d : {3, 40}) {
        for (float spread : {1e-2f, 1e-4f, 1e-6f, 0.0f}) {
            const RealData data = two_groups(1500, d, spread);
            const auto source = data.source();
            std::vector<float> weights(data.n, 1);
            weights[1400] = 0;
            for (Covariance covariance :
                 {Covariance::isotropic, Covariance::full, Covariance::tied}) {
                const auto model = first_as_means(data, 150, covariance);
                const auto backend = gmm::make_cpu_backend();
                backend->set_data(
                        *source,
                        weights.data(),
                        {std::vector<float>(d), 1.0f, {}});
                backend->set_model(model);
                SufficientStats stats;
                backend->accumulate(EStep::hard, stats);
                HardReference nearest(
                        {1400, d, {data.x.begin(), data.x.begin() + 1400 * d}},
                        model);
                const HardReference rest(
                        {99, d, {data.x.begin() + 1401 * d, data.x.end()}},
                        model);
                for (size_t c = 0; c < model.k; c++) {
                    nearest.n_k[c] += rest.n_k[c];
                }
                EXPECT_EQ(stats.n_k, nearest.n_k)
                        << "d " << d << ", spread " << spread;
                const double distances = nearest.distances + rest.distances;
                EXPECT_NEAR(-stats.objective, distances, 1e-6 * distances);
            }
        }
    }
}

/// Means that are as near to each other as floats can be.
TEST(CpuBackend, HardStepTellsNeighboursApart) {
    constexpr size_t kPairs = 150;
    for (size_t d : {1, 17}) {
        RealData data{2 * kPairs, d, {}};
        for (size_t i = 0; i < kPairs; i++) {
            const float x = 1 + 7 * float(i);
            data.x.insert(data.x.end(), d, x);
            data.x.insert(data.x.end(), d, std::nextafter(x, kInfinity));
        }
        const auto source = data.source();
        const auto model = first_as_means(data, data.n, Covariance::isotropic);
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, {std::vector<float>(d), 1.0f, {}});
        backend->set_model(model);
        SufficientStats stats;
        backend->accumulate(EStep::hard, stats);
        EXPECT_EQ(stats.n_k, std::vector<double>(model.k, 1)) << d;
        EXPECT_EQ(stats.objective, 0) << d;
    }
}

TEST(CpuBackend, HardStepTakesAboutAsLongWhereverMeansAre) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    double ratio = kInfinity;
    for (int tries = 0; tries < 3 && ratio > 7; tries++) {
        ratio = hard_seconds(two_groups(4000, 40, 1e-4f), 600) /
                hard_seconds(two_groups(4000, 40, 1), 600);
    }
    EXPECT_LT(ratio, 7);
    omp_set_num_threads(before);
}

TEST(CpuBackend, BitsDoNotDependOnThreads) {
    const RealData data = sift(5003, 128);
    const auto source = data.source();
    const Frame frame = frame_of(data, 0.02f);
    for (Covariance covariance : kAll) {
        const GaussianMixture model = trained(data, 100, covariance);
        const int before = omp_get_max_threads();
        SufficientStats first;
        for (int threads : {1, 2, 5}) {
            omp_set_num_threads(threads);
            const auto backend = gmm::make_cpu_backend();
            backend->set_data(*source, nullptr, frame);
            backend->set_model(frame.to_frame(model));
            SufficientStats stats;
            backend->accumulate(EStep::soft, stats);
            if (threads == 1) {
                first = stats;
            }
            EXPECT_EQ(stats.n_k, first.n_k);
            EXPECT_EQ(stats.sum_x, first.sum_x);
            EXPECT_EQ(stats.sum_x2, first.sum_x2);
            EXPECT_EQ(stats.objective, first.objective);
        }
        omp_set_num_threads(before);
    }
}

TEST(CpuBackend, WeightsCountAsCopies) {
    for (auto [d, k] : {std::pair<size_t, size_t>{3, 5}, {16, 64}, {96, 20}}) {
        const RealData data = patches(1001, d);
        std::vector<float> weights(data.n), copies;
        for (size_t i = 0; i < data.n; i++) {
            weights[i] = float(i % 3);
            for (size_t r = 0; r < i % 3; r++) {
                copies.insert(
                        copies.end(),
                        data.x.begin() + i * d,
                        data.x.begin() + (i + 1) * d);
            }
        }
        const auto weighted = data.source();
        const auto copied =
                gmm::memory_source(copies.data(), copies.size() / d, d);
        const Frame frame = frame_of(data, unit_scale(data));
        for (Covariance covariance : kAll) {
            const GaussianMixture model = trained(data, k, covariance);
            for (EStep step : {EStep::soft, EStep::hard}) {
                SCOPED_TRACE(
                        testing::Message() << to_string(covariance) << ", d "
                                           << d << ", step " << int(step));
                SufficientStats a, b;
                const auto backend = gmm::make_cpu_backend();
                backend->set_model(frame.to_frame(model));
                backend->set_data(*weighted, weights.data(), frame);
                backend->accumulate(step, a);
                backend->set_data(*copied, nullptr, frame);
                backend->accumulate(step, b);
                EXPECT_EQ(a.weight, b.weight);
                EXPECT_NEAR(
                        a.objective, b.objective, 1e-6 * std::abs(b.objective));
                const double near = 1e-5 * b.weight;
                for (size_t c = 0; c < k; c++) {
                    EXPECT_NEAR(a.n_k[c], b.n_k[c], near);
                }
                for (size_t i = 0; i < b.sum_x.size(); i++) {
                    EXPECT_NEAR(a.sum_x[i], b.sum_x[i], near * 4);
                }
                for (size_t i = 0; i < b.sum_x2.size(); i++) {
                    EXPECT_NEAR(a.sum_x2[i], b.sum_x2[i], near * 16);
                }
            }
        }
    }
}

TEST(CpuBackend, TopComponentsAreTheBestInOrder) {
    const RealData data = sift(700, 128);
    for (Covariance covariance : kAll) {
        const size_t k = 300;
        const GaussianMixture model = trained(data, k, covariance);
        const auto source = data.source();
        const Frame frame = frame_of(data, unit_scale(data));
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, frame);
        backend->set_model(frame.to_frame(model));
        std::vector<double> joint(data.n * k), distance(data.n * k);
        model.log_joint(data.n, data.x.data(), joint.data());
        GaussianMixture unit = model;
        unit.covariance = Covariance::tied_spherical;
        unit.variances = {1};
        unit.precisions_cholesky.clear();
        unit.log_weights.assign(k, 0.0f);
        unit.log_joint(data.n, data.x.data(), distance.data());
        const double at_mean =
                -0.5 * double(data.d) * std::log(2 * std::acos(-1.0));
        for (EStep order : {EStep::soft, EStep::hard}) {
            const auto& score = order == EStep::soft ? joint : distance;
            for (size_t m : {size_t(1), size_t(10), size_t(64), k}) {
                std::vector<int64_t> found(data.n * m);
                std::vector<double> log_joint(data.n * m);
                std::vector<float> d2(data.n * m);
                std::vector<float> log_prob(data.n);
                backend->top_components(
                        data.rows(),
                        m,
                        found.data(),
                        log_joint.data(),
                        d2.data(),
                        log_prob.data(),
                        order);
                for (size_t i = 0; i < data.n; i++) {
                    std::vector<double> sorted(
                            score.begin() + i * k, score.begin() + (i + 1) * k);
                    std::sort(sorted.rbegin(), sorted.rend());
                    for (size_t r = 0; r < m; r++) {
                        const size_t c = found[i * m + r];
                        ASSERT_LT(c, k);
                        ASSERT_NEAR(
                                score[i * k + c],
                                sorted[r],
                                1e-3 + 1e-7 * std::abs(sorted[r]));
                        ASSERT_NEAR(
                                log_joint[i * m + r],
                                joint[i * k + c],
                                1e-3 + 5e-7 * std::abs(joint[i * k + c]));
                        const double expected =
                                2 * (at_mean - distance[i * k + c]);
                        ASSERT_NEAR(
                                d2[i * m + r],
                                expected,
                                1e-5 * expected + 1e-6);
                    }
                    std::vector<int64_t> distinct(
                            found.begin() + i * m, found.begin() + (i + 1) * m);
                    std::sort(distinct.begin(), distinct.end());
                    ASSERT_EQ(
                            std::unique(distinct.begin(), distinct.end()),
                            distinct.end());
                }
            }
        }
    }
}

// The float sgemm cannot see these distances at all: |x|^2 / variance is 1e10.
TEST(CpuBackend, EqualMeansAreOrderedByNumber) {
    const RealData data = sift(40, 128);
    GaussianMixture model;
    model.covariance = Covariance::tied_spherical;
    model.d = data.d;
    model.k = 20;
    for (size_t c = 0; c < model.k; c++) {
        const float* from = data.x.data() + c / 4 * data.d;
        model.means.insert(model.means.end(), from, from + data.d);
    }
    model.variances = {100};
    model.log_weights.assign(model.k, -std::log(20.0f));
    Frame frame;
    frame.center.resize(data.d);
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    std::vector<int64_t> found(data.n * 4);
    for (EStep order : {EStep::soft, EStep::hard}) {
        backend->top_components(
                data.rows(), 4, found.data(), nullptr, nullptr, nullptr, order);
        for (size_t i = 0; i < data.n; i++) {
            for (size_t r = 1; r < 4; r++) {
                EXPECT_EQ(found[4 * i + r], found[4 * i] + int64_t(r));
            }
            EXPECT_EQ(found[4 * i] % 4, 0);
        }
    }
    SufficientStats stats;
    backend->accumulate(EStep::hard, stats);
    EXPECT_EQ(stats.n_k[1] + stats.n_k[2] + stats.n_k[3], 0);
}

TEST(CpuBackend, ElementTypesGiveTheSameResult) {
    const RealData data = sift(1000, 128); // whole numbers from 0 to 255
    std::vector<uint8_t> bytes(data.x.begin(), data.x.end());
    std::vector<uint16_t> halves;
    for (float x : data.x) { // exact: 11 bits are enough
        int exponent = 0;
        const float mantissa = std::frexp(x, &exponent);
        halves.push_back(
                x == 0 ? 0
                       : uint16_t(
                                 (exponent + 14) << 10 |
                                 (int(mantissa * 2048) & 1023)));
    }
    const GaussianMixture model = trained(data, 64, Covariance::isotropic);
    const Frame frame = frame_of(data, unit_scale(data));
    std::vector<SufficientStats> stats(3);
    for (int t = 0; t < 3; t++) {
        const void* const from[] = {data.x.data(), halves.data(), bytes.data()};
        const auto source =
                gmm::memory_source(from[t], data.n, data.d, ElementType(t));
        const auto backend = gmm::make_cpu_backend();
        backend->set_data(*source, nullptr, frame);
        backend->set_model(frame.to_frame(model));
        backend->accumulate(EStep::soft, stats[t]);
        EXPECT_EQ(stats[t].sum_x, stats[0].sum_x);
        EXPECT_EQ(stats[t].objective, stats[0].objective);
    }
}

TEST(CpuBackend, SearchesFromSeveralThreadsDoNotDisturbEachOther) {
    const RealData data = sift(2000, 128);
    const GaussianMixture model = trained(data, 128, Covariance::isotropic);
    const Frame frame = frame_of(data, unit_scale(data));
    const auto source = data.source();
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(model));
    std::vector<std::vector<int64_t>> found(
            4, std::vector<int64_t>(data.n * 5));
    std::vector<std::thread> threads;
    for (auto& mine : found) {
        threads.emplace_back([&] {
            backend->top_components(
                    data.rows(), 5, mine.data(), nullptr, nullptr);
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const auto& other : found) {
        EXPECT_EQ(other, found[0]);
    }
}

TEST(CpuBackend, WrongInputIsNamed) {
    RealData data = sift(600, 4);
    const auto backend = gmm::make_cpu_backend();
    const auto source = data.source();
    Frame frame = frame_of(data, 1);
    SufficientStats stats;
    std::vector<int64_t> found(data.n * 3);
    EXPECT_EQ(backend->name(), "cpu");
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "set_data");
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 1, found.data(), nullptr, nullptr),
            "x.d = 4");
    backend->set_data(*source, nullptr, frame);
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "set_model");
    GaussianMixture model = trained(data, 3, Covariance::isotropic);
    backend->set_model(frame.to_frame(model));
    EXPECT_NO_THROW(backend->accumulate(EStep::soft, stats));
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 0, found.data(), nullptr, nullptr),
            "m = 0");
    EXPECT_INVALID(
            backend->top_components(
                    data.rows(), 4, found.data(), nullptr, nullptr),
            "m = 4");
    Rows narrow = data.rows();
    narrow.d = 3;
    EXPECT_INVALID(
            backend->top_components(narrow, 1, found.data(), nullptr, nullptr),
            "x.d = 3");
    model.variances[1] = -1;
    EXPECT_INVALID(backend->set_model(model), "variances[1] = -1");
    Frame bad = frame;
    bad.center.pop_back();
    EXPECT_INVALID(backend->set_data(*source, nullptr, bad), "frame.center");
    bad = frame;
    bad.scale = -1;
    EXPECT_INVALID(backend->set_data(*source, nullptr, bad), "frame.scale");
    data.x[4 * 321] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_INVALID(backend->accumulate(EStep::soft, stats), "row 321");
}

TEST(CpuBackend, ASourcesExceptionReachesTheCaller) {
    const auto source = gmm::callback_source(
            100'000, 4, ElementType::u8, [](size_t begin, size_t, void*) {
                if (begin > 50'000) {
                    throw std::runtime_error("connection lost");
                }
            });
    const RealData data = sift(100, 4);
    const GaussianMixture model = trained(data, 3, Covariance::isotropic);
    Frame frame;
    frame.center.resize(4);
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    SufficientStats stats;
    EXPECT_THROW(backend->accumulate(EStep::soft, stats), std::runtime_error);
}
