// Included by one source file for each instruction set, which defines
// BlockLanes and below_threshold first and is compiled with that set's flags
// and without fused products. Standard headers with inline functions stay out:
// the linker might keep the copy that was compiled for a newer processor than
// the one the program runs on.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

constexpr size_t kLanes = 16;

/// Sums lanes pairwise: one order for all instruction sets.
float sum_lanes(const float* lanes) {
    float s[kLanes];
    for (size_t l = 0; l < kLanes; l++) {
        s[l] = lanes[l];
    }
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; l++) {
            s[l] += s[l + half];
        }
    }
    return s[0];
}

float squared_distance(const float* x, const float* y, size_t d) {
    alignas(64) float acc[kLanes] = {};
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        for (size_t l = 0; l < kLanes; l++) {
            const float t = x[j + l] - y[j + l];
            acc[l] += t * t;
        }
    }
    for (size_t l = 0; j + l < d; l++) {
        const float t = x[j + l] - y[j + l];
        acc[l] += t * t;
    }
    return sum_lanes(acc);
}

float inner_product(const float* x, const float* y, size_t d) {
    alignas(64) float acc[kLanes] = {};
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        for (size_t l = 0; l < kLanes; l++) {
            acc[l] += x[j + l] * y[j + l];
        }
    }
    for (size_t l = 0; j + l < d; l++) {
        acc[l] += x[j + l] * y[j + l];
    }
    return sum_lanes(acc);
}

void all_distances(
        bool similarity,
        const float* x,
        const float* y,
        size_t n,
        size_t d,
        float* out) {
    if (similarity) {
        for (size_t i = 0; i < n; i++) {
            out[i] = -inner_product(x, y + i * d, d);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            out[i] = squared_distance(x, y + i * d, d);
        }
    }
}

void hadamard(float* x, size_t n, float* scratch) {
    // Each stage reads halves and writes pairs, so that all are alike.
    float scale = 1;
    float *from = x, *to = scratch;
    for (size_t m = 1; m < n; m *= 2) {
        scale *= 0.70710678118654752f;
        const float* __restrict a = from;
        const float* __restrict b = from + n / 2;
        float* __restrict out = to;
        for (size_t j = 0; j < n / 2; j++) {
            out[2 * j] = a[j] + b[j];
            out[2 * j + 1] = a[j] - b[j];
        }
        float* t = from;
        from = to;
        to = t;
    }
    for (size_t i = 0; i < n; i++) {
        x[i] = from[i] * scale;
    }
}

void distances(
        size_t n,
        const float* products,
        const float* norms,
        float scale,
        float offset,
        float* out,
        float* least,
        float* largest) {
    float low[kLanes], high[kLanes];
    for (size_t l = 0; l < kLanes; l++) {
        low[l] = __builtin_inff();
        high[l] = 0;
    }
    auto one = [&](size_t j, size_t l) {
        float v = products[j] * scale + (offset + norms[j]);
        v = v > 0 ? v : 0;
        out[j] = v;
        low[l] = v < low[l] ? v : low[l];
        high[l] = v > high[l] ? v : high[l];
    };
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        for (size_t l = 0; l < kLanes; l++) {
            one(j + l, l);
        }
    }
    for (; j < n; j++) {
        one(j, 0);
    }
    *least = low[0];
    *largest = high[0];
    for (size_t l = 1; l < kLanes; l++) {
        *least = low[l] < *least ? low[l] : *least;
        *largest = high[l] > *largest ? high[l] : *largest;
    }
}

size_t largest_difference(size_t n, const float* x, const float* y) {
    float best[kLanes];
    for (size_t l = 0; l < kLanes; l++) {
        best[l] = -__builtin_inff();
    }
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        for (size_t l = 0; l < kLanes; l++) {
            const float v = x[j + l] - y[j + l];
            best[l] = v > best[l] ? v : best[l];
        }
    }
    float most = best[0];
    for (size_t l = 1; l < kLanes; l++) {
        most = best[l] > most ? best[l] : most;
    }
    for (; j < n; j++) {
        const float v = x[j] - y[j];
        most = v > most ? v : most;
    }
    for (j = 0; j + 1 < n; j++) {
        if (x[j] - y[j] == most) {
            break;
        }
    }
    return j;
}

