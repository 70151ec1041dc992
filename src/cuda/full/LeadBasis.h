#pragma once

#include <cstddef>
#include <vector>

namespace gmm::cuda::full {

/** Orthonormal directions along which vectors vary most, about: the leading
 * eigenvectors of their second moments by subspace iteration. Which they are
 * decides how many pairs a bound leaves, not whether it holds.
 *
 * @param packed  lower triangle of the moments, row by row
 * @return        size d * kLead, coordinate by coordinate */
std::vector<float> lead_basis(size_t d, const double* packed);

} // namespace gmm::cuda::full
