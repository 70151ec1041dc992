#include <algorithm>

#include "cuda/operands/ModelSurvey.h"

namespace gmm::cuda {

namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr int kMaxima = 6;
constexpr int kWarps = 8;
constexpr int kBlocks = 528; ///< a warp takes many components
/// Parts of the components that sums are made of: fixed, so that sums are.
constexpr int kParts = 64;
constexpr int kColumns = 32;

struct SurveyArgs {
    const float *means, *variances, *log_weights;
    int k, d, stride;
    double* maxima;    ///< 0 before
    double* partial;   ///< [kParts][d]
    double* explained; ///< [d]
};

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
    for (int step = 16; step; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/// A warp a component.
__global__ void __launch_bounds__(kWarps * 32)
        maxima_kernel(const __grid_constant__ SurveyArgs args) {
    const int lane = threadIdx.x % 32;
    double largest[kMaxima] = {};
    for (int c = blockIdx.x * kWarps + threadIdx.x / 32; c < args.k;
         c += gridDim.x * kWarps) {
        const float* const mean = args.means + int64_t(c) * args.d;
        float top = 0;
        double norm = 0;
        for (int j = lane; j < args.d; j += 32) {
            top = fmaxf(top, fabsf(mean[j]));
            norm += double(mean[j]) * mean[j];
        }
        top = warp_max(top);
        norm = warp_sum(norm);
        const double v = args.variances[int64_t(c) * args.stride];
        const double peak = fabs(double(args.log_weights[c])) +
                0.5 * args.d * fabs(log(6.283185307179586 * v));
        const double constant = peak + 0.5 * norm / v;
        const double mine[kMaxima] = {
                top, 1 / v, top / v, kLog2e * constant, norm, kLog2e * peak};
#pragma unroll
        for (int i = 0; i < kMaxima; i++) {
            largest[i] = fmax(largest[i], mine[i]);
        }
    }
    // Positive doubles compare as integers; a maximum has no order.
#pragma unroll
    for (int i = 0; i < kMaxima; i++) {
        if (lane == i) {
            atomicMax(
                    reinterpret_cast<unsigned long long*>(args.maxima + i),
                    (unsigned long long)(__double_as_longlong(largest[i])));
        }
    }
}

/// A block for 32 dimensions of a part of the components.
__global__ void __launch_bounds__(kWarps* kColumns)
        explained_kernel(const __grid_constant__ SurveyArgs args) {
    __shared__ double sums[kWarps][kColumns];
    const int column = threadIdx.x % kColumns, w = threadIdx.x / kColumns;
    const int j = blockIdx.x * kColumns + column;
    const int begin = int(int64_t(args.k) * blockIdx.y / kParts);
    const int end = int(int64_t(args.k) * (blockIdx.y + 1) / kParts);
    double sum = 0;
    for (int first = begin + w * 32; first < end; first += kWarps * 32) {
        // A lane for the weight of each of 32 components.
        const int count = min(32, end - first);
        const double weight = column < count
                ? exp(double(args.log_weights[first + column]))
                : 0.;
        for (int i = 0; i < count; i++) {
            const double of = __shfl_sync(0xffffffffu, weight, i);
            const double m = j < args.d
                    ? args.means[int64_t(first + i) * args.d + j]
                    : 0.f;
            sum += of * (m * m);
        }
    }
    sums[w][column] = sum;
    __syncthreads();
    if (w == 0 && j < args.d) {
        for (int i = 1; i < kWarps; i++) {
            sum += sums[i][column];
        }
        args.partial[size_t(blockIdx.y) * args.d + j] = sum;
    }
}

__global__ void collect_kernel(const __grid_constant__ SurveyArgs args) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j < args.d) {
        double sum = 0;
        for (int p = 0; p < kParts; p++) {
            sum += args.partial[size_t(p) * args.d + j];
        }
        args.explained[j] = sum;
    }
}

} // namespace

void ModelSurvey::start(
        const float* means,
        const float* variances,
        const float* log_weights,
        int k,
        int d,
        int stride,
        cudaStream_t stream) {
    const size_t result = kMaxima + d;
    memory_.reserve((result + size_t(kParts) * d) * sizeof(double));
    host_.reserve(result * sizeof(double));
    double* const values = memory_.as<double>();
    check(cudaMemsetAsync(values, 0, kMaxima * sizeof(double), stream),
          "clearing");
    const SurveyArgs args{
            means,
            variances,
            log_weights,
            k,
            d,
            stride,
            values,
            values + result,
            values + kMaxima};
    maxima_kernel<<<
            std::min(kBlocks, (k + kWarps - 1) / kWarps),
            kWarps * 32,
            0,
            stream>>>(args);
    explained_kernel<<<
            dim3((d + kColumns - 1) / kColumns, kParts),
            kWarps * kColumns,
            0,
            stream>>>(args);
    collect_kernel<<<(d + 127) / 128, 128, 0, stream>>>(args);
    check_launch("survey of the model");
    copy(host_.as<double>(), values, result, stream);
    explained.resize(d);
    under_way_ = true;
}

void ModelSurvey::wait(cudaStream_t stream) {
    if (!under_way_) {
        return;
    }
    check(cudaStreamSynchronize(stream), "survey of the model");
    under_way_ = false;
    const double* const values = host_.as<double>();
    largest_mean = values[0];
    largest_inverse = values[1];
    largest_scaled = values[2];
    largest_constant = values[3];
    largest_norm = values[4];
    largest_peak = values[5];
    std::copy_n(values + kMaxima, explained.size(), explained.begin());
}

} // namespace gmm::cuda
