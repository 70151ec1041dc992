#include "faiss_ext/ProbePolicy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "TestData.h"

namespace faiss_ext {
namespace {

struct Probes {
    std::vector<idx_t> keys;
    std::vector<float> dis;
};

Probes select(
        const ProbePolicy& policy,
        const std::vector<float>& distances,
        size_t nprobe,
        const std::vector<float>& log_joint = {},
        bool similarity = false) {
    Probes out{std::vector<idx_t>(nprobe), std::vector<float>(nprobe)};
    policy.select(
            distances.size(),
            distances.data(),
            log_joint.data(),
            similarity,
            nprobe,
            out.keys.data(),
            out.dis.data());
    return out;
}

/// Few distinct values, so that ties abound.
std::vector<float> random_distances(size_t n, int distinct, int seed) {
    std::mt19937 random(seed);
    std::vector<float> out(n);
    for (float& v : out) {
        v = 1 + random() % distinct;
    }
    return out;
}

size_t given(const Probes& probes) {
    return std::count_if(probes.keys.begin(), probes.keys.end(), [](idx_t k) {
        return k >= 0;
    });
}

TEST(ProbePolicy, OrdersAsASortWould) {
    for (size_t nlist : {1, 2, 7, 100, 1000}) {
        const auto dis = random_distances(nlist, 50, nlist);
        std::vector<idx_t> expected(nlist);
        std::iota(expected.begin(), expected.end(), 0);
        std::stable_sort(expected.begin(), expected.end(), [&](auto a, auto b) {
            return dis[a] < dis[b];
        });
        for (size_t nprobe : {1, 2, 5, 64, 1500}) {
            const Probes probes = select({}, dis, nprobe);
            for (size_t i = 0; i < nprobe; i++) {
                if (i < nlist) {
                    ASSERT_EQ(probes.keys[i], expected[i]);
                    ASSERT_EQ(probes.dis[i], dis[expected[i]]);
                } else {
                    ASSERT_EQ(probes.keys[i], -1);
                }
            }
        }
    }
}

TEST(ProbePolicy, SimilarityAndLikelihoodPreferTheLargest) {
    const std::vector<float> values = {0.5f, 0.9f, -0.3f, 0.9f};
    EXPECT_EQ(
            select({}, values, 4, {}, true).keys,
            (std::vector<idx_t>{1, 3, 0, 2}));
    const std::vector<float> dis = {1, 2, 3, 4};
    const Probes probes =
            select({ProbeOrder::log_likelihood}, dis, 4, {-9, -1, -5, -2});
    EXPECT_EQ(probes.keys, (std::vector<idx_t>{1, 3, 2, 0}));
    EXPECT_EQ(probes.dis, (std::vector<float>{2, 4, 3, 1}));
}

TEST(ProbePolicy, CodesMeanDistance) {
    const auto dis = random_distances(100, 1000, 1);
    const Probes expected = select({}, dis, 10);
    for (auto order : {ProbeOrder::calibrated, ProbeOrder::codes}) {
        const Probes probes = select({order, 0.1f}, dis, 10);
        EXPECT_EQ(probes.keys, expected.keys);
        EXPECT_EQ(probes.dis, expected.dis);
    }
}

TEST(ProbePolicy, ScaleFreeStopsOnceTheMassIsCovered) {
    const auto dis = random_distances(200, 1000, 2);
    const Probes all = select({}, dis, 200);
    for (float v : {1.0f, 1.5f, 2.0f, 4.0f}) {
        double total = 0;
        for (float s : dis) {
            total += std::pow(double(s), -v);
        }
        for (float mass : {0.01f, 0.5f, 0.9f, 0.99f}) {
            const Probes probes =
                    select({ProbeOrder::scale_free, mass, v}, dis, 200);
            const size_t count = given(probes);
            double covered = 0;
            for (size_t i = 0; i < count; i++) {
                ASSERT_EQ(probes.keys[i], all.keys[i]);
                covered += std::pow(double(probes.dis[i]), -v);
            }
            EXPECT_GE(covered, (mass - 1e-5) * total);
            const double last = std::pow(double(probes.dis[count - 1]), -v);
            EXPECT_LT(covered - last, (mass + 1e-5) * total);
        }
    }
}

TEST(ProbePolicy, ScaleFreeIgnoresTheScale) {
    auto dis = random_distances(100, 1000, 3);
    const ProbePolicy policy{ProbeOrder::scale_free, 0.8f, 2};
    const size_t count = given(select(policy, dis, 100));
    EXPECT_GT(count, 1u);
    EXPECT_LT(count, 100u);
    for (float& v : dis) {
        v *= 0x1p20f;
    }
    EXPECT_EQ(given(select(policy, dis, 100)), count);
}

TEST(ProbePolicy, ScaleFreeOfUnitVectorsIsTheirDistance) {
    std::vector<float> dis(50), products(50);
    for (size_t i = 0; i < 50; i++) {
        products[i] = 0.9f - 0.03f * i;
        dis[i] = 2 - 2 * products[i];
    }
    const ProbePolicy policy{ProbeOrder::scale_free, 0.7f, 1.5f};
    EXPECT_EQ(
            select(policy, products, 50, {}, true).keys,
            select(policy, dis, 50).keys);
}

TEST(ProbePolicy, DistanceZeroTakesAllOfTheMass) {
    const ProbePolicy policy{ProbeOrder::scale_free, 0.99f, 2};
    EXPECT_EQ(
            select(policy, {3, 0, 5, 0}, 4).keys,
            (std::vector<idx_t>{1, 3, -1, -1}));
    EXPECT_EQ(select(policy, {0, 0, 0}, 3).keys, (std::vector<idx_t>{0, 1, 2}));
}

TEST(ProbePolicy, LikelihoodStopsByThePosterior) {
    const std::vector<float> log_joint = {
            -1000 + std::log(0.2f),
            -1000 + std::log(0.7f),
            -1000 + std::log(0.1f)};
    auto count = [&](float mass) {
        const ProbePolicy policy{ProbeOrder::log_likelihood, mass};
        return given(select(policy, {1, 1, 1}, 3, log_joint));
    };
    EXPECT_EQ(count(1e-6f), 1u);
    EXPECT_EQ(count(0.65f), 1u);
    EXPECT_EQ(count(0.8f), 2u);
    EXPECT_EQ(count(0.95f), 3u);
    EXPECT_EQ(count(1), 3u);
}

TEST(ProbePolicy, NothingForNaN) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> bad(10, nan);
    for (auto order :
         {ProbeOrder::distance,
          ProbeOrder::scale_free,
          ProbeOrder::log_likelihood}) {
        const Probes probes = select({order, 0.9f}, bad, 3, bad);
        EXPECT_EQ(probes.keys, (std::vector<idx_t>{-1, -1, -1}));
    }
}

TEST(ProbePolicy, NamesGoBothWays) {
    for (auto order :
         {ProbeOrder::calibrated,
          ProbeOrder::distance,
          ProbeOrder::log_likelihood,
          ProbeOrder::scale_free,
          ProbeOrder::codes}) {
        EXPECT_EQ(probe_order_from_string(to_string(order)), order);
    }
    for (const char* former : {"sketch", "cell_distance", "cell_posterior"}) {
        EXPECT_EQ(probe_order_from_string(former), ProbeOrder::codes) << former;
    }
    EXPECT_FAISS_ERROR(probe_order_from_string("nearest"), "\"nearest\"");
    EXPECT_FAISS_ERROR(to_string(ProbeOrder(17)), "17");
}

TEST(ProbePolicy, ValidateNamesTheField) {
    ProbePolicy policy;
    EXPECT_NO_THROW(policy.validate());
    policy.probe_mass = 1.5f;
    EXPECT_FAISS_ERROR(policy.validate(), "probe_mass = 1.5");
    policy = {ProbeOrder::scale_free, 0.5f, -2};
    EXPECT_FAISS_ERROR(policy.validate(), "exponent = -2");
}

} // namespace
} // namespace faiss_ext
