#include <cuda_bf16.h>

#include <algorithm>
#include <numbers>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

constexpr int kPrepareBlocks = 512;
/// A pivot that much smaller than what it was before elimination leaves the
/// bound without digits: there is none then, and all components are evaluated.
constexpr double kLeastPivot = 1e-10;
/// Bounds allow for an error e of a length sqrt(q) by 1.001 q + 1001 e^2, which
/// is at least (sqrt(q) + e)^2.
constexpr float kErrorFactor = 31.64f; // sqrt(1001)

/// The sum over the 16 threads of half a warp.
__device__ __forceinline__ double half_warp_sum(double x) {
#pragma unroll
    for (int step = 8; step; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

struct Lead {
    double gram[kLead][kLead + 1];
    double lower[kLead][kLead + 1];
    double inverse[kLead][kLead + 1];
    double mean[kLead];
    double log_diagonal, squares, weighted;
    int failed;
};

/// inverse = L^-1 where L L^T = gram; one warp.
__device__ void invert_gram(Lead& s, int n) {
    const int i = threadIdx.x;
    if (i == 0) {
        s.failed = 0;
    }
    const double before = i < n ? s.gram[i][i] : 1;
    for (int j = 0; j < n; j++) {
        __syncwarp();
        if (i == j) {
            const double pivot = s.gram[j][j];
            const bool good = pivot > kLeastPivot * before;
            s.failed |= !good;
            s.lower[j][j] = good ? sqrt(pivot) : 1;
        }
        __syncwarp();
        if (i > j && i < n) {
            s.lower[i][j] = s.gram[i][j] / s.lower[j][j];
        }
        __syncwarp();
        if (i > j && i < n) {
            for (int m = j + 1; m <= i; m++) {
                s.gram[i][m] -= s.lower[i][j] * s.lower[m][j];
            }
        }
    }
    __syncwarp();
    if (i < kLead) {
        for (int row = 0; row < kLead; row++) {
            s.inverse[row][i] = 0;
        }
        for (int row = i; row < n && i < n; row++) {
            double sum = row == i;
            for (int l = i; l < row; l++) {
                sum -= s.lower[row][l] * s.inverse[l][i];
            }
            s.inverse[row][i] = sum / s.lower[row][row];
        }
    }
    __syncwarp();
}

/** One block a component. With B the basis (d x n) and U the factor, the
 * marginal of B^T y has the covariance B^T (U U^T)^-1 B = Z^T Z, U Z = B, whose
 * precision factor V, upper triangular, bounds the Mahalanobis distance:
 * |(y - mu)^T U| >= |(B^T (y - mu))^T V|. */
__global__ void __launch_bounds__(256) prepare_kernel(
        const FullModelView model,
        const float* __restrict__ log_weights,
        const Directions directions,
        double* scratch) {
    const float* const basis = directions.basis;
    __shared__ Lead s;
    const int d = model.d, n = min(d, kLead);
    const int column = threadIdx.x / kLead, part = threadIdx.x % kLead;
    double* const all_z = scratch + size_t(blockIdx.x) * kLead * d;
    double* const z = all_z + size_t(column) * d;
    for (int c = blockIdx.x; c < model.k; c += gridDim.x) {
        const float* const factor = model.factors + c * model.factor_stride;
        const float* const mean = model.means + int64_t(c) * model.pitch;
        __syncthreads();
        // Half a warp solves for a column; it alone reads what it has written.
        double mean_sum = 0;
        for (int i = d - 1; i >= 0; i--) {
            const float* const row = factor + int64_t(i) * model.pitch;
            double sum = 0;
            for (int l = i + 1 + part; l < d; l += kLead) {
                sum += double(row[l]) * z[l];
            }
            sum = half_warp_sum(sum);
            if (part == 0) {
                const double b =
                        basis ? basis[i * kLead + column] : i == column;
                z[i] = (b - sum) / row[i];
                mean_sum += b * mean[i];
            }
            __syncwarp();
        }
        if (part == 0) {
            s.mean[column] = mean_sum;
        }
        if (threadIdx.x == 0) {
            s.log_diagonal = s.squares = s.weighted = 0;
        }
        __syncthreads();
        double gram = 0;
        if (column < n && part < n) {
            for (int l = 0; l < d; l++) {
                gram += z[l] * all_z[size_t(part) * d + l];
            }
        }
        s.gram[column][part] = gram;
        __syncthreads();
        if (threadIdx.x < 32) {
            invert_gram(s, n);
        } else if (threadIdx.x < 64) {
            double logs = 0, squares = 0, weighted = 0;
            for (int j = threadIdx.x - 32; j < d; j += 32) {
                logs += log(double(factor[int64_t(j) * model.pitch + j]));
                for (int i = 0; i <= j; i++) {
                    const double u = factor[int64_t(i) * model.pitch + j];
                    const double deviation = directions.deviations
                            ? directions.deviations[i]
                            : 1.f;
                    squares += u * u;
                    weighted += u * u * deviation * deviation;
                }
            }
            for (int step = 16; step; step /= 2) {
                logs += __shfl_xor_sync(0xffffffffu, logs, step);
                squares += __shfl_xor_sync(0xffffffffu, squares, step);
                weighted += __shfl_xor_sync(0xffffffffu, weighted, step);
            }
            if (threadIdx.x == 32) {
                s.log_diagonal = logs;
                s.squares = squares;
                s.weighted = weighted;
            }
        }
        __syncthreads();
        // V = inverse^T; this thread's element is V[row][of].
        const int row = column, of = part;
        const float v = s.failed || of < row ? 0.f : float(s.inverse[of][row]);
        const int group = c / 4, tile = of / 2, n_index = c % 4 * 2 + of % 2;
        const int lane = n_index * 4 + row % 8 / 2;
        auto* const fragment = reinterpret_cast<__nv_bfloat16*>(
                model.bound_factors + (size_t(group) * 8 + tile) * 32 + lane);
        const int at = row / 8 * 2 + row % 2;
        const __nv_bfloat16 hi = __float2bfloat16_rn(v);
        fragment[at] = hi;
        fragment[4 + at] = __float2bfloat16_rn(v - __bfloat162float(hi));
        if (threadIdx.x < kLead) {
            const int j = threadIdx.x;
            double shift = 0;
            for (int i = 0; i <= j && !s.failed; i++) {
                shift += s.inverse[j][i] * s.mean[i];
            }
            reinterpret_cast<float*>(
                    model.bound_shifts + (size_t(group) * 8 + j / 2) * 4 +
                    c % 4)[j % 2] = float(-shift);
        }
        if (threadIdx.x == 0) {
            const double log_norm = log_weights ? log_weights[c] +
                            s.log_diagonal - 0.5 * d * log(2 * std::numbers::pi)
                                                : 0.;
            double lead = 0, length = 0;
            for (int j = 0; j < n && !s.failed; j++) {
                for (int i = 0; i <= j; i++) {
                    lead += s.inverse[j][i] * s.inverse[j][i];
                }
                length += s.mean[j] * s.mean[j];
            }
            lead = sqrt(lead);
            model.terms[c] = {
                    log_norm, float(sqrt(s.squares)), float(sqrt(s.weighted))};
            model.bound_terms[c] = {
                    float(log_norm),
                    kErrorFactor * float(lead),
                    kErrorFactor * float(lead * sqrt(length)) * 0x1p-20f,
                    0.f};
        }
    }
}

} // namespace

size_t bound_scratch_bytes(int d) {
    return size_t(kPrepareBlocks) * kLead * d * sizeof(double);
}

void prepare_model(
        const FullModelView& model,
        const float* log_weights,
        const Directions& directions,
        double* scratch,
        cudaStream_t stream) {
    const size_t groups = (model.k + 3) / 4;
    check(cudaMemsetAsync(
                  model.bound_factors,
                  0,
                  groups * 8 * 32 * sizeof(uint4),
                  stream),
          "clearing");
    check(cudaMemsetAsync(
                  model.bound_shifts, 0, groups * 32 * sizeof(float2), stream),
          "clearing");
    check(cudaMemsetAsync(
                  model.bound_terms,
                  0,
                  groups * 4 * sizeof(BoundTerms),
                  stream),
          "clearing");
    prepare_kernel<<<std::min(model.k, kPrepareBlocks), 256, 0, stream>>>(
            model, log_weights, directions, scratch);
    check_launch("prepare_kernel");
}

} // namespace gmm::cuda::full
