#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace faiss_ext {

/// Memory in whole cache lines.
template <class T>
struct CacheLineAllocator {
    using value_type = T;
    CacheLineAllocator() = default;
    template <class U>
    CacheLineAllocator(const CacheLineAllocator<U>&) {}
    T* allocate(size_t n) {
        return static_cast<T*>(
                ::operator new(n * sizeof(T), std::align_val_t(64)));
    }
    void deallocate(T* p, size_t) {
        ::operator delete(p, std::align_val_t(64));
    }
    bool operator==(const CacheLineAllocator&) const {
        return true;
    }
};

using AlignedBytes = std::vector<uint8_t, CacheLineAllocator<uint8_t>>;

} // namespace faiss_ext
