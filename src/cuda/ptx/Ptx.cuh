#pragma once

// Where device code is compiled for the host, who does so has brought functions
// of these names.
#ifdef __CUDACC__

#include <cuda_fp16.h>

#include <cstdint>

/** The instructions that C++ has no words for, one thin function each: those of
 * sm_80; the rest is in PtxHopper.cuh. */
namespace gmm::cuda::ptx {

__device__ __forceinline__ uint32_t smem_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_approx(float x) {
    return __log2f(x);
}

__device__ __forceinline__ float sqrt_approx(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t bits(__half2 x) {
    return *reinterpret_cast<const uint32_t*>(&x);
}

__device__ __forceinline__ __half2 half2_of(uint32_t bits) {
    return *reinterpret_cast<const __half2*>(&bits);
}

__device__ __forceinline__ void store_shared(uint32_t address, __half value) {
    asm volatile(
            "st.shared.u16 [%0], %1;" ::"r"(address),
            "h"(__half_as_ushort(value)));
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value));
}

__device__ __forceinline__ void store_shared(uint32_t address, float4 v) {
    asm volatile(
            "st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address),
            "f"(v.x),
            "f"(v.y),
            "f"(v.z),
            "f"(v.w));
}

__device__ __forceinline__ void store_shared(uint32_t address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value));
}

__device__ __forceinline__ float4 load_shared_float4(uint32_t address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address));
    return v;
}

__device__ __forceinline__ float2 load_shared_float2(uint32_t address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                 : "=f"(v.x), "=f"(v.y)
                 : "r"(address));
    return v;
}

__device__ __forceinline__ float load_shared_float(uint32_t address) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address));
    return v;
}

__device__ __forceinline__ uint32_t load_shared_uint(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ uint4 load_shared_uint4(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

/** If m0 (the larger of c[0] and c[1]) reaches t0 or m1 (of c[2] and c[3]) t1:
 * stores c at `end`, or at `sink` if that comes first, and `column` behind it,
 * and moves `end` by one step. All of it predicated: a branch would cost more
 * than what it skips. */
__device__ __forceinline__ void append(
        const float (&c)[4],
        uint32_t column,
        float m0,
        float m1,
        float t0,
        float t1,
        uint32_t& end,
        uint32_t sink,
        uint32_t to_column,
        uint32_t step) {
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            ".reg .u32 at, behind;\n"
            "min.u32 at, %0, %10;\n"
            "add.u32 behind, at, %11;\n"
            "setp.ge.f32 p, %6, %8;\n"
            "setp.ge.or.f32 p, %7, %9, p;\n"
            "@p st.shared.v4.f32 [at], {%1,%2,%3,%4};\n"
            "@p st.shared.u32 [behind], %5;\n"
            "@p add.u32 %0, %0, %12;\n"
            "}\n"
            : "+r"(end)
            : "f"(c[0]),
              "f"(c[1]),
              "f"(c[2]),
              "f"(c[3]),
              "r"(column),
              "f"(m0),
              "f"(m1),
              "f"(t0),
              "f"(t1),
              "r"(sink),
              "r"(to_column),
              "r"(step));
}

// ---- asynchronous copies, matrix loads, matrix products ----

/// 16 bytes to shared memory; zeros where !valid.
__device__ __forceinline__ void copy_async(
        uint32_t to, const void* from, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
            "l"(from),
            "r"(bytes));
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;");
}

template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_matrix_transposed(
        uint32_t (&r)[4], uint32_t from) {
    asm volatile(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, "
            "[%4];"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
            : "r"(from)
            : "memory");
}

/// c (16 x 8) += a (16 x 16) b (16 x 8)
__device__ __forceinline__ void mma_m16n8k16(
        float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same of bf16 numbers.
__device__ __forceinline__ void mma_m16n8k16_bf16(
        float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c (16 x 8) += a (16 x 8) b (8 x 8) in tf32, the upper 19 bits of operands.
__device__ __forceinline__ void mma_m16n8k8_tf32(
        float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// x rounded to tf32 as an operand, and what that leaves as another.
__device__ __forceinline__ void split_tf32(
        float x, uint32_t& hi, uint32_t& lo) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(hi) : "f"(x));
    lo = __float_as_uint(x - __uint_as_float(hi));
}

/// c += a b: a is 16 x 4, b 4 x 8. Lane 4 g + t has a[g][t], a[g + 8][t],
/// b[t][g], and of c rows g and g + 8, columns 2 t and 2 t + 1.
__device__ __forceinline__ void mma_f64_m16n8k4(
        double (&c)[4], double a0, double a1, double b) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
            "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
            : "d"(a0), "d"(a1), "d"(b));
#else
    const double a[2] = {a0, a1};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        asm volatile(
                "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
                "{%0, %1}, {%2}, {%3}, {%0, %1};"
                : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
                : "d"(a[half]), "d"(b));
    }
#endif
}

/// The same with the rows g alone.
__device__ __forceinline__ void mma_f64_m8n8k4(
        double (&c)[2], double a, double b) {
    asm volatile(
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
            "{%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+d"(c[0]), "+d"(c[1])
            : "d"(a), "d"(b));
}

} // namespace gmm::cuda::ptx

#endif
