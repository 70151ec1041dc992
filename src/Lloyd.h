#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "GaussianMixture.h"
#include "InnerProducts.h"
#include "VectorSource.h"

namespace gmm {

/// Vectors in the frame's units.
struct Points {
    size_t n;
    size_t d;
    std::vector<float> y;      ///< size n * d
    std::vector<float> weight; ///< size n

    /// As they are, each of weight 1.
    Points(size_t d, std::vector<float> y);

    /// Some of a source's.
    Points(const VectorSource& source,
           const float* weights,
           const Frame& frame,
           const std::vector<size_t>& ids);

    std::vector<float> rows(const std::vector<size_t>& wanted) const;
};

/// Finds the nearest of few means, by products about their centre: about the
/// origin they would not tell means of a group far from it apart.
struct Nearest {
    std::vector<float> centre;
    PackedMeans packed;
    std::vector<float> half_norm;

    Nearest(size_t k, size_t d, const std::vector<float>& means);

    /// In the calling thread.
    void find(size_t n, const float* y, int32_t* out) const;
};

/// k-means in one thread.
struct Lloyd {
    const Points& points;
    size_t k;
    std::vector<float> means; ///< those that of was found with
    std::vector<int32_t> of;  ///< the nearest mean of each point
    std::vector<double> count;
    std::vector<double> sum; ///< size k * d

    Lloyd(const Points& points, size_t k, std::mt19937_64& random);

    void run(int iterations, std::mt19937_64& random);

private:
    void assign();
    void move(std::mt19937_64& random);
};

} // namespace gmm
