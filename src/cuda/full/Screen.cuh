#pragma once

#include "cuda/full/Screen.h"
#include "cuda/ptx/Ptx.cuh"

/** What the screening kernels share. */
namespace gmm::cuda::full {

constexpr int kScreenBlock = 16; ///< factors are in blocks of 16 x 16
constexpr int kScreenBlockBytes = kScreenBlock * kScreenBlock * 2;
/// Larger values are none of fp16.
constexpr float kScreenRange = 60000;

/// Of a triangle of blocks.
__host__ __device__ constexpr int blocks_of(int side) {
    return side * (side + 1) / 2;
}
/// Of the triangle's first slices of 16 rows.
__host__ __device__ constexpr int slice_begin(int side, int slice) {
    return blocks_of(side) - blocks_of(side - slice);
}

/// What is known of a component: minus its mean times the factor, in fp32,
/// terms, then the factor.
__host__ __device__ constexpr int terms_at(int side) {
    return side * kScreenBlock * int(sizeof(float));
}
__host__ __device__ constexpr int factor_at(int side) {
    return (terms_at(side) + int(sizeof(ScreenTerms)) + 255) / 256 * 256;
}
__host__ __device__ constexpr int component_bytes(int side) {
    return factor_at(side) + blocks_of(side) * kScreenBlockBytes;
}

/// Calls use.operator()<side>(): blocks that d coordinates take.
template <class Use>
void with_side(int d, const Use& use) {
    if (d <= 32) {
        use.template operator()<2>();
    } else if (d <= 64) {
        use.template operator()<4>();
    } else if (d <= 96) {
        use.template operator()<6>();
    } else {
        use.template operator()<8>();
    }
}

/// The warp's 16 rows as products take them; false if one leaves fp16's range.
template <int kSide>
__device__ __forceinline__ bool load_screen_rows(
        const float* rows, int pitch, uint32_t (&y)[kSide][4]) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    bool in_range = true;
#pragma unroll
    for (int b = 0; b < kSide; b++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int j = b * kScreenBlock + e / 2 * 8 + 2 * q;
            float2 v = {0.f, 0.f};
            if (j < pitch) { // which is even
                v = *reinterpret_cast<const float2*>(
                        rows + int64_t(e % 2 * 8 + g) * pitch + j);
            }
            in_range &= fmaxf(fabsf(v.x), fabsf(v.y)) < kScreenRange;
            y[b][e] = ptx::bits(__floats2half2_rn(v.x, v.y));
        }
    }
    return __all_sync(0xffffffffu, in_range);
}

/** A row on its way through the components.
 *
 * Both operands are rounded to fp16 once: what that does to the length of
 * (y - mu)^T U is estimated as the sum of independent errors, taken to point
 * all along it, three standard deviations. */
struct ScreenedRow {
    float limit; ///< log-joints below do not matter
    float spread;

    /// Of a component, before its length is known.
    struct Allowed {
        float error; ///< of a length
        float most;  ///< length with which it may matter; negative: none
    };
    __device__ __forceinline__ Allowed allow(const ScreenTerms& terms) const {
        const float error = terms.error * spread + terms.least_error;
        // From 0 length on, a log-joint is at most log_norm.
        const float most =
                ptx::sqrt_approx(fmaxf(2 * (terms.log_norm - limit), 0.f)) +
                error;
        return {error, terms.log_norm < limit ? -1.f : most};
    }
    /// Whether the component may matter; raises the limit by what it sees.
    __device__ __forceinline__ bool keeps(
            const ScreenTerms& terms,
            const Allowed& allowed,
            float square,
            float reach) {
        const float length = ptx::sqrt_approx(square) * terms.scale;
        const float far = length + allowed.error;
        const float low = terms.log_norm - 0.5f * far * far - reach;
        limit = low > limit ? low : limit;
        return !(length > allowed.most);
    }
};

} // namespace gmm::cuda::full
