// Products, distances and cells: part of kernels_impl.h.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

/// Of an interval that cut() searches.
constexpr int kHalvings = 20;

constexpr size_t kLanes = 16;

#if defined(__AVX512F__)
constexpr size_t kWidth = 16;
#elif defined(__AVX__)
constexpr size_t kWidth = 8;
#else
constexpr size_t kWidth = 4;
#endif
typedef float Register __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t Mask __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef float FourLanes __attribute__((vector_size(16)));

/// From place n on: kLanes - n zeros, then ones.
constexpr int32_t kMasks[2 * kLanes] = {
        0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

/// Sixteen values, in as many registers as the instruction set needs for them:
/// GCC would not keep a vector that is wider than they are in them.
struct Lanes {
    static constexpr size_t n = kLanes / kWidth;
    Register r[n];

    static Lanes load(const float* x) {
        Lanes v;
        for (size_t i = 0; i < n; i++) {
            __builtin_memcpy(&v.r[i], x + i * kWidth, sizeof(Register));
        }
        return v;
    }
    /// The last `size`, below kLanes, of d values; zeros before them.
    static Lanes load_last(const float* x, size_t d, size_t size) {
        if (d < kLanes) {
            float filled[kLanes] = {};
            for (size_t l = 0; l < size; l++) {
                filled[kLanes - size + l] = x[d - size + l];
            }
            return load(filled);
        }
        Lanes v = load(x + d - kLanes);
        for (size_t i = 0; i < n; i++) {
            Mask mask;
            __builtin_memcpy(&mask, kMasks + size + i * kWidth, sizeof(mask));
            v.r[i] = Register(Mask(v.r[i]) & mask);
        }
        return v;
    }
    void add_product(const Lanes& x, const Lanes& y) {
        for (size_t i = 0; i < n; i++) {
            r[i] += x.r[i] * y.r[i];
        }
    }
    void add_squared_difference(const Lanes& x, const Lanes& y) {
        for (size_t i = 0; i < n; i++) {
            const Register t = x.r[i] - y.r[i];
            r[i] += t * t;
        }
    }
    /// Pairwise: one order for all instruction sets.
    float sum() const {
        FourLanes f[4];
        __builtin_memcpy(f, r, sizeof(f));
        const FourLanes s = (f[0] + f[2]) + (f[1] + f[3]);
        return (s[0] + s[2]) + (s[1] + s[3]);
    }
};

/// 0, 1 ... n - 1
template <size_t... l>
struct Numbers {};
template <size_t n, size_t... l>
struct NumbersBelow : NumbersBelow<n - 1, n - 1, l...> {};
template <size_t... l>
struct NumbersBelow<0, l...> : Numbers<l...> {};

/// Lane l of the result is lane l ^ stride.
template <size_t stride, class T, size_t... l>
inline T swapped(const T& v, Numbers<l...>) {
    return __builtin_shufflevector(v, v, int(l ^ stride)...);
}
template <size_t stride, class T>
inline T swapped(const T& v) {
    return swapped<stride>(v, NumbersBelow<kWidth>());
}

/// The least of all lanes, in each.
template <size_t stride = kWidth / 2, class T>
inline T least_lane(const T& v) {
    const T other = swapped<stride>(v);
    const T least = other < v ? other : v;
    if constexpr (stride > 1) {
        return least_lane<stride / 2>(least);
    } else {
        return least;
    }
}

inline float squared_distance(const float* x, const float* y, size_t d) {
    Lanes acc = {};
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        acc.add_squared_difference(Lanes::load(x + j), Lanes::load(y + j));
    }
    if (j < d) {
        acc.add_squared_difference(
                Lanes::load_last(x, d, d - j), Lanes::load_last(y, d, d - j));
    }
    return acc.sum();
}

inline float inner_product(const float* x, const float* y, size_t d) {
    Lanes acc = {};
    size_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        acc.add_product(Lanes::load(x + j), Lanes::load(y + j));
    }
    if (j < d) {
        acc.add_product(
                Lanes::load_last(x, d, d - j), Lanes::load_last(y, d, d - j));
    }
    return acc.sum();
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

void decode_bytes(
        size_t d,
        const uint8_t* code,
        const float* scale,
        const float* offset,
        float* out) {
    for (size_t j = 0; j < d; j++) {
        out[j] = offset[j] + scale[j] * float(int32_t(code[j]));
    }
}

