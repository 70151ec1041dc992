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

/// Vectors of a source that are used, with their weights.
struct TrainingSet {
    const gmm::VectorSource* source;
    const float* weights;
};

struct Fit {
    gmm::GaussianMixture model;
    std::vector<faiss::ClusteringIterationStats> stats;
    std::string backend;
};

/// The best of nredo runs.
Fit fit_mixture(const GpuGMMClustering& clus, const TrainingSet& set);

} // namespace faiss_ext
