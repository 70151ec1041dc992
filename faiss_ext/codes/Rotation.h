#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace faiss_ext {

/** A random orthogonal map of d dimensions in O(d log d): four rounds of random
 * signs and a Walsh-Hadamard transform of 2^p dimensions, 2^p <= d (Andoni et
 * al., arXiv 1509.02897). Where 2^p < d the first 2^p and the last 2^p take
 * turns, which misses none, and the dimensions are shuffled halfway, so that
 * all of them mix.
 *
 * The same for the same d, on every machine.
 */
class Rotation {
public:
    explicit Rotation(size_t d = 0);

    /** out = P (scale (x - centre)), of n vectors.
     *
     * @param x       vectors of d values
     * @param centre  size d, or nullptr: zeros
     * @param out     size n * d, not overlapping x
     * @param rows    their n rows in x, or nullptr: the first n
     */
    void apply(
            size_t n,
            const float* x,
            const float* centre,
            float scale,
            float* out,
            const uint32_t* rows = nullptr) const;

    /// out = the x with P x = y, of n vectors; size n * d, not overlapping y.
    void apply_inverse(size_t n, const float* y, float* out) const;

private:
    static constexpr size_t kRounds = 4;
    size_t d = 0;
    size_t power = 0;         ///< 2^p
    std::vector<float> signs; ///< 1 or -1, size kRounds * d
    /// Which dimension comes where in the shuffle; empty where the transform is
    /// of all.
    std::vector<uint32_t> order;
};

} // namespace faiss_ext
