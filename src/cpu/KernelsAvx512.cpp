#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gmm {
namespace {

struct V {
    __m512 x;

    static V all(float value) {
        return {_mm512_set1_ps(value)};
    }
    static V load(const float* from) {
        return {_mm512_loadu_ps(from)};
    }
    void store(float* to) const {
        _mm512_storeu_ps(to, x);
    }
};

inline V operator+(V a, V b) {
    return {_mm512_add_ps(a.x, b.x)};
}
inline V operator-(V a, V b) {
    return {_mm512_sub_ps(a.x, b.x)};
}
inline V operator*(V a, V b) {
    return {_mm512_mul_ps(a.x, b.x)};
}
inline V fma(V a, V b, V c) {
    return {_mm512_fmadd_ps(a.x, b.x, c.x)};
}
inline V fms(V a, V b, V c) {
    return {_mm512_fmsub_ps(a.x, b.x, c.x)};
}
inline V max(V a, V b) {
    return {_mm512_max_ps(a.x, b.x)};
}
inline V round(V a) {
    return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT)};
}
inline V times_power_of_two(V a, V n) {
    return {_mm512_scalef_ps(a.x, n.x)};
}
inline uint32_t at_least(V a, V b) {
    return _mm512_cmp_ps_mask(a.x, b.x, _CMP_GE_OQ);
}
inline V without(V a, uint32_t lanes) {
    return {_mm512_maskz_mov_ps(__mmask16(~lanes), a.x)};
}

// 24 of 32 registers.
constexpr size_t kProductSums = 24, kProductRows = 12;
// Sums and a column fit into the registers.
constexpr int kSquareRows = 12;
// Rows of a tile of moments(): sums that are on their way.
constexpr size_t kMomentTall = 8;
// Of mahalanobis(), times four columns: likewise.
constexpr size_t kRowVectors = 2;

} // namespace
} // namespace gmm

#include "KernelsImpl.h"

namespace gmm {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = table;

} // namespace gmm
