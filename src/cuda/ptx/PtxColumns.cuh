#pragma once

#include "cuda/ptx/PtxHopper.cuh"

/** Products whose result is the first columns of a warpgroup's registers, for a
 * triangular operand. (Of the last ones nvcc makes a series of products, each
 * of which waits for the one before.) */
namespace gmm::cuda::ptx {

// clang-format off
/// Registers of 16 columns, and their names.
#define GMM_REGISTERS(i)                                              \
    "+f"(c[2 * (i)][0]), "+f"(c[2 * (i)][1]),         \
    "+f"(c[2 * (i)][2]), "+f"(c[2 * (i)][3]),         \
    "+f"(c[2 * (i) + 1][0]), "+f"(c[2 * (i) + 1][1]), \
    "+f"(c[2 * (i) + 1][2]), "+f"(c[2 * (i) + 1][3])
#define GMM_NAMES_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GMM_ALL_1 GMM_REGISTERS(0)
#define GMM_NAMES_2 GMM_NAMES_1 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define GMM_ALL_2 GMM_ALL_1, GMM_REGISTERS(1)
#define GMM_NAMES_3 GMM_NAMES_2 ", " "%16, %17, %18, %19, %20, %21, %22, %23"
#define GMM_ALL_3 GMM_ALL_2, GMM_REGISTERS(2)
#define GMM_NAMES_4 GMM_NAMES_3 ", " "%24, %25, %26, %27, %28, %29, %30, %31"
#define GMM_ALL_4 GMM_ALL_3, GMM_REGISTERS(3)
#define GMM_NAMES_5 GMM_NAMES_4 ", " "%32, %33, %34, %35, %36, %37, %38, %39"
#define GMM_ALL_5 GMM_ALL_4, GMM_REGISTERS(4)
#define GMM_NAMES_6 GMM_NAMES_5 ", " "%40, %41, %42, %43, %44, %45, %46, %47"
#define GMM_ALL_6 GMM_ALL_5, GMM_REGISTERS(5)
#define GMM_NAMES_7 GMM_NAMES_6 ", " "%48, %49, %50, %51, %52, %53, %54, %55"
#define GMM_ALL_7 GMM_ALL_6, GMM_REGISTERS(6)
#define GMM_NAMES_8 GMM_NAMES_7 ", " "%56, %57, %58, %59, %60, %61, %62, %63"
#define GMM_ALL_8 GMM_ALL_7, GMM_REGISTERS(7)
#define GMM_PRODUCT(columns, count, a_names, b_name)                        \
    asm volatile(                                                           \
            "{\n"                                                           \
            ".reg .pred p;\n"                                               \
            "setp.eq.b32 p, 0, 0;\n"                                        \
            "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" \
            GMM_NAMES_##count "}, {" a_names "}, " b_name ", p, 1, 1, 0;\n" \
            "}\n"                                                           \
            : GMM_ALL_##count                                               \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/// The first 16 kCount columns of c += a b^T: c is 64 rows, a 64 x 16 in
/// registers (a warp's 16 rows as load_matrix leaves them), b 16 kCount x 16.
template <int kCount, int kGroups>
__device__ __forceinline__ void wgmma_columns(
        float (&c)[kGroups][4], const uint32_t (&a)[4], uint64_t b) {
    static_assert(kCount <= 8 && 2 * kCount <= kGroups);
    if constexpr (kCount == 8) {
        GMM_PRODUCT("128", 8, "%64, %65, %66, %67", "%68");
    } else if constexpr (kCount == 7) {
        GMM_PRODUCT("112", 7, "%56, %57, %58, %59", "%60");
    } else if constexpr (kCount == 6) {
        GMM_PRODUCT("96", 6, "%48, %49, %50, %51", "%52");
    } else if constexpr (kCount == 5) {
        GMM_PRODUCT("80", 5, "%40, %41, %42, %43", "%44");
    } else if constexpr (kCount == 4) {
        GMM_PRODUCT("64", 4, "%32, %33, %34, %35", "%36");
    } else if constexpr (kCount == 3) {
        GMM_PRODUCT("48", 3, "%24, %25, %26, %27", "%28");
    } else if constexpr (kCount == 2) {
        GMM_PRODUCT("32", 2, "%16, %17, %18, %19", "%20");
    } else {
        GMM_PRODUCT("16", 1, "%8, %9, %10, %11", "%12");
    }
}
// clang-format on

#undef GMM_PRODUCT
#undef GMM_ALL_8
#undef GMM_NAMES_8
#undef GMM_ALL_7
#undef GMM_NAMES_7
#undef GMM_ALL_6
#undef GMM_NAMES_6
#undef GMM_ALL_5
#undef GMM_NAMES_5
#undef GMM_ALL_4
#undef GMM_NAMES_4
#undef GMM_ALL_3
#undef GMM_NAMES_3
#undef GMM_ALL_2
#undef GMM_NAMES_2
#undef GMM_ALL_1
#undef GMM_NAMES_1
#undef GMM_REGISTERS

} // namespace gmm::cuda::ptx
