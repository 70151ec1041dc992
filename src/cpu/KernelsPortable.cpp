#include <cmath>
#include <cstddef>
#include <cstdint>

namespace gmm {
namespace {

// Four lanes that GCC and clang keep in one register on every processor; where
// arithmetic is rare, plain loops over lanes.
typedef float Four __attribute__((vector_size(16)));

struct V {
    Four part[4];

    static V all(float value) {
        const Four four = {value, value, value, value};
        return {{four, four, four, four}};
    }
    static V load(const float* from) {
        V out;
        __builtin_memcpy(&out, from, sizeof out);
        return out;
    }
    void store(float* to) const {
        __builtin_memcpy(to, this, sizeof *this);
    }
};

template <class F>
inline V parts(V a, V b, F f) {
    return {
            {f(a.part[0], b.part[0]),
             f(a.part[1], b.part[1]),
             f(a.part[2], b.part[2]),
             f(a.part[3], b.part[3])}};
}
template <class F>
inline V map(V a, V b, F f) {
    float x[16], y[16];
    a.store(x);
    b.store(y);
    for (int l = 0; l < 16; l++) {
        x[l] = f(x[l], y[l]);
    }
    return V::load(x);
}
inline V operator+(V a, V b) {
    return parts(a, b, [](Four x, Four y) { return x + y; });
}
inline V operator-(V a, V b) {
    return parts(a, b, [](Four x, Four y) { return x - y; });
}
inline V operator*(V a, V b) {
    return parts(a, b, [](Four x, Four y) { return x * y; });
}
inline V fma(V a, V b, V c) {
    return a * b + c;
}
inline V fms(V a, V b, V c) {
    return a * b - c;
}
inline V max(V a, V b) {
    return parts(a, b, [](Four x, Four y) { return x > y ? x : y; });
}
inline V round(V a) {
    return map(a, a, [](float x, float) { return std::nearbyint(x); });
}
inline V times_power_of_two(V a, V n) {
    return map(a, n, [](float x, float y) { return std::ldexp(x, int(y)); });
}
inline uint32_t at_least(V a, V b) {
    float x[16], y[16];
    a.store(x);
    b.store(y);
    uint32_t out = 0;
    for (int l = 0; l < 16; l++) {
        out |= uint32_t(x[l] >= y[l]) << l;
    }
    return out;
}
inline V without(V a, uint32_t lanes) {
    float x[16];
    a.store(x);
    for (int l = 0; l < 16; l++) {
        x[l] = lanes >> l & 1 ? 0.0f : x[l];
    }
    return V::load(x);
}

// 12 of SSE's 16 registers: four make a V.
constexpr size_t kProductSums = 3, kProductRows = 3;
// Sums and a column fit into the registers.
constexpr int kSquareRows = 4;
// Rows of a tile of moments(): sums that are on their way.
constexpr size_t kMomentTall = 4;
// Of mahalanobis(), times four columns: likewise.
constexpr size_t kRowVectors = 1;

} // namespace
} // namespace gmm

#include "KernelsImpl.h"

namespace gmm {

extern const Kernels kernels_portable;
const Kernels kernels_portable = table;

} // namespace gmm