void score_cells(
        size_t n,
        const float* distances,
        const int32_t* partner,
        const float* gap,
        float a,
        float own,
        float weight,
        float* out,
        float* least,
        float* largest) {
    float low = *least, high = *largest;
    for (size_t l = 0; l < n; l++) {
        out[l] = own + a * distances[partner[l]] - weight * gap[l];
    }
    for (size_t l = 0; l < n; l++) {
        low = out[l] < low ? out[l] : low;
        high = out[l] > high ? out[l] : high;
    }
    *least = low;
    *largest = high;
}

void buckets(
        size_t n, const float* x, float least, float scale, uint16_t* bucket) {
    for (size_t j = 0; j < n; j++) {
        bucket[j] = uint16_t(int32_t((x[j] - least) * scale));
    }
}

size_t places(
        size_t n,
        const uint16_t* value,
        uint16_t low,
        uint16_t width,
        uint32_t* out) {
    size_t m = 0;
    for (size_t j = 0; j < n; j++) {
        out[m] = uint32_t(j); // overwritten by the next: no branch to guess
        m += uint16_t(value[j] - low) <= width;
    }
    return m;
}

/// The largest of the tables' entries: sums of four (two where codes have four
/// bits) stay in a byte, and those of all columns in 16 bits.
float largest_entry(const CodeShape& shape) {
    const float of_bytes = shape.bits == 4 ? 127 : 63;
    const float of_words = float(65535 / (4 * shape.groups));
    return of_bytes < of_words ? of_bytes : of_words;
}

/// <q, o> of dimension t of a column with value n, over q: (level - middle).
template <int bits>
float level_of(size_t n, int t) {
    return float(n >> (t * bits) & ((1u << bits) - 1)) -
            0.5f * ((1 << bits) - 1);
}

template <int bits>
void make_tables_of(
        const CodeShape& shape,
        const float* q,
        uint8_t* tables,
        float* base,
        float* step) {
    constexpr int dims = 4 / bits; // of a column
    constexpr float top = 0.5f * ((1 << bits) - 1);
    float coefficient[dims][16];
    for (int t = 0; t < dims; t++) {
        for (size_t n = 0; n < 16; n++) {
            coefficient[t][n] = level_of<bits>(n, t);
        }
    }
    const size_t columns = 4 * shape.groups;
    float most = 0, sum = 0;
    for (size_t c = 0; c < columns; c++) {
        float reach = 0;
        for (int t = 0; t < dims; t++) {
            const size_t j = c * dims + t;
            reach += j < shape.d ? __builtin_fabsf(q[j]) : 0;
        }
        sum += reach;
        most = reach > most ? reach : most;
    }
    *base = -top * sum;
    const float width = 2 * top * most;
    const float scale = width > 0 ? largest_entry(shape) / width : 0;
    *step = width > 0 ? width / largest_entry(shape) : 0;
    for (size_t c = 0; c < columns; c++) {
        float v[dims];
        float reach = 0;
        for (int t = 0; t < dims; t++) {
            const size_t j = c * dims + t;
            v[t] = j < shape.d ? q[j] * scale : 0;
            reach += __builtin_fabsf(v[t]);
        }
        const float low = top * reach + 0.5f;
        uint8_t* out = tables + (c & 2 ? shape.groups * 32 : 0) + c / 4 * 32 +
                (c & 1) * 16;
        for (size_t n = 0; n < 16; n++) {
            float s = low;
            for (int t = 0; t < dims; t++) {
                s += v[t] * coefficient[t][n];
            }
            out[n] = uint8_t(int32_t(s));
        }
    }
}

void make_tables(
        const CodeShape& shape,
        const float* q,
        uint8_t* tables,
        float* base,
        float* step) {
    switch (shape.bits) {
        case 1:
            return make_tables_of<1>(shape, q, tables, base, step);
        case 2:
            return make_tables_of<2>(shape, q, tables, base, step);
        default:
            return make_tables_of<4>(shape, q, tables, base, step);
    }
}

/// Levels at a time.
constexpr size_t kLevels = 64;

