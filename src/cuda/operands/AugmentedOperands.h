#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

/** Constants folded into the matrix product, so that it yields scores:
 *
 *    score_ik = a_k (Y_i M_k + q_i) + b_k
 *             = Y_i (a_k M_k) + [q, q, q', q', q'', c, c, c] .
 *                               [a, a', a, a', a, b, b', b'']
 *
 * with numbers split into fp16 parts (a into two, the others into three), as
 * exact as fp32 has them. Eight more dimensions cost less than two more
 * instructions a score. q and a are scaled against each other, b against c,
 * so that usual data use the middle of fp16's range. What leaves the range: a
 * component is widened until it does not (Model::least_variance), and where an
 * eighth of them would be, the model takes the kernel that does not fold; a row
 * gets slots that are no numbers, and so an empty list, and the dense path.
 */
namespace gmm::cuda {

constexpr int kAugmentedSlots = 8;
/// A step of the matrix units takes 16. Components fill three more with c, for
/// rows of the dense path, whose three are [l, l', l''], l = -lse_i / c: the
/// product is then the logarithm of a responsibility.
constexpr int kWideSlots = 16;
constexpr int kAugmentedDimension = 128; ///< at most

/// c; b_k / c is what the slots hold.
constexpr float kAugmentedUnit = 1024;
/// |a|, |b / c| and |a M| at most. Padding has 65504, which stays below all
/// others: (|Y| + |M|)^2 <= 2 |Y|^2 + 2 |M|^2.
constexpr float kAugmentedLimit = 16000;
/// |q| at most, as scaled.
constexpr float kAugmentedRowLimit = 60000;
/// Bits of a |q| at most where responsibilities come from the product itself:
/// what cancels leaves half a bit of error, and fp16 has room for one.
constexpr float kAugmentedScoreLimit = 1 << 19;

/// Power of two by which q is divided and a multiplied.
inline float augmented_scale(int d, float fp16_scale) {
    return std::exp2(
            std::ceil(std::log2(fp16_scale * fp16_scale * float(d) / 512)));
}

#ifdef __CUDACC__
/// x in n parts, each what the ones before miss.
template <int kParts, class T>
__device__ __forceinline__ void split(T x, __half (&parts)[kParts]) {
#pragma unroll
    for (int i = 0; i < kParts; i++) {
        parts[i] = __float2half_rn(float(x));
        x -= T(__half2float(parts[i]));
    }
}

/// One row's or component's slots: a 16-byte store.
__device__ __forceinline__ void put_slots(
        __half* to, const __half (&slots)[kAugmentedSlots]) {
    uint4 bits = {};
    uint32_t* const words = &bits.x;
#pragma unroll
    for (int i = 0; i < kAugmentedSlots / 2; i++) {
        words[i] = uint32_t(__half_as_ushort(slots[2 * i])) |
                uint32_t(__half_as_ushort(slots[2 * i + 1])) << 16;
    }
    *reinterpret_cast<uint4*>(to) = bits;
}

__device__ __forceinline__ void put_row_slots(__half* to, float q) {
    __half p[3];
    split(q, p);
    const __half c = __float2half_rn(kAugmentedUnit);
    const __half none = __ushort_as_half(0x7fff);
    if (fabsf(q) > kAugmentedRowLimit) {
        put_slots(to, {none, none, none, none, none, none, none, none});
    } else {
        put_slots(to, {p[0], p[0], p[1], p[1], p[2], c, c, c});
    }
}

__device__ __forceinline__ void put_component_slots(
        __half* to, double a, double b) {
    __half p[2], r[3];
    split(a, p);
    split(b / kAugmentedUnit, r);
    put_slots(to, {p[0], p[1], p[0], p[1], p[0], r[0], r[1], r[2]});
    const __half c = __float2half_rn(kAugmentedUnit),
                 zero = __ushort_as_half(0);
    put_slots(to + kAugmentedSlots, {c, c, c, zero, zero, zero, zero, zero});
}

/// A dense row's further slots: what its scores are lowered by.
__device__ __forceinline__ void put_lowering_slots(__half* to, float by) {
    __half l[3];
    split(fmaxf(-by / kAugmentedUnit, -65504.f), l);
    const __half zero = __ushort_as_half(0);
    put_slots(to, {l[0], l[1], l[2], zero, zero, zero, zero, zero});
}
#endif

} // namespace gmm::cuda
