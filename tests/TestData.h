#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

#include "RealData.h"

/// Vectors in memory as floats.
struct Vectors {
    size_t n = 0;
    size_t d = 0;
    std::vector<float> x; ///< size n * d

    const float* row(size_t i) const {
        return x.data() + i * d;
    }
};

/// The first n vectors of a file of bench/data.
inline Vectors read_test_data(const std::string& name, size_t n) {
    RealData data(name, n, 128);
    return {data.n, data.d, std::move(data.x)};
}

inline Vectors sift_base(size_t n) {
    return read_test_data("sift_sample_base.u8bin", n);
}

inline Vectors sift_queries(size_t n) {
    return read_test_data("sift_sample_query.u8bin", n);
}

/// The message of the FaissException that f throws; fails if it does not.
template <class F>
std::string faiss_error(F&& f) {
    try {
        f();
    } catch (const faiss::FaissException& e) {
        return e.what();
    }
    ADD_FAILURE() << "no FaissException";
    return "";
}

#define EXPECT_FAISS_ERROR(statement, part)                          \
    do {                                                             \
        const std::string message = faiss_error([&] { statement; }); \
        EXPECT_NE(message.find(part), std::string::npos) << message; \
    } while (0)
