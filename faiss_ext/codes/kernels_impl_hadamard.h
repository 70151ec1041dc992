// Hadamard's transform: part of kernels_impl.h, behind kernels_impl_floats.h.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

/// Sums in lanes without the bit `stride`, differences in those with it.
template <size_t stride>
inline Register butterfly(const Register& v) {
    Mask sign;
    for (size_t l = 0; l < kWidth; l++) {
        sign[l] = l & stride ? int32_t(0x80000000u) : 0;
    }
    return swapped<stride>(v) + Register(Mask(v) ^ sign);
}

/// From one stride down, within a register.
template <size_t stride>
inline Register butterflies(const Register& v) {
    if constexpr (stride > 1) {
        return butterflies<stride / 2>(butterfly<stride>(v));
    } else {
        return butterfly<1>(v);
    }
}

/// x *= signs, of n values.
inline void multiply(float* x, const float* signs, size_t n) {
    for (size_t j = 0; j < n; j++) {
        x[j] *= signs[j];
    }
}

/// The transform of count * kWidth values, in registers.
template <size_t count>
inline void transform(float* x, const float* signs, float scale) {
    Register v[count];
    __builtin_memcpy(v, x, sizeof(v));
    if (signs) {
        Register s[count];
        __builtin_memcpy(s, signs, sizeof(s));
#pragma GCC unroll 8
        for (size_t i = 0; i < count; i++) {
            v[i] *= s[i];
        }
    }
#pragma GCC unroll 4
    for (size_t stride = count / 2; stride > 0; stride /= 2) {
#pragma GCC unroll 8
        for (size_t i = 0; i < count; i++) {
            if ((i & stride) == 0) {
                const Register a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < count; i++) {
        v[i] = butterflies<kWidth / 2>(v[i]) * scale;
    }
    __builtin_memcpy(x, v, sizeof(v));
}

void hadamard(float* x, const float* signs, size_t n) {
    float scale = 1;
    for (size_t m = 1; m < n; m *= 2) {
        scale *= 0.70710678118654752f;
    }
    if (n < kWidth) {
        if (signs) {
            multiply(x, signs, n);
        }
        for (size_t stride = n / 2; stride > 0; stride /= 2) {
            for (size_t j = 0; j < n; j++) {
                if ((j & stride) == 0) {
                    const float a = x[j], b = x[j + stride];
                    x[j] = a + b;
                    x[j + stride] = a - b;
                }
            }
        }
        for (size_t j = 0; j < n; j++) {
            x[j] *= scale;
        }
        return;
    }
    switch (n / kWidth) {
        case 1:
            return transform<1>(x, signs, scale);
        case 2:
            return transform<2>(x, signs, scale);
        case 4:
            return transform<4>(x, signs, scale);
    }
    constexpr size_t kPart = 8 * kWidth;
    if (n == kPart) {
        return transform<8>(x, signs, scale);
    }
    if (signs) {
        multiply(x, signs, n);
    }
    for (size_t stride = n / 2; stride >= kPart; stride /= 2) {
        for (size_t i = 0; i < n; i += 2 * stride) {
            for (size_t j = i; j < i + stride; j += kWidth) {
                Register a, b;
                __builtin_memcpy(&a, x + j, sizeof(a));
                __builtin_memcpy(&b, x + j + stride, sizeof(b));
                const Register sum = a + b, difference = a - b;
                __builtin_memcpy(x + j, &sum, sizeof(sum));
                __builtin_memcpy(x + j + stride, &difference, sizeof(sum));
            }
        }
    }
    for (size_t j = 0; j < n; j += kPart) {
        transform<8>(x + j, nullptr, scale);
    }
}

} // namespace
} // namespace faiss_ext
