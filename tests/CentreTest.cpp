// What distances to the means are computed about.
#include "faiss_ext/coarse/centre.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace faiss_ext {
namespace {

std::vector<float> normal(size_t n, float about) {
    std::mt19937 rng(1);
    std::normal_distribution<float> draw(about);
    std::vector<float> out(n);
    for (float& x : out) {
        x = draw(rng);
    }
    return out;
}

TEST(Centre, IsTheMean) {
    for (size_t nlist : {1, 2, 10, 100}) {
        const size_t d = 3;
        const auto means = normal(nlist * d, 5);
        const auto centre = centre_of_means(nlist, d, means.data());
        for (size_t j = 0; j < d; j++) {
            double sum = 0;
            for (size_t i = 0; i < nlist; i++) {
                sum += means[i * d + j];
            }
            EXPECT_NEAR(centre[j], sum / nlist, 1e-5);
        }
    }
}

TEST(Centre, OneFarAwayDoesNotMoveIt) {
    for (size_t nlist : {5, 10, 11, 64, 1000}) {
        for (float far : {1e5f, 1e9f, -1e15f}) {
            const size_t d = 4;
            auto means = normal(nlist * d, 5);
            means[2] = far;
            for (float c : centre_of_means(nlist, d, means.data())) {
                EXPECT_NEAR(c, 5, 2) << nlist << " " << far;
            }
        }
    }
}

TEST(Centre, EqualMeans) {
    const std::vector<float> means(64 * 2, 3);
    for (float c : centre_of_means(64, 2, means.data())) {
        EXPECT_EQ(c, 3);
    }
}

TEST(Centre, LargestWithoutOutliers) {
    const auto of = [](const std::vector<float>& x) {
        const auto [least, largest] = std::minmax_element(x.begin(), x.end());
        return usual_largest(x.size(), x.data(), *least, *largest);
    };
    EXPECT_EQ(of({1, 2, 3}), 3);
    EXPECT_LE(of({1, 2, 3, 1e5f, 4}), 10);
    EXPECT_EQ(of({7}), 7);
    EXPECT_EQ(of({0, 0, 0}), 0);
    EXPECT_EQ(of({0, 0, 0, 0, 5}), 5); // nothing is known of the others
    EXPECT_EQ(usual_largest(0, nullptr, 0, 9), 9);
    std::vector<float> many(1000);
    std::iota(many.begin(), many.end(), 0.f);
    EXPECT_EQ(of(many), 999);
    many[17] = 1e30f;
    EXPECT_GE(of(many), 3 * 600);
    EXPECT_LE(of(many), 3 * 999);
}

} // namespace
} // namespace faiss_ext
