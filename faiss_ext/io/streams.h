#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>

#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/io/format.h"

/// Readers and writers that the file's frame (format.h) is made with.
namespace faiss_ext {

/// Bytes that are read at once.
constexpr size_t kBlock = 1 << 20;

/// The outermost header, as far as the stamp.
using Head = std::array<uint8_t, kStampEnd>;

inline std::array<uint64_t, 2> stamp_of(const Head& head) {
    std::array<uint64_t, 2> words;
    memcpy(words.data(), head.data() + kStampBegin, sizeof(words));
    return words;
}

/// Counts what is written, and keeps the outermost header.
struct CountingWriter : faiss::IOWriter {
    Head head = {};
    size_t length = 0;

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        const size_t bytes = size * nitems;
        if (bytes > 0 && length < head.size()) {
            memcpy(head.data() + length,
                   ptr,
                   std::min(bytes, head.size() - length));
        }
        length += bytes;
        return nitems;
    }
};

/// The checksum of what is read.
struct ChecksumReader {
    faiss::IOReader* in;
    Checksum checksum = {};

    /// Reads that many bytes block by block; false if there are fewer.
    bool skip(uint64_t size) {
        std::vector<uint8_t> block(std::min<uint64_t>(kBlock, size));
        while (size > 0) {
            const size_t wanted = std::min<uint64_t>(block.size(), size);
            const size_t got = (*in)(block.data(), 1, wanted);
            checksum.add(block.data(), got);
            if (got < wanted) {
                return false;
            }
            size -= got;
        }
        return true;
    }
};

/// Passes all on, and keeps its checksum.
struct ChecksumWriter : faiss::IOWriter {
    faiss::IOWriter* out;
    Checksum checksum;

    explicit ChecksumWriter(faiss::IOWriter* out) : out(out) {
        name = out->name;
    }

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        checksum.add(ptr, size * nitems);
        return (*out)(ptr, size, nitems);
    }
};

/// Puts the stamp where it belongs, and passes all on.
struct StampingWriter : faiss::IOWriter {
    faiss::IOWriter* out;
    std::array<uint64_t, 2> stamp;
    Checksum checksum;

    StampingWriter(faiss::IOWriter* out, size_t stock_length)
            : out(out), stamp{kStamp, stock_length} {
        name = out->name;
    }

    size_t operator()(const void* ptr, size_t size, size_t nitems) override {
        const size_t bytes = size * nitems;
        const size_t at = checksum.length;
        if (at + bytes <= kStampBegin || at >= kStampEnd) {
            checksum.add(ptr, bytes);
            return (*out)(ptr, size, nitems);
        }
        std::vector<uint8_t> copy(bytes);
        memcpy(copy.data(), ptr, bytes);
        for (size_t i = 0; i < bytes; i++) {
            if (at + i >= kStampBegin && at + i < kStampEnd) {
                copy[i] = reinterpret_cast<const uint8_t*>(
                        stamp.data())[at + i - kStampBegin];
            }
        }
        checksum.add(copy.data(), bytes);
        return (*out)(copy.data(), size, nitems);
    }
};

/// A reader that can go back: a file or a vector; not a pipe.
struct Seekable {
    FILE* file = nullptr;
    faiss::VectorIOReader* vector = nullptr;

    explicit Seekable(faiss::IOReader* reader)
            : vector(dynamic_cast<faiss::VectorIOReader*>(reader)) {
        auto file_reader = dynamic_cast<faiss::FileIOReader*>(reader);
        if (file_reader && ftell(file_reader->f) >= 0) {
            file = file_reader->f;
        }
    }

    explicit operator bool() const {
        return file || vector;
    }

    size_t tell() const {
        return file ? size_t(ftell(file)) : vector->rp;
    }

    /// Behind the end is an error here or when it is read.
    void seek(size_t at) const {
        if (file) {
            FAISS_THROW_IF_NOT_FMT(
                    at <= size_t(INT64_MAX) && fseek(file, at, SEEK_SET) == 0,
                    "read_index: cannot go to byte %zu",
                    at);
        } else {
            FAISS_THROW_IF_NOT_FMT(
                    at <= vector->data.size(),
                    "read_index: byte %zu is behind the end",
                    at);
            vector->rp = at;
        }
    }
};

/// A reader whose first bytes were read already, from its beginning.
struct ReaderAfterHead : faiss::IOReader {
    faiss::IOReader* in;
    std::vector<uint8_t> head;
    size_t at = 0; ///< bytes given

    ReaderAfterHead(faiss::IOReader* in, std::vector<uint8_t> head)
            : in(in), head(std::move(head)) {
        name = in->name;
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        if (size == 0 || nitems == 0 || at >= head.size()) {
            return size == 0 || nitems == 0 ? nitems : (*in)(ptr, size, nitems);
        }
        const size_t bytes = size * nitems;
        size_t got = std::min(bytes, head.size() - at);
        memcpy(ptr, head.data() + at, got);
        at += got;
        if (got < bytes) {
            got += (*in)(static_cast<uint8_t*>(ptr) + got, 1, bytes - got);
        }
        return got / size;
    }
};

} // namespace faiss_ext
