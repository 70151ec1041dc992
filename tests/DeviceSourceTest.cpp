#include "DeviceSource.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <limits>

#include "CudaProblem.h"
#include "EMTrainer.h"
#include "Error.h"
#include "Initialise.h"
#include "RealData.h"

using namespace gmm;

namespace {

struct DeviceSourceTest : testing::Test {
    void SetUp() override {
        std::string why;
        if (!cuda_available(&why)) {
            GTEST_SKIP() << "skipped, " << why;
        }
    }

    void TearDown() override {
        for (void* p : held) {
            cudaFree(p);
        }
    }

    /// A copy on the device, as long as the test runs.
    const void* on_device(const void* x, size_t bytes) {
        void* p = nullptr;
        EXPECT_EQ(cudaMalloc(&p, bytes), cudaSuccess);
        EXPECT_EQ(cudaMemcpy(p, x, bytes, cudaMemcpyHostToDevice), cudaSuccess);
        held.push_back(p);
        return p;
    }

    std::vector<void*> held;
};

/// SIFT's values are bytes, so that all types hold the same numbers.
struct Elements {
    ElementType type;
    std::vector<std::byte> bytes;
};

std::vector<Elements> in_all_types(const RealData& data) {
    std::vector<Elements> out;
    const auto* floats = reinterpret_cast<const std::byte*>(data.x.data());
    out.push_back({ElementType::f32, {floats, floats + data.x.size() * 4}});
    Elements half{ElementType::f16, {}}, byte{ElementType::u8, {}};
    for (float v : data.x) {
        byte.bytes.push_back(std::byte(uint8_t(v)));
        // Integers below 2048 are exact: exponent and leading bits.
        uint16_t bits = 0;
        if (v > 0) {
            const int e = std::ilogb(v);
            bits = uint16_t(
                    (e + 15) << 10 |
                    int(std::lround((v / std::exp2(e) - 1) * 1024)));
        }
        half.bytes.push_back(std::byte(bits & 255));
        half.bytes.push_back(std::byte(bits >> 8));
    }
    out.push_back(half);
    out.push_back(byte);
    return out;
}

TEST_F(DeviceSourceTest, RowsComeToTheHost) {
    const RealData data = sift(3000);
    const size_t n = data.n, d = data.d;
    for (const Elements& elements : in_all_types(data)) {
        const auto source = device_source(
                on_device(elements.bytes.data(), elements.bytes.size()),
                n,
                d,
                elements.type);
        std::vector<std::byte> scratch;
        std::vector<float> x(7 * d);
        source->rows(1000, 7, scratch).to_float(x.data());
        EXPECT_TRUE(std::equal(x.begin(), x.end(), &data.x[1000 * d]));
        gather(*source, {2999, 0, 17, 17, 5, 1, 2}, x.data());
        EXPECT_TRUE(std::equal(x.begin(), x.begin() + d, &data.x[2999 * d]));
        EXPECT_TRUE(std::equal(&x[3 * d], &x[4 * d], &data.x[17 * d]));
        EXPECT_EQ(source->bytes_to_host, 14 * d * element_size(elements.type));

        const auto host =
                memory_source(elements.bytes.data(), n, d, elements.type);
        const auto sample = sample_source(*source, 100, 5);
        const auto expected = sample_source(*host, 100, 5);
        std::vector<std::byte> other;
        std::vector<float> a(50 * d), b(50 * d);
        sample->rows(20, 50, scratch).to_float(a.data());
        expected->rows(20, 50, other).to_float(b.data());
        EXPECT_EQ(a, b);
        EXPECT_THROW(source->rows(n - 1, 2, scratch), InvalidArgument);
        EXPECT_THROW(gather(*source, {n}, x.data()), InvalidArgument);
    }
}

TEST_F(DeviceSourceTest, TheFrameIsThatOfTheHostsCopyToTheBit) {
    const RealData data = sift(5001);
    std::vector<float> weights(data.n);
    for (size_t i = 0; i < data.n; i++) {
        weights[i] = 0.1f * float(i % 13);
    }
    for (const Elements& elements : in_all_types(data)) {
        const auto source = device_source(
                on_device(elements.bytes.data(), elements.bytes.size()),
                data.n,
                data.d,
                elements.type);
        const auto host = memory_source(
                elements.bytes.data(), data.n, data.d, elements.type);
        const float* const choices[] = {nullptr, weights.data()};
        for (const float* w : choices) {
            const DataFrame a = fit_frame(*source, w);
            const DataFrame b = fit_frame(*host, w);
            EXPECT_EQ(a.frame.center, b.frame.center);
            EXPECT_EQ(a.frame.scale, b.frame.scale);
            EXPECT_EQ(a.frame.variances, b.frame.variances);
            EXPECT_EQ(a.variance, b.variance);
        }
    }
}

/// Of 20,000 vectors no more than those that means start at come to the host.
TEST_F(DeviceSourceTest, TrainingIsThatOfTheHostsCopyToTheBit) {
    const RealData data = sift(20000);
    const size_t d = data.d, k = 100;
    TrainingOptions options;
    options.niter = 4;
    for (const Elements& elements : in_all_types(data)) {
        const auto source = device_source(
                on_device(elements.bytes.data(), elements.bytes.size()),
                data.n,
                d,
                elements.type);
        const auto host =
                memory_source(elements.bytes.data(), data.n, d, elements.type);
        const auto a =
                train(*source, nullptr, k, options, *make_cuda_backend());
        const auto b = train(*host, nullptr, k, options, *make_cuda_backend());
        EXPECT_EQ(a.model.means, b.model.means);
        EXPECT_EQ(a.model.variances, b.model.variances);
        EXPECT_EQ(a.model.log_weights, b.model.log_weights);
        EXPECT_LE(
                source->bytes_to_host,
                2 * (k + 1) * d * element_size(elements.type));
    }
}

/// Too little memory for prepared rows of all: a block at a time.
TEST_F(DeviceSourceTest, BlocksAreReadWhereTheyAre) {
    const cuda_test::Problem p =
            cuda_test::make_problem(90000, 40, 60, Covariance::isotropic);
    const auto source = device_source(
            on_device(p.x.data(), p.x.size() * sizeof(float)), p.n, p.d);
    const auto host = memory_source(p.x.data(), p.n, p.d);
    CudaOptions options;
    options.memory_limit = size_t(80) << 20;
    SufficientStats found, expected;
    for (auto [from, to] :
         {std::pair<const VectorSource*, SufficientStats*>(
                  source.get(), &found),
          {host.get(), &expected}}) {
        const auto backend = make_cuda_backend(options);
        backend->set_data(*from, nullptr, p.frame);
        backend->set_model(p.model);
        backend->accumulate(EStep::soft, *to);
        EXPECT_FALSE(cuda_report(*backend).resident);
    }
    EXPECT_EQ(found.n_k, expected.n_k);
    EXPECT_EQ(found.sum_x, expected.sum_x);
    EXPECT_EQ(found.objective, expected.objective);
    EXPECT_EQ(source->bytes_to_host, 0u);
}

TEST_F(DeviceSourceTest, ARowThatIsNotFiniteIsNamed) {
    RealData data = sift(4000);
    data.x[3456 * data.d + 9] = std::numeric_limits<float>::quiet_NaN();
    data.x[3999 * data.d] = std::numeric_limits<float>::infinity();
    const auto source = device_source(
            on_device(data.x.data(), data.x.size() * sizeof(float)),
            data.n,
            data.d);
    try {
        fit_frame(*source, nullptr);
        FAIL() << "no exception";
    } catch (const InvalidArgument& e) {
        EXPECT_NE(
                std::string(e.what()).find("row 3456, dimension 9"),
                std::string::npos)
                << e.what();
    }
}

TEST_F(DeviceSourceTest, OnlyTakesMemoryOfADevice) {
    const std::vector<float> x(8);
    EXPECT_THROW(device_source(x.data(), 2, 4), InvalidArgument);
    EXPECT_THROW(device_source(on_device(x.data(), 32), 0, 4), InvalidArgument);
}

} // namespace
