// One code: how it is made and what a query makes of it. Part of
// kernels_impl.h, behind kernels_impl_floats.h.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

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
    Lanes acc = {};
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
        for (float& v : level) {
            v -= 0.5f * top;
        }
        const size_t size =
                shape.d - begin < kLevels ? shape.d - begin : kLevels;
        size_t j = 0;
        for (; j + kLanes <= size; j += kLanes) {
            acc.add_product(Lanes::load(q + begin + j), Lanes::load(level + j));
        }
        if (j < size) {
            acc.add_product(
                    Lanes::load_last(q, shape.d, size - j),
                    Lanes::load_last(level, size, size - j));
        }
    }
    return acc.sum();
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

/// The number of a level, rounded down: (r / step + middle + 1/2) in range.
template <int bits, class T>
inline T level_number(const T& r, float inverse) {
    constexpr float most = (1 << bits) - 1;
    T v = r * inverse + (0.5f * most + 0.5f);
    v = v > 0 ? v : T{};
    return v < most ? v : T{} + most;
}

/// r = y - m with m = own + a (partner - own); <r, r>
float residual(
        size_t d,
        const float* y,
        const float* own,
        const float* partner,
        float a,
        float* __restrict m,
        float* __restrict r) {
    for (size_t j = 0; j < d; j++) {
        m[j] = own[j] + a * (partner[j] - own[j]);
        r[j] = y[j] - m[j];
    }
    return inner_product(r, r, d);
}

/// Tries the steps; the inverse of the best one.
template <int bits>
float best_step(size_t d, const float* r, CodeProducts* out) {
    constexpr float top = 0.5f * ((1 << bits) - 1);
    constexpr int tries = bits == 1 ? 1 : 3;
    const float rms = __builtin_sqrtf(out->rr / float(d)) + 1e-30f;
    float inverse[tries];
    Lanes sum_ro[tries] = {}, sum_oo[tries] = {};
    for (int k = 0; k < tries; k++) {
        inverse[k] = 1 / (rms * kSteps<bits>[k]);
    }
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        const Lanes x = Lanes::load(r + j);
        for (int k = 0; k < tries; k++) {
            Lanes o;
            for (size_t i = 0; i < Lanes::n; i++) {
                o.r[i] = __builtin_convertvector(
                                 __builtin_convertvector(
                                         level_number<bits>(x.r[i], inverse[k]),
                                         Mask),
                                 Register) -
                        top;
            }
            sum_ro[k].add_product(x, o);
            sum_oo[k].add_product(o, o);
        }
    }
    if (j < d) {
        for (int k = 0; k < tries; k++) {
            float last_r[kLanes] = {}, last_o[kLanes] = {};
            for (size_t l = 0; j + l < d; l++) {
                last_r[l] = r[j + l];
                last_o[l] = float(int32_t(
                                    level_number<bits>(r[j + l], inverse[k]))) -
                        top;
            }
            const Lanes x = Lanes::load(last_r), o = Lanes::load(last_o);
            sum_ro[k].add_product(x, o);
            sum_oo[k].add_product(o, o);
        }
    }
    float ro[tries], oo[tries];
    float best = 0;
    int at = 0; // no branch: it would be guessed wrongly
    for (int k = 0; k < tries; k++) {
        ro[k] = sum_ro[k].sum();
        oo[k] = sum_oo[k].sum();
        const float cosine = ro[k] / __builtin_sqrtf(oo[k]);
        at = cosine > best ? k : at;
        best = cosine > best ? cosine : best;
    }
    out->ro = ro[at];
    out->oo = oo[at];
    return inverse[at];
}

/// The levels of r, which becomes o.
template <int bits>
void levels_of(size_t d, float* __restrict r, float inverse, uint8_t* level) {
    constexpr float top = 0.5f * ((1 << bits) - 1);
    for (size_t j = 0; j < d; j++) {
        const int32_t number = int32_t(level_number<bits>(r[j], inverse));
        level[j] = uint8_t(number);
        r[j] = float(number) - top;
    }
}

/// In three passes: what one vector waits for in each, others do not.
template <int bits>
void encode_of(const EncodeArgs& args) {
    const size_t d = args.d;
    const auto mean = [&](size_t i) { return args.room + 2 * i * d; };
    float inverse[kEncodedTogether];
    for (size_t i = 0; i < args.n; i++) {
        args.out[i].rr = residual(
                d,
                args.y + i * d,
                args.own[i],
                args.partner[i],
                args.a[i],
                mean(i),
                mean(i) + d);
    }
    for (size_t i = 0; i < args.n; i++) {
        inverse[i] = best_step<bits>(d, mean(i) + d, &args.out[i]);
    }
    for (size_t i = 0; i < args.n; i++) {
        float* const r = mean(i) + d;
        levels_of<bits>(d, r, inverse[i], args.level + i * args.pitch);
        args.out[i].mo = inner_product(mean(i), r, d);
    }
}

void encode(const EncodeArgs& args) {
    const auto f = args.bits == 1 ? encode_of<1>
            : args.bits == 2      ? encode_of<2>
                                  : encode_of<4>;
    f(args);
}

} // namespace
} // namespace faiss_ext
