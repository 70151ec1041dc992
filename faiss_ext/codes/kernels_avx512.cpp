#include "faiss_ext/codes/kernels_shared.h"

#include <immintrin.h>

namespace faiss_ext {
namespace {

/// As in kernels_avx2.cpp, of two groups.
inline __m512i look_up(__m512i code, __m512i low, __m512i high) {
    const __m512i mask = _mm512_set1_epi8(15);
    return _mm512_add_epi8(
            _mm512_shuffle_epi8(low, _mm512_and_si512(code, mask)),
            _mm512_shuffle_epi8(
                    high, _mm512_and_si512(_mm512_srli_epi16(code, 4), mask)));
}

/// Tables of any size.
struct TablesInMemory : PlainTables {
    using PlainTables::PlainTables;

    __m512i look_up(const uint8_t* block, size_t g) const {
        return faiss_ext::look_up(
                _mm512_loadu_si512(block + g * 32),
                _mm512_loadu_si512(low + g * 32),
                _mm512_loadu_si512(high + g * 32));
    }
    /// add(bytes) of all groups, two or four at a time
    template <bool pairs, class Add>
    void for_each(const uint8_t* block, size_t groups, const Add& add) const {
        size_t g = 0;
        if (pairs) {
            for (; g + 4 <= groups; g += 4) {
                add(_mm512_add_epi8(look_up(block, g), look_up(block, g + 2)));
            }
        }
        for (; g + 2 <= groups; g += 2) {
            add(look_up(block, g));
        }
        if (g < groups) {
            const __mmask64 half = 0xffffffffu;
            add(faiss_ext::look_up(
                    _mm512_maskz_loadu_epi8(half, block + g * 32),
                    _mm512_maskz_loadu_epi8(half, low + g * 32),
                    _mm512_maskz_loadu_epi8(half, high + g * 32)));
        }
    }
};

/// Those of so many groups, a multiple of four, in registers.
template <int kGroups>
struct TablesInRegisters {
    __m512i low[kGroups / 2], high[kGroups / 2];

    TablesInRegisters(const uint8_t* tables, size_t) {
#pragma GCC unroll 12
        for (int h = 0; h < kGroups / 2; h++) {
            low[h] = _mm512_loadu_si512(tables + h * 64);
            high[h] = _mm512_loadu_si512(tables + kGroups * 32 + h * 64);
        }
    }
    template <bool pairs, class Add>
    void for_each(const uint8_t* block, size_t, const Add& add) const {
#pragma GCC unroll 6
        for (int h = 0; h < kGroups / 2; h += 2) {
            const __m512i first = look_up(
                    _mm512_loadu_si512(block + h * 64), low[h], high[h]);
            const __m512i second =
                    look_up(_mm512_loadu_si512(block + h * 64 + 64),
                            low[h + 1],
                            high[h + 1]);
            if (pairs) {
                add(_mm512_add_epi8(first, second));
            } else {
                add(first);
                add(second);
            }
        }
    }
};

/// f(type) for the tables of so many groups.
template <class F>
auto with_tables(size_t groups, const F& f) {
    switch (groups) {
        case 8:
            return f.template operator()<TablesInRegisters<8>>();
        case 12:
            return f.template operator()<TablesInRegisters<12>>();
        case 16:
            return f.template operator()<TablesInRegisters<16>>();
        case 24:
            return f.template operator()<TablesInRegisters<24>>();
        default:
            return f.template operator()<TablesInMemory>();
    }
}

/// The scores and the slacks of a block's entries.
struct BlockLanes {
    alignas(64) float score[kBlockEntries];
    alignas(64) float slack[kBlockEntries];

    void set(unsigned mask, float its_score, float its_slack) {
        _mm512_mask_store_ps(score, __mmask16(mask), _mm512_set1_ps(its_score));
        _mm512_mask_store_ps(slack, __mmask16(mask), _mm512_set1_ps(its_slack));
    }
};

/// Without a branch for up to five: lanes and estimates are compressed, and
/// their words interleaved.
inline CodeCandidate* append(
        unsigned mask,
        const float* estimate,
        uint32_t list,
        uint32_t entry,
        CodeCandidate* out) {
    const int n = __builtin_popcount(mask);
    if (__builtin_expect(n > 5, 0)) {
        return append_each(mask, estimate, list, entry, out);
    }
    const __m512i iota = _mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i bounds = _mm512_maskz_compress_epi32(
            __mmask16(mask), _mm512_load_si512(estimate));
    const __m512i entries = _mm512_maskz_compress_epi32(
            __mmask16(mask),
            _mm512_add_epi32(iota, _mm512_set1_epi32(int(entry))));
    const __m512i order = _mm512_setr_epi32(
            0, 0, 16, 1, 0, 17, 2, 0, 18, 3, 0, 19, 4, 0, 20, 0);
    const __m512i words = _mm512_mask_mov_epi32(
            _mm512_permutex2var_epi32(bounds, order, entries),
            __mmask16(0x2492),
            _mm512_set1_epi32(int(list)));
    _mm512_storeu_si512(out, words);
    return out + n;
}

/// As in kernels_avx2.cpp.
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
    __m512i all = _mm512_setzero_si512(), odd = all;
    tables.template for_each<pairs>(block, groups, [&](__m512i bytes) {
        all = _mm512_add_epi16(all, bytes);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(bytes, 8));
    });
    const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
    const __m256i e2 = _mm256_add_epi16(
            _mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
    const __m256i o2 = _mm256_add_epi16(
            _mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
    const __m128i e = _mm_add_epi16(
            _mm256_castsi256_si128(e2), _mm256_extracti128_si256(e2, 1));
    const __m128i o = _mm_add_epi16(
            _mm256_castsi256_si128(o2), _mm256_extracti128_si256(o2, 1));
    const __m256i words = _mm256_set_m128i(
            _mm_unpackhi_epi16(e, o), _mm_unpacklo_epi16(e, o));
    const __m512 product = _mm512_add_ps(
            _mm512_mul_ps(
                    _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(words)),
                    _mm512_set1_ps(step)),
            _mm512_set1_ps(base));
    const float* terms = reinterpret_cast<const float*>(block + groups * 32);
    const __m512 a = _mm512_loadu_ps(terms);
    const __m512 score = _mm512_load_ps(lanes.score);
    const __m512 own =
            similarity ? _mm512_mul_ps(a, score) : _mm512_add_ps(a, score);
    const __m512 v = _mm512_add_ps(
            _mm512_mul_ps(
                    _mm512_loadu_ps(terms + 16),
                    _mm512_add_ps(product, _mm512_load_ps(lanes.slack))),
            own);
    _mm512_store_ps(estimate, v);
    return _mm512_cmp_ps_mask(v, _mm512_set1_ps(threshold), _CMP_LT_OQ);
}

size_t places(
        size_t n,
        const uint16_t* value,
        uint16_t low,
        uint16_t width,
        uint32_t* out) {
    __m512i at = _mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t m = 0, j = 0;
    for (; j + 16 <= n; j += 16) {
        const __m256i v =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + j));
        const __mmask16 in = _mm256_cmple_epu16_mask(
                _mm256_sub_epi16(v, _mm256_set1_epi16(int16_t(low))),
                _mm256_set1_epi16(int16_t(width)));
        _mm512_storeu_si512(out + m, _mm512_maskz_compress_epi32(in, at));
        m += __builtin_popcount(in);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
    return places_from(j, m, n, value, low, width, out);
}

} // namespace
} // namespace faiss_ext

#include "faiss_ext/codes/kernels_impl.h"

namespace faiss_ext {
extern const CodeKernels code_kernels_avx512 = kTable;
}
