#pragma once

#include <cstddef>

/// Compiled for AVX-512, AVX2 and the baseline, and chosen when the program
/// is loaded; the loops inside are left to the compiler's vectoriser. Not under
/// ThreadSanitizer, which is not there yet when they are chosen.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
        !defined(__SANITIZE_THREAD__)
#define FAISS_EXT_SIMD_CLONES                                                \
    __attribute__((                                                          \
            target_clones("arch=skylake-avx512", "arch=haswell", "default"), \
            optimize("O3", "fast-math")))
#else
#define FAISS_EXT_SIMD_CLONES
#endif

namespace faiss_ext {

/// Asks for each cache line of so many bytes, which will be read soon.
inline void prefetch_bytes(const void* from, size_t n) {
    const char* bytes = static_cast<const char*>(from);
    for (size_t b = 0; b < n; b += 64) {
        __builtin_prefetch(bytes + b);
    }
}

} // namespace faiss_ext
