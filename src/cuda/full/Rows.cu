#include <cuda_fp16.h>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

__device__ __forceinline__ float as_float(float x) {
    return x;
}
__device__ __forceinline__ float as_float(__half x) {
    return __half2float(x);
}
__device__ __forceinline__ float as_float(unsigned char x) {
    return x;
}

/// One warp a row.
template <class T>
__global__ void __launch_bounds__(256)
        load_kernel(const LoadArgs args, const FullRows out) {
    const int lane = threadIdx.x % 32;
    const int64_t i = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (i >= args.rows) {
        return;
    }
    const T* const x = reinterpret_cast<const T*>(
            static_cast<const char*>(args.input) + i * args.stride);
    bool bad = false;
    for (int j = lane; j < out.pitch; j += 32) {
        float y = 0;
        if (j < out.d) {
            y = (as_float(x[j]) - args.center[j]) * args.scale;
            bad |= !isfinite(y);
        }
        out.y[i * out.pitch + j] = isfinite(y) ? y : 0.f;
    }
    if (args.bad) {
        const bool any = __any_sync(0xffffffffu, bad);
        if (lane == 0) {
            args.bad[i] = any;
        }
    }
    if (bad) {
        atomicMin(args.first_bad, (unsigned long long)(args.row_number + i));
    }
}

constexpr int kProjectRows = 64;

/** 16 threads, one for each coordinate, share four rows.
 *
 * Sums of d products in fp32 are off by no more than 2^-19 |y| here (rounding
 * errors of d additions do not conspire: 32 times one); the bounds split what
 * they read into two bf16 numbers, 2^-15 |lead|. */
__global__ void __launch_bounds__(256) project_kernel(
        const FullRows rows, const Directions directions, int64_t count) {
    const float* const basis = directions.basis;
    const int j = threadIdx.x % kLead;
    const int64_t first =
            int64_t(blockIdx.x) * kProjectRows + threadIdx.x / kLead * 4;
    float sum[4] = {}, square[4] = {}, largest[4] = {};
    for (int at = 0; at < rows.pitch; at += 4) {
        float w[4], inverse[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            w[e] = at + e >= rows.d ? 0.f
                    : basis         ? basis[(at + e) * kLead + j]
                                    : float(at + e == j);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            inverse[e] = directions.deviations && at + e < rows.d
                    ? 1 / directions.deviations[at + e]
                    : 1.f;
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int64_t i = min(first + r, count - 1);
            const float4 y = *reinterpret_cast<const float4*>(
                    rows.y + i * rows.pitch + at);
            sum[r] += y.x * w[0] + y.y * w[1] + y.z * w[2] + y.w * w[3];
            square[r] += y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w;
            largest[r] = fmaxf(
                    fmaxf(largest[r],
                          fmaxf(fabsf(y.x) * inverse[0],
                                fabsf(y.y) * inverse[1])),
                    fmaxf(fabsf(y.z) * inverse[2], fabsf(y.w) * inverse[3]));
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        float lead = sum[r] * sum[r];
#pragma unroll
        for (int step = 8; step; step /= 2) {
            lead += __shfl_xor_sync(0xffffffffu, lead, step);
        }
        if (first + r < count) {
            rows.lead[(first + r) * kLead + j] = sum[r];
            if (j == 0) {
                rows.spread[first + r] = 0.5f * largest[r];
                rows.slack[first + r] =
                        0x1p-15f * sqrtf(lead) + 0x1p-19f * sqrtf(square[r]);
            }
        }
    }
}

} // namespace

void load_rows(const LoadArgs& args, const FullRows& out, cudaStream_t stream) {
    if (args.rows == 0) {
        return;
    }
    const unsigned grid = unsigned((args.rows + 7) / 8);
    switch (args.type) {
        case ElementType::f32:
            load_kernel<float><<<grid, 256, 0, stream>>>(args, out);
            break;
        case ElementType::f16:
            load_kernel<__half><<<grid, 256, 0, stream>>>(args, out);
            break;
        case ElementType::u8:
            load_kernel<unsigned char><<<grid, 256, 0, stream>>>(args, out);
            break;
    }
    check_launch("load_kernel");
}

void project_rows(
        const FullRows& rows,
        const Directions& directions,
        int64_t count,
        cudaStream_t stream) {
    const unsigned grid = unsigned((count + kProjectRows - 1) / kProjectRows);
    project_kernel<<<grid, 256, 0, stream>>>(rows, directions, count);
    check_launch("project_kernel");
}

} // namespace gmm::cuda::full
