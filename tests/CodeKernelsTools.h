#pragma once

// What tests of the kernels share: all instruction sets that there are, and
// values to try them on.

#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {

constexpr size_t kDimensions[] = {
        1, 3, 16, 50, 64, 96, 100, 128, 384, 576, 1536};
constexpr size_t kLengths[] = {1, 2, 15, 16, 17, 31, 100, 1000};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline const CodeKernels& portable() {
    return *code_kernels(SimdLevel::portable);
}

struct Level {
    const char* name;
    const CodeKernels* kernels;
};

/// Those that this machine has beside the portable one.
inline std::vector<Level> levels() {
    std::vector<Level> out;
    for (const Level& level :
         {Level{"avx2", code_kernels(SimdLevel::avx2)},
          Level{"avx512", code_kernels(SimdLevel::avx512)}}) {
        if (level.kernels) {
            out.push_back(level);
        }
    }
    return out;
}

/// Runs body(kernels) with all of them; what it returns must be the same.
template <class Body>
auto same_on_all(Body&& body) {
    const auto expected = body(portable());
    for (const Level& level : levels()) {
        EXPECT_TRUE(body(*level.kernels) == expected) << level.name;
    }
    return expected;
}

inline std::mt19937& rng() {
    static std::mt19937 generator(5);
    return generator;
}

inline std::vector<float> normal(size_t n, float scale = 1, float mean = 0) {
    std::normal_distribution<float> value(mean, scale);
    std::vector<float> out(n);
    for (float& v : out) {
        v = value(rng());
    }
    return out;
}

/// As bits, so that zeros of either sign and NaNs are told apart.
inline std::vector<uint32_t> bits_of(const std::vector<float>& x) {
    std::vector<uint32_t> out(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        out[i] = std::bit_cast<uint32_t>(x[i]);
    }
    return out;
}

} // namespace faiss_ext
