#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "VectorSource.h"

/// Vectors of dimension d made of the committed samples: their first d
/// columns, or several vectors end to end where d is larger.
struct RealData {
    size_t n = 0;
    size_t d = 0;
    std::vector<float> x; ///< size n * d

    RealData(const std::string& name, size_t n, size_t d) : n(n), d(d) {
        const auto source = gmm::file_source(TEST_DATA "/" + name);
        if (n > source->n) {
            throw std::out_of_range(name + " is smaller than the test wants");
        }
        std::vector<size_t> ids((d + source->d - 1) / source->d);
        std::vector<float> row(ids.size() * source->d);
        x.resize(n * d);
        for (size_t i = 0; i < n; i++) {
            for (size_t part = 0; part < ids.size(); part++) {
                ids[part] = (i + 257 * part) % source->n;
            }
            gmm::gather(*source, ids, row.data());
            std::copy_n(row.begin(), d, x.begin() + i * d);
        }
    }

    /// Made up by a test.
    RealData(size_t n, size_t d, std::vector<float> x)
            : n(n), d(d), x(std::move(x)) {}

    gmm::Rows rows() const {
        return {x.data(), gmm::ElementType::f32, n, d, d * sizeof(float)};
    }

    std::unique_ptr<gmm::VectorSource> source() const {
        return gmm::memory_source(x.data(), n, d);
    }
};

inline RealData sift(size_t n, size_t d = 128) {
    return RealData("sift_sample_base.u8bin", n, d);
}

inline RealData patches(size_t n, size_t d = 96) {
    return RealData("patch_sample_base.fbin", n, d);
}
