#pragma once

#include <cuda_runtime.h>

/// Floating point numbers as integers in the same order.
namespace gmm::cuda::full {

__device__ __forceinline__ int ordered(float x) {
    const int bits = __float_as_int(x);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
__device__ __forceinline__ float unordered(int bits) {
    return __int_as_float(bits < 0 ? bits ^ 0x7fffffff : bits);
}
__device__ __forceinline__ unsigned long long ordered(double x) {
    const auto bits = (unsigned long long)__double_as_longlong(x);
    return bits >> 63 ? ~bits : bits | (1ull << 63);
}
__device__ __forceinline__ double unordered(unsigned long long bits) {
    return __longlong_as_double(
            (long long)(bits >> 63 ? bits & ~(1ull << 63) : ~bits));
}

} // namespace gmm::cuda::full
