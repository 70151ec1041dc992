#pragma once

#include <cstddef>
#include <cstdint>

namespace gmm {

/// Rows of log-joints are padded with -infinity to a multiple of this.
constexpr size_t kLanes = 16;

/// What mahalanobis() and moments() keep in registers and caches.
constexpr size_t kFewDimensions = 32, kMomentRows = 32;

/// Contributions below exp(-23) of the largest are not summed: even 2^20 of
/// them change a log-likelihood by no more than 1e-4.
constexpr float kNegligible = -23;

/** The inner loops of the CPU backend for one instruction set.
 *
 * Where there is a k, it is a multiple of kLanes.
 */
struct Kernels {
    /// v[i] += bias[i] - half_norm * precision[i]; the largest v[i] afterwards
    float (*finish)(
            size_t k,
            float half_norm,
            const float* bias,
            const float* precision,
            float* v);

    /** Divides a row at a threshold.
     *
     * @param index  where v[i] >= threshold, ascending
     * @param value  v[i] - shift there
     * @param tail   the sum of exp(v[i] - shift) over the others
     * @return       how many index holds
     */
    size_t (*split)(
            size_t k,
            const float* v,
            float threshold,
            float shift,
            int32_t* index,
            float* value,
            double* tail);

    /// Where x[i] >= least, ascending, of any n; rest: the others' sum.
    size_t (*select)(
            size_t n, const float* x, float least, int32_t* index, float* rest);

    /// v[i] = exp(v[i] - shift), 0 where v[i] < threshold; their sum
    double (*exponentials)(size_t k, float threshold, float shift, float* v);

    /// The largest of v[l], v[l + kLanes], ... for each lane l
    void (*lane_max)(size_t k, const float* v, float* largest);

    /// x[i] = exp(x[i]) for i < n; reads and writes up to a multiple of kLanes
    void (*exp)(size_t n, float* x);

    /// sum_j (y_j - mean_j)^2 precision_j in double; nullptr: precisions of 1
    double (*distance)(
            size_t d,
            const float* y,
            const float* mean,
            const float* precision);

    /// out = y - mean; the sum of its squares
    float (*subtract)(size_t d, const float* y, const float* mean, float* out);

    /** square[r] += |v_r^T u|^2 of some rows and kLanes columns.
     *
     * @param v       row r begins at r * stride
     * @param u       size depth * kLanes, row-major
     * @param square  size rows
     */
    void (*squares)(
            size_t rows,
            size_t depth,
            const float* v,
            size_t stride,
            const float* u,
            float* square);

    /** square[i] = |(y_i - mean)^T u|^2 and length[i] = |y_i - mean|^2.
     *
     * @param rows  a multiple of kLanes
     * @param d     at most kFewDimensions
     * @param y     coordinate j of row i at y[j * rows + i]
     * @param u     upper triangular, row-major, d rows of `pitch`: d to a
     *              multiple of 4, filled with zeros
     */
    void (*mahalanobis)(
            size_t rows,
            size_t d,
            const float* y,
            const float* mean,
            const float* u,
            size_t pitch,
            float* square,
            float* length);

    /** first += sum_i r_i (y_i - mean), size d, and the lower triangle of the
     * row-major second, size d * d, += sum_i r_i (y_i - mean) (y_i - mean)^T:
     * in double.
     *
     * @param n  at most kMomentRows
     * @param d  at most kFewDimensions
     */
    void (*moments)(
            size_t n,
            size_t d,
            const float* const* y,
            const float* mean,
            const float* r,
            double* first,
            double* second);

    /// sum_j y_j^2 in double
    double (*norm)(size_t d, const float* y);

    /// sum[j] += r * y[j]
    void (*add)(size_t d, double r, const float* y, double* sum);

    /// sum[j] += r * y[j]^2
    void (*add_squares)(size_t d, double r, const float* y, double* sum);

    /// How many rows product() takes at most.
    size_t product_rows;

    /** out[i * stride + p * kLanes + l] = <row i, lane l of panel p>
     *
     * @param rows    1 to product_rows
     * @param q       q[j * rows + i] is dimension j of row i, size d * rows
     * @param panels  how many follow each other in means
     * @param means   size panels * d * kLanes, in the order of PackedMeans
     */
    void (*product)(
            size_t rows,
            size_t d,
            const float* q,
            size_t panels,
            const float* means,
            float* out,
            size_t stride);

    /// The same for -1/2 sum_j (row_j scale_j - shift_j)^2, whose error is
    /// relative to it but for a shift's own rounding.
    void (*exponents)(
            size_t rows,
            size_t d,
            const float* q,
            size_t panels,
            const float* scales,
            const float* shifts,
            float* out,
            size_t stride);
};

enum class InstructionSet { portable, avx2, avx512 };

/// nullptr where this machine or this build lacks it.
const Kernels* kernels(InstructionSet set);

/// The fastest that this machine has.
const Kernels& best_kernels();

} // namespace gmm
