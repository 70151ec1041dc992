#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/impl/FaissException.h>

/// Vectors in memory as floats.
struct Vectors {
    size_t n = 0;
    size_t d = 0;
    std::vector<float> x; ///< size n * d

    const float* row(size_t i) const {
        return x.data() + i * d;
    }
};

/// At most n vectors of a .u8bin or .fbin file of bench/data.
inline Vectors read_test_data(const std::string& name, size_t n) {
    std::ifstream file(std::string(TEST_DATA "/") + name, std::ios::binary);
    uint32_t header[2];
    file.read(reinterpret_cast<char*>(header), sizeof(header));
    if (!file) {
        throw std::runtime_error("cannot read " TEST_DATA "/" + name);
    }
    Vectors out;
    out.n = std::min<size_t>(n, header[0]);
    out.d = header[1];
    out.x.resize(out.n * out.d);
    if (name.ends_with(".fbin")) {
        file.read(
                reinterpret_cast<char*>(out.x.data()),
                out.x.size() * sizeof(float));
    } else {
        std::vector<uint8_t> bytes(out.x.size());
        file.read(reinterpret_cast<char*>(bytes.data()), bytes.size());
        std::copy(bytes.begin(), bytes.end(), out.x.begin());
    }
    if (!file) {
        throw std::runtime_error("too short: " TEST_DATA "/" + name);
    }
    return out;
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
