// What is nearest among many that are offered, against all of them sorted.
#include "faiss_ext/scan/collectors.h"

#include <algorithm>
#include <limits>
#include <random>

#include <gtest/gtest.h>

namespace faiss_ext {
namespace {

constexpr float kNone = std::numeric_limits<float>::max();

std::vector<std::pair<float, idx_t>> offers(size_t n, uint32_t seed) {
    std::mt19937 rng(seed);
    std::uniform_real_distribution<float> draw(0, 100);
    std::vector<std::pair<float, idx_t>> out(n);
    for (size_t i = 0; i < n; i++) {
        out[i] = {draw(rng), idx_t(7 * i + 3)};
    }
    return out;
}

TEST(NearestCollector, KeepsTheNearest) {
    for (size_t k : {1, 2, 10, 63, 64, 100, 1000}) {
        NearestCollector collector(k);
        // one collector serves many queries
        for (size_t n : {size_t(0), k - 1, k, k + 1, 10 * k, size_t(5000)}) {
            auto all = offers(n, uint32_t(n + k));
            collector.begin();
            for (const auto& [distance, location] : all) {
                collector.offer(distance, location);
            }
            std::sort(all.begin(), all.end());
            collector.tighten();
            EXPECT_EQ(collector.threshold(), n < k ? kNone : all[k - 1].first)
                    << k << " of " << n;
            std::vector<float> dis(k);
            std::vector<idx_t> ids(k);
            collector.end(false, nullptr, dis.data(), ids.data());
            for (size_t i = 0; i < k; i++) {
                EXPECT_EQ(dis[i], i < n ? all[i].first : kNone);
                EXPECT_EQ(ids[i], i < n ? all[i].second : -1);
            }
        }
    }
}

TEST(NearestCollector, TheThresholdNeverGrowsAndKeepsNothingOut) {
    for (size_t k : {5, 200}) {
        const auto all = offers(20 * k, 5);
        NearestCollector collector(k);
        collector.begin();
        std::vector<float> so_far;
        float before = kNone;
        for (const auto& [distance, location] : all) {
            collector.offer(distance, location);
            so_far.push_back(distance);
            std::sort(so_far.begin(), so_far.end());
            EXPECT_LE(collector.threshold(), before);
            before = collector.threshold();
            if (so_far.size() >= k) {
                EXPECT_GE(before, so_far[k - 1]);
                EXPECT_LT(before, kNone);
            } else {
                EXPECT_EQ(before, kNone);
            }
        }
    }
}

TEST(NearestCollector, NegatedProductsAndIds) {
    faiss::ArrayInvertedLists lists(3, 4);
    const std::vector<uint8_t> code(4);
    for (idx_t id = 0; id < 30; id++) {
        lists.add_entry(id % 3, 1000 + id, code.data());
    }
    NearestCollector collector(2);
    collector.begin();
    collector.offer(-1, faiss::lo_build(0, 4));
    collector.offer(std::numeric_limits<float>::quiet_NaN(), 0);
    float dis[2];
    idx_t ids[2];
    collector.end(true, &lists, dis, ids);
    EXPECT_EQ(dis[0], 1);
    EXPECT_EQ(ids[0], 1012);
    EXPECT_EQ(dis[1], -kNone);
    EXPECT_EQ(ids[1], -1);
}

} // namespace
} // namespace faiss_ext
