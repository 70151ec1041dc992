#pragma once

#include <cstddef>
#include <cstdint>

namespace gmm {

/// The inner loops of Screen, which multiply bytes.
struct ByteKernels {
    /// Rows that product() takes.
    static constexpr size_t kRows = 12;

    struct Quantised {
        float scale;
        float error; ///< |y - scale * bytes|
        int32_t sum; ///< of the bytes
    };

    /// The multiples of 1 / 127 of the largest absolute value nearest to y.
    Quantised (*quantise)(size_t d, const float* y, int8_t* bytes);

    /** out[i * stride + p * kLanes + l] = <row i, lane l of panel p>
     *
     * @param rows    1 to kRows: how many are written
     * @param quads   groups of four dimensions
     * @param q       four dimensions of kRows rows after the other
     * @param offset  128 times the sum of each row, size kRows
     * @param panels  how many follow each other in means
     * @param means   four dimensions of kLanes components after the other,
     *                128 added to each value; size panels * quads * 4 * kLanes
     */
    void (*product)(
            size_t rows,
            size_t quads,
            const int8_t* q,
            const int32_t* offset,
            size_t panels,
            const uint8_t* means,
            float* out,
            size_t stride);

    /// What a row and each component bring to a bound; arrays of size k.
    struct Terms {
        float scale;     ///< the row's
        float error;     ///< |y - (what its bytes stand for)|
        float norm;      ///< of what its bytes stand for, or more
        float half_norm; ///< |y|^2 / 2
        const float* scales;
        const float* errors;
        const float* norms;
        const float* bias;
        const float* precision;
    };

    /** Replaces products of a row by upper bounds of its log-joints.
     *
     * @param k  a multiple of kLanes
     * @return   the largest of the lower bounds
     */
    float (*bounds)(size_t k, const Terms& terms, float* v);

    /// The indices where v[i] >= threshold, ascending; how many.
    /// @param k      a multiple of kLanes
    /// @param index  size k
    size_t (*select)(size_t k, const float* v, float threshold, int32_t* index);

    /// sum_j (y_j - mean_j)^2, with chains of d / kLanes + 5 additions
    float (*distance)(size_t d, const float* y, const float* mean);
};

/// nullptr where this machine or this build lacks them.
const ByteKernels* byte_kernels();

} // namespace gmm
