#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "GaussianMixture.h"
#include "VectorSource.h"
#include "faiss_ext/GpuGMMClustering.h"

namespace faiss_ext {

/// seed, or one of the clock's if it is negative.
uint64_t actual_seed(int seed);

/// Rows of a source that transforms and codecs learn from.
constexpr size_t kSampleRows = 65536;

/// At most so many rows of a source, in memory. Throws as check_storable().
struct Sample {
    size_t n;
    std::vector<float> x;

    Sample(const gmm::VectorSource& source, size_t most, uint64_t seed);
};

struct Fit {
    gmm::GaussianMixture model;
    std::vector<faiss::ClusteringIterationStats> stats;
    std::string backend;
};

/// The best of nredo runs. weights: size source.n, or nullptr.
Fit fit_mixture(
        const GpuGMMClustering& clus,
        const gmm::VectorSource& source,
        const float* weights);

} // namespace faiss_ext
