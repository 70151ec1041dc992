#pragma once

#include <cstdint>
#include <vector>

#include "ByteKernels.h"

namespace gmm {

/** Bounds of log-joints from bytes, where the processor multiplies them four
 * times as fast as floats.
 *
 * A log-joint is bias + <y, f> - precision |y|^2 / 2 for the component's
 * f = mean * precision. With bytes times a scale, y' and f', for y and f,
 *
 *     |<y, f> - <y', f'>| <= |y - y'| |f| + |y'| |f - f'|
 *
 * (Cauchy and Schwarz), and <y', f'> is exact. Rounding of the few operations
 * that follow is less than Scorer::row_error allows for.
 */
struct Screen {
    size_t k = 0; ///< 0: nothing to screen with
    size_t d = 0;

    Screen() = default;

    /// @param factors  f, size k * d
    /// Leaves k at 0 where bytes are not faster, on this machine or for so few
    /// components or dimensions.
    Screen(size_t k, size_t d, const float* factors);

    struct Scratch {
        std::vector<int8_t> q, bytes;
        std::vector<int32_t> offset;
        std::vector<float> scale, error;
    };

    /// Products of n rows.
    /// @param v  size n * stride, a row's being k rounded up to kLanes
    void multiply(
            size_t n,
            const float* y,
            Scratch& scratch,
            float* v,
            size_t stride) const;

    /** Turns the products of row i into upper bounds of its log-joints.
     *
     * @param norm       |y|^2
     * @param bias       size k rounded up, -infinity beyond k
     * @param precision  of the same size, 0 beyond k
     * @return           a lower bound of the largest log-joint
     */
    float bounds(
            size_t i,
            double norm,
            const float* bias,
            const float* precision,
            const Scratch& scratch,
            float* v) const;

    /// The components of which v is at least threshold, ascending; how many.
    /// @param index  size k
    size_t select(const float* v, float threshold, int32_t* index) const {
        return kernel->select(scales.size(), v, threshold, index);
    }

    /// |y - mean|^2 with a relative error of distance_error()
    float distance(const float* y, const float* mean) const {
        return kernel->distance(d, y, mean);
    }
    double distance_error() const;

private:
    const ByteKernels* kernel = nullptr;
    std::vector<uint8_t> means; ///< panels as ByteKernels reads them
    std::vector<float> scales, errors, norms;

    size_t quads() const {
        return (d + 3) / 4;
    }
};

} // namespace gmm
