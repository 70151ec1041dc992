#pragma once

#include "cuda/full/Full.h"
#include "cuda/ptx/Ptx.cuh"

/** Log-joints of few components of few dimensions in double, for
 * SmallShapes.cu. */
namespace gmm::cuda::full::small {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpRows = 16; ///< two tiles of eight: one mma's rows
constexpr int kTileRows = kWarps * kWarpRows;
constexpr int kComponents = 64;
constexpr int kWarpComponents = kComponents / kWarps;
/// Log-joints of a component, one tile's rows: four apart modulo 16, so that
/// neighbours do not meet in a bank.
constexpr int kValuePitch = kTileRows + 4;
constexpr double kNegligible = 40; ///< nats: e^-40 of a row is not added

/** What a block keeps in shared memory; P: the dimension, padded to 8 or 16. */
template <int P>
struct SmallShared {
    /// Fours of rows that the upper triangle has in each eight of columns.
    static constexpr int kFragments = P == 8 ? 2 : 6;
    static constexpr int kRowPitch = P + 4;
    /// As mma_f64_m16n8k4 wants them.
    float factor[kComponents][kFragments][32];
    double shift[kComponents][P]; ///< mu^T U
    double log_norm[kComponents];
    double value[kComponents][kValuePitch]; ///< log-joint, then r
    float y[kTileRows][kRowPitch];
    double partial[kThreads];
    uint8_t list[kWarps][kTileRows + 4]; ///< rows that a component has
};

template <int P>
__device__ void load_model(const FullModelView& model, SmallShared<P>& s) {
    const int d = model.d;
    const int padded = (model.k + 1) / 2 * 2;
    constexpr int kFragments = SmallShared<P>::kFragments;
    for (int e = threadIdx.x; e < padded * kFragments * 32; e += kThreads) {
        const int c = e / (kFragments * 32);
        const int fragment = e / 32 % kFragments, lane = e % 32;
        const int half = fragment < 2 ? 0 : 1;
        const int i = (half ? fragment - 2 : fragment) * 4 + lane % 4;
        const int j = half * 8 + lane / 4;
        const bool inside = c < model.k && i <= j && j < d;
        s.factor[c][fragment][lane] = inside
                ? model.factors
                          [c * model.factor_stride + int64_t(i) * model.pitch +
                           j]
                : 0.f;
    }
    for (int e = threadIdx.x; e < padded * P; e += kThreads) {
        const int c = e / P, j = e % P;
        double sum = 0;
        if (c < model.k && j < d) {
            const float* const factor = model.factors + c * model.factor_stride;
            for (int i = 0; i <= j; i++) {
                sum += double(model.means[int64_t(c) * model.pitch + i]) *
                        factor[int64_t(i) * model.pitch + j];
            }
        }
        s.shift[c][j] = sum;
    }
    for (int c = threadIdx.x; c < padded; c += kThreads) {
        s.log_norm[c] = c < model.k ? model.terms[c].log_norm : -HUGE_VAL;
    }
}

/// The Mahalanobis distances' parts of this lane's columns: rows g, g + 8.
template <int P>
__device__ __forceinline__ void squares(
        const SmallShared<P>& s,
        int c,
        const double (&a)[P / 4][2],
        double (&square)[2]) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    square[0] = square[1] = 0;
#pragma unroll
    for (int half = 0; half < P / 8; half++) {
        const double2 shift = *reinterpret_cast<const double2*>(
                &s.shift[c][half * 8 + 2 * t]);
        double sum[4] = {-shift.x, -shift.y, -shift.x, -shift.y};
#pragma unroll
        for (int i = 0; i < 2 * half + 2; i++) {
            ptx::mma_f64_m16n8k4(
                    sum, a[i][0], a[i][1], s.factor[c][2 * half + i][lane]);
        }
        square[0] += sum[0] * sum[0] + sum[1] * sum[1];
        square[1] += sum[2] * sum[2] + sum[3] * sum[3];
    }
}

/// Log-joints of the warp's rows and all components.
template <int P>
__device__ __forceinline__ void evaluate(SmallShared<P>& s, int k) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first = threadIdx.x / 32 * kWarpRows;
    double a[P / 4][2];
#pragma unroll
    for (int i = 0; i < P / 4; i++) {
        a[i][0] = s.y[first + g][4 * i + t];
        a[i][1] = s.y[first + g + 8][4 * i + t];
    }
    const bool odd = t & 1, lower = t & 2;
    for (int c = 0; c < k; c += 2) {
        double one[2], other[2];
        squares<P>(s, c, a, one);
        squares<P>(s, c + 1, a, other);
        // Four lanes add up; each is left with one of component and row.
        double mine[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            mine[i] = (odd ? other[i] : one[i]) +
                    __shfl_xor_sync(0xffffffffu, odd ? one[i] : other[i], 1);
        }
        const double sum = (lower ? mine[1] : mine[0]) +
                __shfl_xor_sync(0xffffffffu, lower ? mine[0] : mine[1], 2);
        const int of = c + (odd ? 1 : 0);
        s.value[of][first + g + (lower ? 8 : 0)] = s.log_norm[of] - 0.5 * sum;
    }
}

} // namespace gmm::cuda::full::small
