#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bench {

/// Vectors in memory as floats.
struct Vectors {
    size_t n = 0;
    size_t d = 0;
    std::vector<float> x; ///< size n * d

    const float* row(size_t i) const {
        return x.data() + i * d;
    }
};

/// The ids of each query's true neighbours, nearest first.
struct Neighbors {
    size_t n = 0;
    size_t k = 0;
    std::vector<int64_t> ids; ///< size n * k
};

/** Reads what gmm::file_source reads (fvecs, bvecs, fbin, u8bin, npy), or a
 * data set of an ann-benchmarks file (hdf5).
 *
 * @param dataset  the data set's name in an .hdf5 file: "train", "test"
 */
Vectors read_vectors(const std::string& path, const std::string& dataset);

/// Reads .ibin, .ivecs, or "neighbors" of an ann-benchmarks .hdf5 file.
Neighbors read_neighbors(const std::string& path);

/// Whether the name ends as an HDF5 file's does.
bool is_hdf5(const std::string& path);

} // namespace bench
