#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "faiss_ext/codes/AlignedBytes.h"

namespace faiss_ext {

/** The bytes of a list's blocks, aligned to 32 bytes: memory of its own, or
 * where they lie in a mapped file.
 *
 * The file is mapped privately: bytes may be written, which takes memory for
 * their page and leaves the file as it is. What gets longer is memory of its
 * own from then on, and so is a copy. */
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

    /// @param bytes  the first of n in a mapping, which it keeps alive
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
