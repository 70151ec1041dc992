#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

FAISS_EXT_SIMD_CLONES
float smallest(const float* x, size_t n) {
    float least = x[0];
    for (size_t i = 1; i < n; i++) {
        least = x[i] < least ? x[i] : least;
    }
    return least;
}

FAISS_EXT_SIMD_CLONES
float largest(const float* x, size_t n) {
    float most = x[0];
    for (size_t i = 1; i < n; i++) {
        most = x[i] > most ? x[i] : most;
    }
    return most;
}

} // namespace faiss_ext
