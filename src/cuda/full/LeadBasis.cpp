#include "cuda/full/LeadBasis.h"

#include <algorithm>
#include <cmath>

#include "ParallelFor.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

std::vector<float> lead_basis(size_t d, const double* packed) {
    constexpr size_t m = kLead;
    constexpr int kIterations = 8;
    std::vector<double> moments(d * d);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            moments[i * d + j] = moments[j * d + i] = *packed++;
        }
    }
    std::vector<double> v(d * m), next(d * m);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < m; j++) { // of full rank, without a pattern
            v[i * m + j] =
                    std::sin(double(1 + i) * double(1 + 2 * j)) + (i == j);
        }
    }
    auto orthonormalise = [&] {
        for (size_t j = 0; j < m; j++) {
            for (size_t l = 0; l <= j; l++) {
                double dot = 0;
                for (size_t i = 0; i < d; i++) {
                    dot += v[i * m + j] * v[i * m + l];
                }
                const double by = l < j ? dot : 1 / std::sqrt(dot);
                for (size_t i = 0; i < d; i++) {
                    double& x = v[i * m + j];
                    x = l < j ? x - by * v[i * m + l] : x * by;
                }
            }
            if (!std::isfinite(v[j])) { // moments of less than full rank
                for (size_t i = 0; i < d; i++) {
                    v[i * m + j] = i == j;
                }
            }
        }
    };
    orthonormalise();
    for (int turn = 0; turn < kIterations; turn++) {
        parallel_for(d, [&](size_t i) {
            double* const row = next.data() + i * m;
            std::fill_n(row, m, 0.);
            for (size_t l = 0; l < d; l++) {
                for (size_t j = 0; j < m; j++) {
                    row[j] += moments[i * d + l] * v[l * m + j];
                }
            }
        });
        std::swap(v, next);
        orthonormalise();
    }
    return {v.begin(), v.end()};
}

} // namespace gmm::cuda::full
