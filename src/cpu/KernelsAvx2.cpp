#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gmm {
namespace {

struct V {
    __m256 low, high;

    static V all(float value) {
        return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
    }
    static V load(const float* from) {
        return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
    }
    void store(float* to) const {
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to + 8, high);
    }
};

inline V operator+(V a, V b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline V operator-(V a, V b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline V operator*(V a, V b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline V fma(V a, V b, V c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low),
            _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline V fms(V a, V b, V c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low),
            _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline V max(V a, V b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline __m256 round_half(__m256 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline V round(V a) {
    return {round_half(a.low), round_half(a.high)};
}
inline __m256 times_power_of_two_half(__m256 a, __m256 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(
            _mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
inline V times_power_of_two(V a, V n) {
    return {times_power_of_two_half(a.low, n.low),
            times_power_of_two_half(a.high, n.high)};
}
inline uint32_t at_least(V a, V b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ));
    const int high =
            _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
    return uint32_t(low | high << 8);
}
inline __m256 without_half(__m256 a, uint32_t lanes) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(int(lanes)), bit);
    return _mm256_andnot_ps(
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)), a);
}
inline V without(V a, uint32_t lanes) {
    return {without_half(a.low, lanes), without_half(a.high, lanes >> 8)};
}

// 12 of 16 registers: two make a V.
constexpr size_t kProductSums = 6, kProductRows = 6;
// Sums and a column fit into the registers.
constexpr int kSquareRows = 6;
// Rows of a tile of moments(): sums that are on their way.
constexpr size_t kMomentTall = 4;
// Of mahalanobis(), times four columns: likewise.
constexpr size_t kRowVectors = 1;

} // namespace
} // namespace gmm

#include "KernelsImpl.h"

namespace gmm {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = table;

} // namespace gmm
