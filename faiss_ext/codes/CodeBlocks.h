#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "faiss_ext/codes/AlignedBytes.h"

namespace faiss_ext {

/** The bytes of the blocks of one list, aligned to 32 bytes: memory of its own,
 * or mapped from a file.
 *
 * A mapping is private: bytes may be written, which takes memory for their
 * page and leaves the file as it is. Bytes that get longer, and copies, are
 * memory of their own. */
class CodeBlocks {
public:
    CodeBlocks() = default;
    CodeBlocks(const CodeBlocks& other)
            : own(other.data(), other.data() + other.size()) {}
    CodeBlocks(CodeBlocks&& other) noexcept {
        swap(other);
    }
    CodeBlocks& operator=(CodeBlocks other) noexcept {
        swap(other);
        return *this;
    }

    uint8_t* data() {
        return mapped ? mapped.get() : own.data();
    }
    const uint8_t* data() const {
        return mapped ? mapped.get() : own.data();
    }
    size_t size() const {
        return mapped ? n_mapped : own.size();
    }
    bool empty() const {
        return size() == 0;
    }

    /// Throws bad_alloc, and then nothing has changed; never if it gets
    /// shorter.
    void resize(size_t n);

    /// Becomes n bytes of a mapping.
    ///
    /// @param bytes  the first of them; keeps the mapping alive
    void map(std::shared_ptr<uint8_t> bytes, size_t n) {
        own = AlignedBytes();
        mapped = std::move(bytes);
        n_mapped = n;
    }

    bool operator==(const CodeBlocks& other) const {
        return std::equal(
                data(),
                data() + size(),
                other.data(),
                other.data() + other.size());
    }

private:
    void swap(CodeBlocks& other) noexcept {
        own.swap(other.own);
        mapped.swap(other.mapped);
        std::swap(n_mapped, other.n_mapped);
    }

    AlignedBytes own;
    std::shared_ptr<uint8_t> mapped; ///< or nullptr
    size_t n_mapped = 0;
};

} // namespace faiss_ext
