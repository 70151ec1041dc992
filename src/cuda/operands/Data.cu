#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Data.h"

namespace gmm::cuda {

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

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/// One warp a row, two dimensions a lane.
template <class T>
__global__ void __launch_bounds__(256) prepare_kernel(
        const __grid_constant__ PrepareArgs args,
        const __grid_constant__ PreparedRows out,
        float unfold,
        RowChecks* checks) {
    const int lane = threadIdx.x % 32;
    const int pitch = out.operand.pitch;
    const int64_t plane = out.operand.rows * pitch;
    const int64_t warps = int64_t(gridDim.x) * 8;
    float largest = 0, largest_norm = 0;
    unsigned long long bad = ~0ull;
    for (int64_t i = int64_t(blockIdx.x) * 8 + threadIdx.x / 32; i < args.rows;
         i += warps) {
        const T* const x = reinterpret_cast<const T*>(
                static_cast<const char*>(args.input) + i * args.stride);
        __half* const to = const_cast<__half*>(out.operand.data) +
                (args.row_begin + i) * pitch;
        float norm = 0, norm_hi = 0, missed = 0;
        for (int j = 2 * lane; j < pitch; j += 64) {
            float y[2], hi[2], lo[2], square[2], square_hi[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                y[e] = j + e < args.d
                        ? (as_float(x[j + e]) - args.center[j + e]) * args.scale
                        : 0.f;
                if (!isfinite(y[e])) {
                    bad = min(bad, (unsigned long long)(args.row_number + i));
                    y[e] = 0;
                    missed = NAN;
                }
                largest = fmaxf(largest, fabsf(y[e]));
                y[e] *= args.fp16_scale;
                hi[e] = __half2float(__float2half_rn(y[e]));
                missed += fabsf(y[e]) <= args.limit
                        ? (y[e] - hi[e]) * (y[e] - hi[e])
                        : INFINITY;
                lo[e] = args.lo ? __half2float(__float2half_rn(y[e] - hi[e]))
                                : 0.f;
                y[e] = hi[e] + lo[e];
                square[e] = y[e] * y[e];
                square_hi[e] = __half2float(__float2half_rn(square[e]));
                norm += square[e];
                norm_hi += hi[e] * hi[e];
            }
            int p = 0;
            auto put = [&](float a, float b) {
                *reinterpret_cast<__half2*>(to + p++ * plane + j) =
                        __floats2half2_rn(a, b);
            };
            put(hi[0], hi[1]);
            if (args.squares) {
                put(square_hi[0], square_hi[1]);
            }
            if (args.lo) {
                put(lo[0], lo[1]);
                if (args.squares) {
                    put(square[0] - square_hi[0], square[1] - square_hi[1]);
                }
            }
        }
        norm = warp_sum(norm);
        norm_hi = warp_sum(norm_hi);
        missed = warp_sum(missed);
        if (lane == 0) {
            out.row_constant[args.row_begin + i] = -0.5f * norm;
            out.row_constant_hi[args.row_begin + i] = -0.5f * norm_hi;
            out.row_error[args.row_begin + i] = missed;
            put_row_slots(
                    out.row_slots + (args.row_begin + i) * kAugmentedSlots,
                    -0.5f * norm_hi * unfold);
            largest_norm =
                    fmaxf(largest_norm, 0.5f * fmaxf(norm, norm_hi) * unfold);
        }
    }
    // Integer maxima and minima: order does not matter.
    __shared__ unsigned int block_largest, block_largest_norm;
    if (threadIdx.x == 0) {
        block_largest = block_largest_norm = 0;
    }
    __syncthreads();
    atomicMax(&block_largest, __float_as_uint(largest));
    atomicMax(&block_largest_norm, __float_as_uint(largest_norm));
    if (bad != ~0ull) {
        atomicMin(&checks->first_bad, bad);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicMax(&checks->largest, block_largest);
        atomicMax(&checks->largest_norm, block_largest_norm);
    }
}

/// One warp a row, of whole tiles, 16 bytes a lane.
__global__ void __launch_bounds__(256) gather_kernel(
        const __grid_constant__ PreparedRows from,
        int64_t from_begin,
        const float* weight,
        const uint32_t* numbers,
        int count,
        const __grid_constant__ PreparedRows to,
        float* to_weight) {
    const int i = blockIdx.x * 8 + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const bool inside = i < count;
    const int64_t row = from_begin + (inside ? numbers[i] : 0);
    const int pieces = from.operand.pitch / 8;
    for (int p = 0; p < from.operand.planes; p++) {
        auto* const source = reinterpret_cast<const uint4*>(
                from.operand.data +
                (p * from.operand.rows + row) * from.operand.pitch);
        auto* const target = reinterpret_cast<uint4*>(
                const_cast<__half*>(to.operand.data) +
                (p * to.operand.rows + i) * to.operand.pitch);
        for (int j = lane; j < pieces; j += 32) {
            target[j] = inside ? source[j] : make_uint4(0, 0, 0, 0);
        }
    }
    if (lane == 0) {
        to.row_constant[i] = inside ? from.row_constant[row] : 0;
        to.row_constant_hi[i] = inside ? from.row_constant_hi[row] : 0;
        to.row_error[i] = from.row_error[row];
        if (from.row_value && to.row_value) {
            to.row_value[i] = inside ? from.row_value[row] : 0;
        }
        reinterpret_cast<uint4*>(to.row_slots)[i] =
                reinterpret_cast<const uint4*>(from.row_slots)[row];
        if (weight) {
            to_weight[i] = inside ? weight[numbers[i]] : 0;
        }
    }
}

} // namespace