template <int bits>
float code_product_of(
        const CodeShape& shape,
        const float* q,
        const uint8_t* block,
        size_t lane) {
    constexpr size_t dims = 4 / bits;             // of a column
    constexpr size_t step = kLevels / (2 * dims); // bytes
    constexpr uint8_t top = (1 << bits) - 1;
    alignas(64) float acc[kLanes] = {};
    for (size_t begin = 0; begin < shape.d; begin += kLevels) {
        const size_t first = begin / (2 * dims);
        const size_t left = shape.groups * 2 - first;
        const size_t n = left < step ? left : step;
        uint8_t bytes[step] = {};
        for (size_t b = 0; b < n; b++) {
            bytes[b] = block[(first + b) * kBlockEntries + lane];
        }
        alignas(64) float level[kLevels];
        for (size_t g = 0; g < step / 2; g++) {
            for (size_t c = 0; c < 4; c++) {
                const uint8_t nibble = c < 2 ? bytes[2 * g + c] & 15
                                             : bytes[2 * g + c - 2] >> 4;
                for (size_t t = 0; t < dims; t++) {
                    level[(4 * g + c) * dims + t] =
                            float(nibble >> (t * bits) & top);
                }
            }
        }
        const size_t size =
                shape.d - begin < kLevels ? shape.d - begin : kLevels;
        size_t j = 0;
        for (; j + kLanes <= size; j += kLanes) {
            for (size_t l = 0; l < kLanes; l++) {
                acc[l] += q[begin + j + l] * (level[j + l] - 0.5f * top);
            }
        }
        for (size_t l = 0; j + l < size; l++) {
            acc[l] += q[begin + j + l] * (level[j + l] - 0.5f * top);
        }
    }
    return sum_lanes(acc);
}

float code_product(
        const CodeShape& shape,
        const float* q,
        const uint8_t* block,
        size_t lane) {
    switch (shape.bits) {
        case 1:
            return code_product_of<1>(shape, q, block, lane);
        case 2:
            return code_product_of<2>(shape, q, block, lane);
        default:
            return code_product_of<4>(shape, q, block, lane);
    }
}

/// Steps between levels, over the root mean square of the residual, of which
/// the best is taken.
template <int bits>
constexpr float kSteps[3] = {1, 1, 1};
template <>
constexpr float kSteps<2>[3] = {0.9f, 1.0f, 1.1f};
template <>
constexpr float kSteps<4>[3] = {0.3f, 0.34f, 0.38f};

template <int bits>
void encode_of(size_t d, const float* r, uint8_t* level, float* ro, float* oo) {
    constexpr float top = 0.5f * ((1 << bits) - 1);
    constexpr int tries = bits == 1 ? 1 : 3;
    const float rms =
            __builtin_sqrtf(inner_product(r, r, d) / float(d)) + 1e-30f;
    float best = -1, inverse_best = 0;
    for (int k = 0; k < tries; k++) {
        const float inverse = 1 / (rms * kSteps<bits>[k]);
        alignas(64) float sum_ro[kLanes] = {}, sum_oo[kLanes] = {};
        size_t j = 0;
        for (; j + kLanes <= d; j += kLanes) {
            for (size_t l = 0; l < kLanes; l++) {
                float v = r[j + l] * inverse + (top + 0.5f);
                v = v > 0 ? v : 0;
                v = v < 2 * top ? v : 2 * top;
                const float o = float(int32_t(v)) - top;
                sum_ro[l] += r[j + l] * o;
                sum_oo[l] += o * o;
            }
        }
        for (size_t l = 0; j + l < d; l++) {
            float v = r[j + l] * inverse + (top + 0.5f);
            v = v > 0 ? v : 0;
            v = v < 2 * top ? v : 2 * top;
            const float o = float(int32_t(v)) - top;
            sum_ro[l] += r[j + l] * o;
            sum_oo[l] += o * o;
        }
        const float this_ro = sum_lanes(sum_ro), this_oo = sum_lanes(sum_oo);
        const float cosine = this_ro / __builtin_sqrtf(this_oo);
        if (cosine > best || k == 0) {
            best = cosine;
            inverse_best = inverse;
            *ro = this_ro;
            *oo = this_oo;
        }
    }
    for (size_t j = 0; j < d; j++) {
        float v = r[j] * inverse_best + (top + 0.5f);
        v = v > 0 ? v : 0;
        v = v < 2 * top ? v : 2 * top;
        level[j] = uint8_t(int32_t(v));
    }
}

