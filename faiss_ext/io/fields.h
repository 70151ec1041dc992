#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>

#include "faiss_ext/codes/CodeBlocks.h"
#include "faiss_ext/io/FileMemory.h"
#include "faiss_ext/io/format.h"

/// The two archives of the GMM trailer: one visit writes what another reads.
namespace faiss_ext {

/** Writes fields in the order in which they are visited. Integers and enums
 * have eight bytes, bools one, floats their own; arrays their length first. */
struct FieldWriter {
    static constexpr bool reading = false;
    static constexpr uint32_t version = kVersion;
    faiss::IOWriter* out;
    size_t at; ///< in the index's file, of what is written next

    void raw(const void* data, size_t size) {
        FAISS_THROW_IF_NOT_FMT(
                size == 0 || (*out)(data, 1, size) == size,
                "write_index: cannot write %zu bytes to \"%s\"",
                size,
                out->name.c_str());
        at += size;
    }

    /// Zeros up to the next multiple of kBlocksAlignment, behind a byte that
    /// says how many: the file is read wherever it has come to lie.
    void align() {
        const uint8_t zeros[kBlocksAlignment] = {};
        const uint8_t n = uint8_t(-(at + 1) % kBlocksAlignment);
        raw(&n, 1);
        raw(zeros, n);
    }

    /// Bytes whose number is known to the reader.
    void blocks(const CodeBlocks& bytes, size_t /*expected*/) {
        raw(bytes.data(), bytes.size());
    }

    template <class T>
    void scalar(const T& value) {
        if constexpr (std::is_floating_point_v<T> || std::is_same_v<T, bool>) {
            raw(&value, sizeof(T));
        } else {
            const int64_t wide = static_cast<int64_t>(value);
            raw(&wide, sizeof(wide));
        }
    }

    /// An array whose length is known to the reader (or 0, if may_be_empty).
    template <class Array>
    void array(
            const char*,
            const Array& values,
            size_t /*expected*/,
            bool /*may_be_empty*/ = false) {
        scalar(values.size());
        raw(values.data(), values.size() * sizeof(*values.data()));
    }

    void text(const std::string& value) {
        scalar(value.size());
        raw(value.data(), value.size());
    }

    size_t count(size_t n, size_t /*least_bytes*/) {
        scalar(n);
        return n;
    }
};

struct FieldReader {
    static constexpr bool reading = true;
    faiss::IOReader* in;
    size_t left;                        ///< bytes that there should be
    uint32_t version = kVersion;        ///< of the trailer that they are from
    const FileMemory* mapped = nullptr; ///< the file, or nullptr

    void raw(void* data, size_t size) {
        FAISS_THROW_IF_NOT_FMT(
                size <= left && (size == 0 || (*in)(data, 1, size) == size),
                "GMM trailer: %zu bytes left, expected %zu",
                left,
                size);
        left -= size;
    }

    void align() {
        uint8_t n, zeros[kBlocksAlignment];
        raw(&n, 1);
        FAISS_THROW_IF_NOT_FMT(
                n < kBlocksAlignment,
                "GMM trailer: %d zeros before the codes, expected fewer than "
                "%zu",
                int(n),
                size_t(kBlocksAlignment));
        raw(zeros, n);
    }

    /// Of a mapped file they stay where they are.
    void blocks(CodeBlocks& bytes, size_t expected) {
        FAISS_THROW_IF_NOT_FMT(
                expected <= left,
                "GMM trailer: codes of %zu bytes, with %zu bytes left",
                expected,
                left);
        std::shared_ptr<uint8_t> there =
                mapped ? mapped->here(expected) : nullptr;
        if (there) {
            bytes.map(std::move(there), expected);
            mapped->skip(expected);
            left -= expected;
            return;
        }
        bytes.resize(expected);
        raw(bytes.data(), expected);
    }

    template <class T>
    void scalar(T& value) {
        if constexpr (std::is_same_v<T, bool>) {
            uint8_t byte;
            raw(&byte, 1);
            FAISS_THROW_IF_NOT_FMT(
                    byte <= 1, "GMM trailer: a bool is %d", int(byte));
            value = byte;
        } else if constexpr (std::is_floating_point_v<T>) {
            raw(&value, sizeof(T));
        } else {
            int64_t wide;
            raw(&wide, sizeof(wide));
            value = static_cast<T>(wide);
            FAISS_THROW_IF_NOT_FMT(
                    static_cast<int64_t>(value) == wide,
                    "GMM trailer: %zd is out of range",
                    ssize_t(wide));
        }
    }

    template <class Array>
    void array(
            const char* name,
            Array& values,
            size_t expected,
            bool may_be_empty = false) {
        size_t n;
        scalar(n);
        FAISS_THROW_IF_NOT_FMT(
                n == expected || (may_be_empty && n == 0),
                "GMM trailer: %s has %zu entries, expected %zu",
                name,
                n,
                expected);
        FAISS_THROW_IF_NOT_FMT(
                n <= left / sizeof(*values.data()),
                "GMM trailer: %s has %zu entries, with %zu bytes left",
                name,
                n,
                left);
        if constexpr (requires { values.resize(n); }) {
            values.resize(n);
        }
        raw(values.data(), n * sizeof(*values.data()));
    }

    void text(std::string& value) {
        const size_t n = count(0, 1);
        value.resize(n);
        raw(value.data(), n);
    }

    /// A number of things of at least so many bytes each.
    size_t count(size_t, size_t least_bytes) {
        size_t n;
        scalar(n);
        FAISS_THROW_IF_NOT_FMT(
                n <= left / least_bytes,
                "GMM trailer: %zu items, with %zu bytes left",
                n,
                left);
        return n;
    }
};

} // namespace faiss_ext
