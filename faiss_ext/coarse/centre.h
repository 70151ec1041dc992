#pragma once

#include <cstddef>
#include <vector>

namespace faiss_ext {

/** What distances to the means are computed about, so that their rounding is
 * relative to the means' spread: the mean of them; or, where one is a thousand
 * times as far out as the middle one, the median of each coordinate.
 *
 * @param means  size nlist * d
 * @return       size d
 */
std::vector<float> centre_of_means(size_t nlist, size_t d, const float* means);

/// The median of each coordinate of n vectors, size d: unlike an average, it
/// does not follow a single vector that is far from all others.
std::vector<float> coordinate_medians(size_t n, size_t d, const float* x);

/// out = x - centre, of n vectors; out may be x.
void subtract(
        size_t n, size_t d, const float* x, const float* centre, float* out);

/// x - centre, size n * d
std::vector<float> about(
        size_t n, size_t d, const float* x, const std::vector<float>& centre);

/// |x|, also where its square is not a float.
float norm_of(size_t d, const float* x);

/// The largest norm of rows of d.
float longest_row(size_t d, const std::vector<float>& x);

/// Makes all means as many times shorter as has none longer than 1, which is
/// where the mixture of directions lives. No inner products change places.
void shrink_into_unit_ball(size_t d, std::vector<float>& means);

/** Divides n vectors by their norms, zero vectors excepted.
 *
 * @param norms  output, size n
 * @return       the largest squared norm
 */
float to_directions(size_t n, size_t d, float* x, float* norms);

/// factor / |x|, or 0 where that is not a float.
float norm_scale(float factor, size_t d, const float* x);

/** Of values from least to largest, a largest one that outliers do not move:
 * three times as far above the least as about three quarters of all are, by a
 * sample of 32, but not above `largest`. */
float usual_largest(size_t n, const float* x, float least, float largest);

} // namespace faiss_ext
