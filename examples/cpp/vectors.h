#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

/// n vectors of d dimensions around 200 centers, the same for every seed, so
/// that those of one seed can be asked for those of another.
inline std::vector<float> make_vectors(size_t n, size_t d, uint32_t seed) {
    std::mt19937 of_centers(1), random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centers(200 * d), x(n * d);
    for (float& v : centers) {
        v = normal(of_centers);
    }
    for (size_t i = 0; i < n; i++) {
        const float* center = centers.data() + random() % 200 * d;
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = center[j] + 0.4f * normal(random);
        }
    }
    return x;
}
