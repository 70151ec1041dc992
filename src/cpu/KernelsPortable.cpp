#include <cmath>
#include <cstddef>
#include <cstdint>

namespace gmm {
namespace {

// Plain loops over lanes, which compilers turn into whatever the baseline
// processor offers.
struct V {
    float lane[16];

    static V all(float value) {
        V out;
        for (float& x : out.lane) {
            x = value;
        }
        return out;
    }
    static V load(const float* from) {
        V out;
        for (int l = 0; l < 16; l++) {
            out.lane[l] = from[l];
        }
        return out;
    }
    void store(float* to) const {
        for (int l = 0; l < 16; l++) {
            to[l] = lane[l];
        }
    }
};

template <class F>
inline V map(V a, V b, F f) {
    for (int l = 0; l < 16; l++) {
        a.lane[l] = f(a.lane[l], b.lane[l]);
    }
    return a;
}
inline V operator+(V a, V b) {
    return map(a, b, [](float x, float y) { return x + y; });
}
inline V operator-(V a, V b) {
    return map(a, b, [](float x, float y) { return x - y; });
}
inline V operator*(V a, V b) {
    return map(a, b, [](float x, float y) { return x * y; });
}
inline V fma(V a, V b, V c) {
    return a * b + c;
}
inline V max(V a, V b) {
    return map(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline V round(V a) {
    return map(a, a, [](float x, float) { return std::nearbyint(x); });
}
inline V times_power_of_two(V a, V n) {
    return map(a, n, [](float x, float y) { return std::ldexp(x, int(y)); });
}
inline uint32_t at_least(V a, V b) {
    uint32_t out = 0;
    for (int l = 0; l < 16; l++) {
        out |= uint32_t(a.lane[l] >= b.lane[l]) << l;
    }
    return out;
}
inline V without(V a, uint32_t lanes) {
    for (int l = 0; l < 16; l++) {
        a.lane[l] = lanes >> l & 1 ? 0.0f : a.lane[l];
    }
    return a;
}

} // namespace
} // namespace gmm

#include "KernelsImpl.h"

namespace gmm {

extern const Kernels kernels_portable;
const Kernels kernels_portable = table;

} // namespace gmm