void decode_halves(size_t d, const uint8_t* code, float* out) {
    for (size_t j = 0; j < d; j++) {
        uint16_t half;
        __builtin_memcpy(&half, code + 2 * j, sizeof(half));
        // The exponent's bias differs by 112; multiplying by 2^112 serves
        // subnormal numbers too.
        const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
        float v;
        __builtin_memcpy(&v, &magnitude, sizeof(v));
        v *= 0x1p112f;
        uint32_t bits;
        __builtin_memcpy(&bits, &v, sizeof(bits));
        bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
        bits |= uint32_t(half & 0x8000) << 16;
        __builtin_memcpy(out + j, &bits, sizeof(bits));
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

/// The place of the least of n values, the first of equals: lanes(j) are those
/// from j on, one(j) is the j-th.
template <class ManyValues, class OneValue>
inline size_t place_of_least(
        size_t n, const ManyValues& lanes, const OneValue& one) {
    Lanes least; // of each lane, and where it is
    Mask at[Lanes::n];
    for (size_t i = 0; i < Lanes::n; i++) {
        least.r[i] = Register{} + __builtin_inff();
        for (size_t l = 0; l < kWidth; l++) {
            at[i][l] = int32_t(i * kWidth + l);
        }
    }
    Mask place[Lanes::n];
    __builtin_memcpy(place, at, sizeof(place));
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        const Lanes v = lanes(j);
        for (size_t i = 0; i < Lanes::n; i++) {
            const Mask below = v.r[i] < least.r[i];
            least.r[i] = below ? v.r[i] : least.r[i];
            place[i] = below ? at[i] + int32_t(j) : place[i];
        }
    }
    Register value = least.r[0];
    for (size_t i = 1; i < Lanes::n; i++) {
        value = least.r[i] < value ? least.r[i] : value;
    }
    value = least_lane(value);
    Mask first = Mask{} + 0x7fffffff;
    for (size_t i = 0; i < Lanes::n; i++) {
        const Mask equal = least.r[i] == value;
        const Mask p = equal ? place[i] : Mask{} + 0x7fffffff;
        first = p < first ? p : first;
    }
    size_t found = size_t(least_lane(first)[0]);
    float lowest = value[0];
    for (; j < n; j++) {
        const float v = one(j);
        if (v < lowest) {
            lowest = v;
            found = j;
        }
    }
    return found < n ? found : 0; // no number is below infinity
}

size_t largest_difference(size_t n, const float* x, const float* y) {
    return place_of_least(
            n,
            [&](size_t j) {
                const Lanes a = Lanes::load(x + j), b = Lanes::load(y + j);
                Lanes v;
                for (size_t i = 0; i < Lanes::n; i++) {
                    v.r[i] = b.r[i] - a.r[i];
                }
                return v;
            },
            [&](size_t j) { return y[j] - x[j]; });
}

size_t nearest_cell(
        size_t n,
        const float* products,
        float scale,
        const float* half_norms,
        const int32_t* partner,
        const float* gap,
        float weight) {
    const auto one = [&](size_t l) {
        return half_norms[partner[l]] - scale * products[partner[l]] -
                weight * gap[l];
    };
    return place_of_least(
            n,
            [&](size_t j) {
                float v[kLanes];
                for (size_t l = 0; l < kLanes; l++) {
                    v[l] = one(j + l);
                }
                return Lanes::load(v);
            },
            one);
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
        size_t n,
        const float* x,
        float least,
        float scale,
        uint16_t last,
        uint16_t* bucket) {
    const float most = last;
    for (size_t j = 0; j < n; j++) {
        float v = (x[j] - least) * scale; // NaN among infinities
        v = v > 0 ? v : 0;
        bucket[j] = uint16_t(int32_t(v < most ? v : most));
    }
}

size_t count_below(size_t n, const float* x, float value) {
    uint32_t out = 0;
    for (size_t j = 0; j < n; j++) {
        out += x[j] < value;
    }
    return out;
}

float cut(size_t n, const float* x, size_t least, size_t most) {
    float low = x[0], high = x[0];
    for (size_t j = 0; j < n; j++) {
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    float value = high;
    for (int i = 0; i < kHalvings; i++) {
        value = low + 0.5f * (high - low);
        const size_t below = count_below(n, x, value);
        if (below > most) {
            high = value;
        } else if (below < least) {
            low = value;
        } else {
            break;
        }
    }
    return value;
}

} // namespace
} // namespace faiss_ext
