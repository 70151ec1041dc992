#include "faiss_ext/codes/kernels_plain.h"

#include <immintrin.h>

namespace faiss_ext {
namespace {

/// The tables' entries that the low and the high halves of a group's bytes
/// name, added.
inline __m256i look_up(
        const uint8_t* codes, const uint8_t* low, const uint8_t* high) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i code =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i of_low = _mm256_shuffle_epi8(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)),
            _mm256_and_si256(code, mask));
    const __m256i of_high = _mm256_shuffle_epi8(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)),
            _mm256_and_si256(_mm256_srli_epi16(code, 4), mask));
    return _mm256_add_epi8(of_low, of_high);
}

/// The scores and the slacks of a block's entries.
struct BlockLanes {
    __m256 score[2], slack[2];

    void set(unsigned mask, float its_score, float its_slack) {
        const __m256 new_score = _mm256_set1_ps(its_score);
        const __m256 new_slack = _mm256_set1_ps(its_slack);
        const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        for (int h = 0; h < 2; h++) {
            const __m256i own = _mm256_and_si256(
                    _mm256_set1_epi32(int(mask >> 8 * h)), bits);
            const __m256 in =
                    _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bits));
            score[h] = _mm256_blendv_ps(score[h], new_score, in);
            slack[h] = _mm256_blendv_ps(slack[h], new_slack, in);
        }
    }
};

/// As in kernels_portable.cpp. Bytes are added to words by their parity: `all`
/// holds even ones plus 256 times odd ones, and `odd` those alone.
template <bool similarity, bool pairs, class Tables>
inline unsigned below_threshold(
        const uint8_t* block,
        size_t groups,
        const Tables& tables,
        float base,
        float step,
        const BlockLanes& lanes,
        float threshold,
        float* estimate) {
    const uint8_t *low = tables.low, *high = tables.high;
    __m256i all = _mm256_setzero_si256(), odd = all;
    auto widen = [&](__m256i bytes) {
        all = _mm256_add_epi16(all, bytes);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
    };
    size_t g = 0;
    if (pairs) {
        for (; g + 2 <= groups; g += 2) {
            widen(_mm256_add_epi8(
                    look_up(block + g * 32, low + g * 32, high + g * 32),
                    look_up(block + g * 32 + 32,
                            low + g * 32 + 32,
                            high + g * 32 + 32)));
        }
    }
    for (; g < groups; g++) {
        widen(look_up(block + g * 32, low + g * 32, high + g * 32));
    }
    const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
    const __m128i e = _mm_add_epi16(
            _mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m128i o = _mm_add_epi16(
            _mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    const __m128i words[2] = {
            _mm_unpacklo_epi16(e, o), _mm_unpackhi_epi16(e, o)};
    const float* terms = reinterpret_cast<const float*>(block + groups * 32);
    const __m256 t = _mm256_set1_ps(threshold);
    unsigned mask = 0;
    for (int h = 0; h < 2; h++) {
        const __m256 sum = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(words[h]));
        const __m256 product = _mm256_add_ps(
                _mm256_mul_ps(sum, _mm256_set1_ps(step)), _mm256_set1_ps(base));
        const __m256 a = _mm256_load_ps(terms + 8 * h);
        const __m256 own = similarity ? _mm256_mul_ps(a, lanes.score[h])
                                      : _mm256_add_ps(a, lanes.score[h]);
        const __m256 v = _mm256_add_ps(
                _mm256_mul_ps(
                        _mm256_load_ps(terms + 16 + 8 * h),
                        _mm256_add_ps(product, lanes.slack[h])),
                own);
        _mm256_store_ps(estimate + 8 * h, v);
        mask |= unsigned(_mm256_movemask_ps(_mm256_cmp_ps(v, t, _CMP_LT_OQ)))
                << 8 * h;
    }
    return mask;
}

} // namespace
} // namespace faiss_ext

#include "faiss_ext/codes/kernels_impl.h"

namespace faiss_ext {
extern const CodeKernels code_kernels_avx2 = kTable;
}
