#include "faiss_ext/coarse/centre.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

constexpr float kOutlier2 = 1e6f;
/// Above the least value, so many times as far as three quarters of all.
constexpr float kUsualReach = 3;
/// About the mean of n, one far away is n - 1 times as far out as the others.
/// Where none is that far, there is no need to look closer.
constexpr float kSuspect2 = 64;
/// Sums of squares below have lost bits.
constexpr float kLeastNorm2 = 1e-30f;

std::vector<float> norms2_about(
        size_t nlist,
        size_t d,
        const float* means,
        const std::vector<float>& centre) {
    std::vector<float> out(nlist);
    for (size_t i = 0; i < nlist; i++) {
        out[i] = best_code_kernels().squared_distance(
                means + i * d, centre.data(), d);
    }
    return out;
}

float middle(std::vector<float> values) {
    const auto at = values.begin() + values.size() / 2;
    std::nth_element(values.begin(), at, values.end());
    return *at;
}

} // namespace

std::vector<float> centre_of_means(size_t nlist, size_t d, const float* means) {
    std::vector<double> sum(d);
    for (size_t i = 0; i < nlist; i++) {
        for (size_t j = 0; j < d; j++) {
            sum[j] += means[i * d + j];
        }
    }
    std::vector<float> mean(d);
    for (size_t j = 0; j < d; j++) {
        mean[j] = float(sum[j] / nlist);
    }
    const std::vector<float> about_mean = norms2_about(nlist, d, means, mean);
    const float most = *std::max_element(about_mean.begin(), about_mean.end());
    if (nlist > 10 && most <= kSuspect2 * middle(about_mean)) {
        return mean;
    }
    const std::vector<float> median = coordinate_medians(nlist, d, means);
    const std::vector<float> norms2 = norms2_about(nlist, d, means, median);
    return *std::max_element(norms2.begin(), norms2.end()) <=
                    kOutlier2 * middle(norms2)
            ? mean
            : median;
}

std::vector<float> coordinate_medians(size_t n, size_t d, const float* x) {
    std::vector<float> out(d), column(n);
    for (size_t j = 0; j < d; j++) {
        for (size_t i = 0; i < n; i++) {
            column[i] = x[i * d + j];
        }
        out[j] = middle(column);
    }
    return out;
}

FAISS_EXT_SIMD_CLONES
void subtract(
        size_t n,
        size_t d,
        const float* x,
        const float* __restrict centre,
        float* out) {
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            out[i * d + j] = x[i * d + j] - centre[j];
        }
    }
}

std::vector<float> about(
        size_t n, size_t d, const float* x, const std::vector<float>& centre) {
    std::vector<float> out(n * d);
    subtract(n, d, x, centre.data(), out.data());
    return out;
}

float longest_row(size_t d, const std::vector<float>& x) {
    float longest = 0;
    for (size_t i = 0; i < x.size(); i += d) {
        longest = std::max(longest, norm_of(d, &x[i]));
    }
    return longest;
}

void shrink_into_unit_ball(size_t d, std::vector<float>& means) {
    const float longest = std::max(1.f, longest_row(d, means));
    for (float& v : means) {
        v /= longest;
    }
}

float norm_of(size_t d, const float* x) {
    const float norm2 = best_code_kernels().inner_product(x, x, d);
    if (norm2 > kLeastNorm2 && norm2 <= std::numeric_limits<float>::max()) {
        return std::sqrt(norm2);
    }
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        sum += double(x[j]) * x[j];
    }
    return float(std::sqrt(sum));
}

float to_directions(size_t n, size_t d, float* x, float* norms) {
    const CodeKernels& kernels = best_code_kernels();
    float most = 0;
    for (size_t i = 0; i < n; i++) {
        float* const row = x + i * d;
        const float norm2 = kernels.inner_product(row, row, d);
        most = std::max(most, norm2);
        norms[i] = std::sqrt(norm2);
        const float inverse = norm2 > 0 ? 1 / norms[i] : 1;
        for (size_t j = 0; j < d; j++) {
            row[j] *= inverse;
        }
    }
    return most;
}

float norm_scale(float factor, size_t d, const float* x) {
    const float scale = factor / norm_of(d, x);
    return std::isfinite(scale) ? scale : 0;
}

float usual_largest(size_t n, const float* x, float least, float largest) {
    constexpr size_t kSample = 32, kGroups = 4;
    const size_t count = std::min(n, kSample);
    // The least of the groups' maxima: about three quarters are below it, and
    // an outlier is in one group.
    float maxima[kGroups] = {least, least, least, least};
    for (size_t i = 0; i < count; i++) {
        float& most = maxima[i % kGroups];
        most = std::max(most, x[i * n / count]);
    }
    const float upper = *std::min_element(maxima, maxima + kGroups);
    const float most = least + kUsualReach * (upper - least);
    return most > least && most < largest ? most : largest;
}

} // namespace faiss_ext