void encode(
        size_t d,
        int bits,
        const float* r,
        uint8_t* level,
        float* ro,
        float* oo) {
    switch (bits) {
        case 1:
            return encode_of<1>(d, r, level, ro, oo);
        case 2:
            return encode_of<2>(d, r, level, ro, oo);
        default:
            return encode_of<4>(d, r, level, ro, oo);
    }
}

/// Segments ahead whose blocks are fetched.
constexpr size_t kPrefetched = 4;

inline const uint8_t* first_block(const Segment& s, size_t block_bytes) {
    return s.blocks + s.begin / kBlockEntries * block_bytes;
}
inline const uint8_t* last_block(const Segment& s, size_t block_bytes) {
    return s.blocks + (s.end - 1) / kBlockEntries * block_bytes;
}

/// @param fetched  the block fetched last; the first of the segment may be it
inline const uint8_t* prefetch_blocks(
        const Segment& segment, size_t block_bytes, const uint8_t* fetched) {
    const uint8_t* p = first_block(segment, block_bytes);
    const uint8_t* last = last_block(segment, block_bytes);
    for (p += p == fetched ? block_bytes : 0; p < last + block_bytes; p += 64) {
        __builtin_prefetch(p);
    }
    return last;
}

template <bool similarity, bool pairs>
size_t scan_of(
        const CodeShape& shape,
        const CodeQuery& query,
        const Segment* segments,
        size_t n_segments,
        size_t ahead,
        float threshold,
        CodeCandidate* out) {
    const size_t groups = shape.groups, block_bytes = shape.block_bytes();
    const size_t n_fetched = n_segments + ahead;
    const CodeCandidate* const out_begin = out;
    const uint8_t* fetched = nullptr;
    for (size_t s = 0; s < kPrefetched && s < n_fetched; s++) {
        fetched = prefetch_blocks(segments[s], block_bytes, fetched);
    }
    // Segments that share a block are looked at together: every lane has the
    // score of its own.
    BlockLanes lanes;
    const uint8_t* held = nullptr;
    unsigned wanted = 0;
    uint32_t list = 0, entry = 0;
    const auto look = [&] {
        alignas(64) float estimate[kBlockEntries];
        unsigned mask = below_threshold<similarity, pairs>(
                held,
                groups,
                query.tables,
                query.base,
                query.step,
                lanes,
                threshold,
                estimate);
        for (mask &= wanted; mask; mask &= mask - 1) {
            const unsigned lane = unsigned(__builtin_ctz(mask));
            *out++ = {estimate[lane], list, entry + lane};
        }
    };
    for (size_t s = 0; s < n_segments; s++) {
        const Segment& segment = segments[s];
        if (s + kPrefetched < n_fetched) {
            fetched = prefetch_blocks(
                    segments[s + kPrefetched], block_bytes, fetched);
        }
        const uint8_t* block = first_block(segment, block_bytes);
        uint32_t begin = segment.begin % kBlockEntries;
        uint32_t left = segment.end - segment.begin;
        for (;;) {
            if (block != held) {
                if (held) {
                    look();
                }
                held = block;
                wanted = 0;
                list = segment.list;
                entry = segment.end - left - begin;
            }
            const uint32_t here = left < kBlockEntries - begin
                    ? left
                    : uint32_t(kBlockEntries) - begin;
            const unsigned mask = (1u << (begin + here)) - (1u << begin);
            lanes.set(mask, segment.score, segment.slack);
            wanted |= mask;
            left -= here;
            if (left == 0) {
                break;
            }
            begin = 0;
            block += block_bytes;
        }
    }
    if (held) {
        look();
    }
    return out - out_begin;
}

size_t scan(
        const CodeShape& shape,
        const CodeQuery& query,
        bool similarity,
        const Segment* segments,
        size_t n_segments,
        size_t ahead,
        float threshold,
        CodeCandidate* out) {
    const auto f = similarity
            ? (shape.bits == 4 ? scan_of<true, false> : scan_of<true, true>)
            : (shape.bits == 4 ? scan_of<false, false> : scan_of<false, true>);
    return f(shape, query, segments, n_segments, ahead, threshold, out);
}

constexpr CodeKernels kTable = {
        scan,
        make_tables,
        code_product,
        squared_distance,
        inner_product,
        all_distances,
        hadamard,
        distances,
        largest_difference,
        score_cells,
        buckets,
        places,
        encode};

} // namespace
} // namespace faiss_ext
