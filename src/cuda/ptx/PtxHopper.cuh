#pragma once

#include <cuda.h>

#include "cuda/ptx/Ptx.cuh"

/** The same for sm_90. */
namespace gmm::cuda::ptx {

// ---- barriers in shared memory, bulk copies, warpgroup products ----

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

/// The registers of c from group g on, as operands, and their names.
#define GMM_REGISTERS_4(g) \
    "+f"(c[g][0]), "+f"(c[g][1]), "+f"(c[g][2]), "+f"(c[g][3])
#define GMM_REGISTERS_32(g)                                                 \
    GMM_REGISTERS_4(g), GMM_REGISTERS_4((g) + 1), GMM_REGISTERS_4((g) + 2), \
            GMM_REGISTERS_4((g) + 3), GMM_REGISTERS_4((g) + 4),             \
            GMM_REGISTERS_4((g) + 5), GMM_REGISTERS_4((g) + 6),             \
            GMM_REGISTERS_4((g) + 7)
#define GMM_NAMES_32                           \
    "%0, %1, %2, %3, %4, %5, %6, %7, "         \
    "%8, %9, %10, %11, %12, %13, %14, %15, "   \
    "%16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define GMM_NAMES_FROM_32                      \
    "%32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, " \
    "%56, %57, %58, %59, %60, %61, %62, %63"

/// c (64 x 128) = a (64 x 16) b (128 x 16)^T, plus c if add.
__device__ __forceinline__ void wgmma_m64n128k16(
        float (&c)[16][4], uint64_t a, uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            GMM_NAMES_32 ", " GMM_NAMES_FROM_32 "}, %64, %65, p, 1, 1, 0, 0;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "l"(a), "l"(b), "r"(int(add)));
    // clang-format on
}

/// The same with a in registers, a warp's 16 rows as load_matrix leaves them.
/// kAcross: b is (16 x 128), and not transposed.
template <bool kAcross = false>
__device__ __forceinline__ void wgmma_m64n128k16(
        float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            GMM_NAMES_32 ", " GMM_NAMES_FROM_32 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)),
              "n"(int(kAcross)));
    // clang-format on
}

/// c (64 x 128) += a^T b of a (16 x 64) and b (16 x 128), both summed over.
__device__ __forceinline__ void wgmma_across(
        float (&c)[16][4], uint64_t a, uint64_t b) {
    // clang-format off
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "setp.eq.b32 p, 0, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            GMM_NAMES_32 ", " GMM_NAMES_FROM_32 "}, %64, %65, p, 1, 1, 1, 1;\n"
            "}\n"
            : GMM_REGISTERS_32(0), GMM_REGISTERS_32(8)
            : "l"(a), "l"(b));
    // clang-format on
}

/// c (64 x 128) = a (64 x 16, in registers) b (16 x 128), plus c if add.
__device__ __forceinline__ void wgmma_sums(
        float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    wgmma_m64n128k16<true>(c, a, b, add);
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
            GMM_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
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

#undef GMM_NAMES_FROM_32
#undef GMM_NAMES_32
#undef GMM_REGISTERS_32
#undef GMM_REGISTERS_4

// ---- blocks of a cluster ----

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
