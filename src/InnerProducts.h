#pragma once

#include <cstddef>
#include <vector>

#include "cpu/Kernels.h"

namespace gmm {

/** Means in the order in which the inner loops read them: panels of kLanes
 * components, and within a panel one dimension after the other.
 *
 * Memory 4 * d * (k rounded up to kLanes) bytes. Packing costs as much as the
 * products with few vectors, so keep it as long as the means stay.
 */
struct PackedMeans {
    size_t k = 0;
    size_t d = 0;

    PackedMeans() = default;

    /// @param means  size k * d, one component after the other
    PackedMeans(size_t k, size_t d, const float* means);

    /// Takes the transpose instead: dimension j of component c is
    /// means[j * stride + c].
    void assign_transposed(
            size_t k, size_t d, const float* means, size_t stride);

    size_t panels() const {
        return (k + kLanes - 1) / kLanes;
    }

    /// kLanes components, size d * kLanes; the last panel ends in zeros.
    const float* panel(size_t p) const {
        return lines[p * d].lane;
    }

private:
    struct alignas(64) Line { // of the cache
        float lane[kLanes];
    };
    std::vector<Line> lines; ///< size panels() * d
};

/** out[i * stride + c] = <q_i, mean_c> for c < means.k; nothing else of out is
 * written.
 *
 * In the calling thread; blocks of queries may be computed side by side. Each
 * product is one chain of d additions: its bits depend on the query, the mean
 * and the instruction set, not on n or the query's place.
 *
 * @param n       number of queries; the more, the cheaper each of them
 * @param q       size n * means.d
 * @param stride  at least means.k
 */
void inner_products(
        const PackedMeans& means,
        size_t n,
        const float* q,
        float* out,
        size_t stride,
        const Kernels& kernel = best_kernels());

/** The same for out[i * stride + c] = -1/2 sum_j (q_ij scale_cj - shift_cj)^2,
 * at twice the cost: nothing cancels, so that errors are relative to it, but
 * for the rounding of the shifts.
 */
void exponents(
        const PackedMeans& scales,
        const PackedMeans& shifts,
        size_t n,
        const float* q,
        float* out,
        size_t stride,
        const Kernels& kernel = best_kernels());

} // namespace gmm