void prepare_rows(
        const PrepareArgs& args,
        const PreparedRows& out,
        RowChecks* checks,
        cudaStream_t stream) {
    if (args.rows == 0) {
        return;
    }
    const int blocks = int(std::min<int64_t>((args.rows + 7) / 8, 132 * 32));
    const float unfold = 1 / augmented_scale(args.d, args.fp16_scale);
    switch (args.type) {
        case ElementType::f32:
            prepare_kernel<float>
                    <<<blocks, 256, 0, stream>>>(args, out, unfold, checks);
            break;
        case ElementType::f16:
            prepare_kernel<__half>
                    <<<blocks, 256, 0, stream>>>(args, out, unfold, checks);
            break;
        case ElementType::u8:
            prepare_kernel<unsigned char>
                    <<<blocks, 256, 0, stream>>>(args, out, unfold, checks);
            break;
    }
    check_launch("conversion of rows");
}

/// Whole sectors of 32 bytes: rows are fetched one by one.
static int row_pitch(int d) {
    return (d + 15) / 16 * 16;
}

size_t prepared_row_bytes(int d, int planes) {
    return size_t(row_pitch(d)) * 2 * planes +
            kAugmentedSlots * sizeof(__half) + 3 * sizeof(float);
}

void PreparedRows::lay_out(void* memory, int64_t rows, int d, int planes) {
    const int pitch = row_pitch(d);
    auto* const data = static_cast<__half*>(memory);
    operand = {data, rows, pitch, planes};
    row_slots = data + rows * pitch * planes;
    row_constant = reinterpret_cast<float*>(row_slots + rows * kAugmentedSlots);
    const int64_t padded = (rows + 3) / 4 * 4; // bulk copies take 16 bytes
    row_constant_hi = row_constant + padded;
    row_error = row_constant_hi + padded;
    capacity = rows;
}

void gather_rows(
        const PreparedRows& from,
        int64_t from_begin,
        const float* weight,
        const uint32_t* numbers,
        int count,
        const PreparedRows& to,
        float* to_weight,
        cudaStream_t stream) {
    const int tiles = (count + kGatherTile - 1) / kGatherTile;
    gather_kernel<<<tiles * kGatherTile / 8, 256, 0, stream>>>(
            from, from_begin, weight, numbers, count, to, to_weight);
    check_launch("gathering of rows");
}

} // namespace gmm::cuda
