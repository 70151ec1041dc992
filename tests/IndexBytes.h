#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include "faiss_ext/index_io.h"

/// Index files in memory.
namespace faiss_ext {

using Bytes = std::vector<uint8_t>;

inline Bytes written(const faiss::Index& index) {
    faiss::VectorIOWriter writer;
    faiss_ext::write_index(&index, &writer);
    return std::move(writer.data);
}

inline std::unique_ptr<faiss::Index> read_bytes(const Bytes& bytes) {
    faiss::VectorIOReader reader;
    reader.data = bytes;
    return std::unique_ptr<faiss::Index>(
            faiss_ext::read_index(static_cast<faiss::IOReader*>(&reader)));
}

inline std::unique_ptr<faiss::Index> read_by_faiss(const Bytes& bytes) {
    faiss::VectorIOReader reader;
    reader.data = bytes;
    return std::unique_ptr<faiss::Index>(faiss::read_index(&reader));
}

/// A pipe: gives bytes in order, and cannot go back.
struct Pipe : faiss::IOReader {
    Bytes data;
    size_t at = 0;

    explicit Pipe(Bytes bytes) : data(std::move(bytes)) {}

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        nitems = std::min(nitems, (data.size() - at) / size);
        std::copy_n(
                data.begin() + at, size * nitems, static_cast<uint8_t*>(ptr));
        at += size * nitems;
        return nitems;
    }
};

} // namespace faiss_ext
