// Compiled for AVX-512 with products of bytes (VNNI); what KernelsImpl.h says
// about standard headers holds here too.

#include <immintrin.h>

#include "ByteKernels.h"
#include "Kernels.h"

namespace gmm {
namespace {

// With __m512i, of other elements, GCC 12 keeps sums in memory.
using Ints = int32_t __attribute__((vector_size(64)));

// The product of R rows and P panels, held in registers: 24 of 32 at most.
template <size_t R, size_t P>
void tile(
        size_t quads,
        const int8_t* q,
        const int32_t* offset,
        const uint8_t* means,
        float* out,
        size_t stride) {
    Ints sum[R][P] = {};
    for (size_t j = 0; j < quads; j++) {
        __m512i mean[P];
        for (size_t p = 0; p < P; p++) {
            mean[p] = _mm512_loadu_si512(means + (p * quads + j) * 4 * kLanes);
        }
        for (size_t i = 0; i < R; i++) {
            int32_t four;
            __builtin_memcpy(&four, q + (j * ByteKernels::kRows + i) * 4, 4);
            const __m512i y = _mm512_set1_epi32(four);
            for (size_t p = 0; p < P; p++) {
                sum[i][p] = Ints(
                        _mm512_dpbusd_epi32(__m512i(sum[i][p]), mean[p], y));
            }
        }
    }
    for (size_t i = 0; i < R; i++) {
        for (size_t p = 0; p < P; p++) {
            _mm512_storeu_ps(
                    out + i * stride + p * kLanes,
                    _mm512_cvtepi32_ps(__m512i(sum[i][p] - offset[i])));
        }
    }
}

template <size_t R = ByteKernels::kRows>
void product(
        size_t rows,
        size_t quads,
        const int8_t* q,
        const int32_t* offset,
        size_t panels,
        const uint8_t* means,
        float* out,
        size_t stride) {
    if constexpr (R > 1) {
        if (rows < R) {
            product<R - 1>(rows, quads, q, offset, panels, means, out, stride);
            return;
        }
    }
    for (; panels >= 2; panels -= 2) {
        tile<R, 2>(quads, q, offset, means, out, stride);
        means += 2 * quads * 4 * kLanes;
        out += 2 * kLanes;
    }
    if (panels > 0) {
        tile<R, 1>(quads, q, offset, means, out, stride);
    }
}

// Less has no bytes but zeros: its inverse would overflow.
constexpr float kLeastLargest = 1e-30f;

ByteKernels::Quantised quantise(size_t d, const float* y, int8_t* out) {
    constexpr size_t kStep = 16;
    auto lanes = [&](size_t j) {
        return __mmask16(d - j < kStep ? (1u << (d - j)) - 1 : 0xffff);
    };
    __m512 top = _mm512_setzero_ps();
    for (size_t j = 0; j < d; j += kStep) {
        top = _mm512_max_ps(
                top, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(j), y + j)));
    }
    const float largest = _mm512_reduce_max_ps(top);
    // Infinite rows are refused elsewhere.
    const bool usable = largest > kLeastLargest && largest < __builtin_inff();
    const __m512 scale = _mm512_set1_ps(usable ? largest / 127 : 0);
    const __m512 inverse = _mm512_set1_ps(usable ? 127 / largest : 0);
    __m512 error = _mm512_setzero_ps();
    __m512i sum = _mm512_setzero_si512();
    for (size_t j = 0; j < d; j += kStep) {
        const __m512 value = _mm512_maskz_loadu_ps(lanes(j), y + j);
        const __m512i byte = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
        const __m512 off =
                _mm512_fnmadd_ps(_mm512_cvtepi32_ps(byte), scale, value);
        error = _mm512_fmadd_ps(off, off, error);
        sum = _mm512_add_epi32(sum, byte);
        _mm512_mask_cvtepi32_storeu_epi8(out + j, lanes(j), byte);
    }
    return {usable ? largest / 127 : 0,
            _mm512_cvtss_f32(_mm512_sqrt_ps(
                    _mm512_set1_ps(_mm512_reduce_add_ps(error)))),
            _mm512_reduce_add_epi32(sum)};
}

float bounds(size_t k, const ByteKernels::Terms& t, float* v) {
    const __m512 scale = _mm512_set1_ps(t.scale);
    const __m512 error = _mm512_set1_ps(t.error);
    const __m512 norm = _mm512_set1_ps(t.norm);
    const __m512 minus_half_norm = _mm512_set1_ps(-t.half_norm);
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (size_t i = 0; i < k; i += kLanes) {
        const __m512 value = _mm512_fmadd_ps(
                _mm512_mul_ps(_mm512_loadu_ps(v + i), scale),
                _mm512_loadu_ps(t.scales + i),
                _mm512_fmadd_ps(
                        minus_half_norm,
                        _mm512_loadu_ps(t.precision + i),
                        _mm512_loadu_ps(t.bias + i)));
        const __m512 slack = _mm512_fmadd_ps(
                error,
                _mm512_loadu_ps(t.norms + i),
                _mm512_mul_ps(norm, _mm512_loadu_ps(t.errors + i)));
        largest = _mm512_max_ps(largest, _mm512_sub_ps(value, slack));
        _mm512_storeu_ps(v + i, _mm512_add_ps(value, slack));
    }
    return _mm512_reduce_max_ps(largest);
}

size_t select(size_t k, const float* v, float threshold, int32_t* index) {
    const __m512 least = _mm512_set1_ps(threshold);
    const __m512i lane = _mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t n = 0;
    for (size_t i = 0; i < k; i += kLanes) {
        const __mmask16 found =
                _mm512_cmp_ps_mask(_mm512_loadu_ps(v + i), least, _CMP_GE_OQ);
        if (found != 0) {
            _mm512_mask_compressstoreu_epi32(
                    index + n,
                    found,
                    _mm512_add_epi32(lane, _mm512_set1_epi32(int32_t(i))));
            n += size_t(__builtin_popcount(found));
        }
    }
    return n;
}

float distance(size_t d, const float* y, const float* mean) {
    __m512 sum = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        const __m512 off = _mm512_sub_ps(
                _mm512_loadu_ps(y + j), _mm512_loadu_ps(mean + j));
        sum = _mm512_fmadd_ps(off, off, sum);
    }
    if (j < d) {
        const auto left = __mmask16((1u << (d - j)) - 1);
        const __m512 off = _mm512_sub_ps(
                _mm512_maskz_loadu_ps(left, y + j),
                _mm512_maskz_loadu_ps(left, mean + j));
        sum = _mm512_fmadd_ps(off, off, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

} // namespace

extern const ByteKernels kernels_vnni;
const ByteKernels kernels_vnni = {
        quantise, product<>, bounds, select, distance};

} // namespace gmm
