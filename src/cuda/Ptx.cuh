#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

/** The instructions that C++ has no words for, one thin function each. */
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

// ---- sm_80: asynchronous copies, matrix loads, matrix products ----

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

// ---- sm_90: barriers in shared memory, bulk copies, warpgroup products ----

__device__ __forceinline__ void barrier_init(uint32_t b, uint32_t count) {
    asm volatile(
            "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count));
}

__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t b, uint32_t bytes) {
    asm volatile(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b),
            "r"(bytes)
            : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b)
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t b, uint32_t parity) {
    asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "again:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
            "@done bra finished;\n"
            "bra again;\n"
            "finished:\n"
            "}\n" ::"r"(b),
            "r"(parity)
            : "memory");
}

/// One box of a three-dimensional tensor to shared memory.
__device__ __forceinline__ void tma_load(
        uint32_t to,
        const CUtensorMap* map,
        uint32_t barrier,
        int x,
        int y,
        int z) {
    asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::"
            "complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
            "l"(map),
            "r"(barrier),
            "r"(x),
            "r"(y),
            "r"(z)
            : "memory");
}

/// A contiguous piece (16-byte multiples) to shared memory.
__device__ __forceinline__ void bulk_load(
        uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1], %2, [%3];" ::"r"(to),
            "l"(from),
            "r"(bytes),
            "r"(barrier)
            : "memory");
}

/// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "elect.sync _|p, 0xffffffff;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(elected));
    return elected;
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Operand tile of rows of 64 halves (128 bytes, 128-byte swizzle), rows in
/// groups of eight: the layout that a TMA box 64 wide leaves.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t tile) {
    const uint64_t address = (tile & 0x3FFFF) >> 4;
    return address | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) |
            (uint64_t{1} << 62);
}

/// The same of rows of 16 halves (32 bytes, 32-byte swizzle).
__device__ __forceinline__ uint64_t wgmma_descriptor_narrow(uint32_t tile) {
    const uint64_t address = (tile & 0x3FFFF) >> 4;
    return address | (uint64_t{1} << 16) | (uint64_t{256 >> 4} << 32) |
            (uint64_t{3} << 62);
}

/// An operand of rows of 64 halves as above, but summed over: columns beyond
/// 64 are in a further such tile, `apart` bytes from the first.
__device__ __forceinline__ uint64_t
wgmma_descriptor_across(uint32_t tile, uint32_t apart) {
    const uint64_t address = (tile & 0x3FFFF) >> 4;
    return address | (uint64_t{apart >> 4} << 16) |
            (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 62);
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending)
                 : "memory");
}

/// The registers of c from group g on, as operands.
#define GMM_REGISTERS_4(g) \
    "+f"(c[g][0]), "+f"(c[g][1]), "+f"(c[g][2]), "+f"(c[g][3])
#define GMM_REGISTERS_32(g)                                                 \
    GMM_REGISTERS_4(g), GMM_REGISTERS_4((g) + 1), GMM_REGISTERS_4((g) + 2), \
            GMM_REGISTERS_4((g) + 3), GMM_REGISTERS_4((g) + 4),             \
            GMM_REGISTERS_4((g) + 5), GMM_REGISTERS_4((g) + 6),             \
            GMM_REGISTERS_4((g) + 7)

/// c (64 x 128) = a (64 x 16) b (128 x 16)^T, plus c unless !add.
__device__ __forceinline__ void wgmma_m64n128k16(
        float (&c)[16][4], uint64_t a, uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, "
            "%40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, "
            "%56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, 0, 0;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "l"(a), "l"(b), "r"(int(add)));
    // clang-format on
}

/// The same with a in registers, a warp's 16 rows as load_matrix leaves them.
__device__ __forceinline__ void wgmma_m64n128k16(
        float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, "
            "%40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, "
            "%56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
    // clang-format on
}

/// c (64 x 128) += a (64 x 16, in registers) b (16 x 128), or without
/// c if !add.
__device__ __forceinline__ void wgmma_sums(
        float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, "
            "%40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, "
            "%56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
    // clang-format on
}

/// c (64 x 64) += a (64 x 16, in registers) b (16 x 64), likewise.
__device__ __forceinline__ void wgmma_sums(
        float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, "
            "%8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, "
            "%24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
            "}\n"
            : GMM_REGISTERS_32(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
    // clang-format on
}

/// c (64 x 16) += a (64 x 16, in registers) b (16 x 16), likewise.
__device__ __forceinline__ void wgmma_sums(
        float (&c)[2][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %13, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7}, "
            "{%8, %9, %10, %11}, %12, p, 1, 1, 1;\n"
            "}\n"
            : GMM_REGISTERS_4(0), GMM_REGISTERS_4(1)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
    // clang-format on
}

#undef GMM_REGISTERS_32
#undef GMM_REGISTERS_4

// ---- sm_90: blocks of a cluster ----

/// All threads of the cluster's blocks that have not ended.
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
            "barrier.cluster.arrive.release.aligned;\n"
            "barrier.cluster.wait.acquire.aligned;" ::
                    : "memory");
}

/// An address in this block's shared memory, in that of another of the cluster.
__device__ __forceinline__ uint32_t
cluster_address(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(address), "r"(rank));
    return there;
}

/// A piece (16-byte multiples) to a block of the cluster, whose barrier expects
/// it.
__device__ __forceinline__ void cluster_copy(
        uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) {
    asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::"
            "bytes [%0], [%1], %2, [%3];" ::"r"(to),
            "r"(from),
            "r"(bytes),
            "r"(barrier)
            : "memory");
}

/// Four 8 x 8 matrices, one row's address from each lane: see load_matrix.
__device__ __forceinline__ void store_matrix(
        uint32_t to, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile(
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::
                    "r"(to),
            "r"(r0),
            "r"(r1),
            "r"(r2),
            "r"(r3)
            : "memory");
}

/// Between ordinary stores to shared memory and products that read them.
__device__ __forceinline__ void async_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

} // namespace gmm::cuda::ptx
