#include <algorithm>
#include <bit>

#include "cuda/engine/Check.h"
#include "cuda/score/TopM.h"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Of an entry that is sorted: key, log-density, distance, order.
constexpr size_t kSortedBytes = 8 + 8 + 4 + 2;

struct KernelArgs {
    TopArgs top;
    const float* means;
    const float* half_inverse;
    const float* log_constant;
    bool each_dimension, squares;
    int k, padded_k, d;
};

/// Larger float, larger integer.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Log-density and squared distance of one pair, by one warp. In fp64: of a row
/// far away the differences of log-densities count, which are small beside
/// them.
__device__ __forceinline__ void evaluate(
        const KernelArgs& args,
        int row,
        uint32_t k,
        double& log_joint,
        float& distance) {
    const Operand& operand = args.top.prepared.operand;
    const int lane = threadIdx.x % 32;
    const __half* const hi = operand.data + int64_t(row) * operand.pitch;
    const __half* const lo =
            hi + operand.rows * operand.pitch * (args.squares ? 2 : 1);
    const float* const mean = args.means + size_t(k) * args.d;
    const float* const inverse =
            args.half_inverse + (args.each_dimension ? size_t(k) * args.d : k);
    const double inverse_fp16_scale = 1. / args.top.fp16_scale;
    double plain = 0, scaled = 0;
    for (int j = lane; j < args.d; j += 32) {
        const double t = (__half2float(hi[j]) + __half2float(lo[j])) *
                        inverse_fp16_scale -
                mean[j];
        plain = fma(t, t, plain);
        if (args.each_dimension) {
            scaled = fma(t * inverse[j], t, scaled);
        }
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        plain += __shfl_xor_sync(0xffffffffu, plain, step);
        scaled += __shfl_xor_sync(0xffffffffu, scaled, step);
    }
    distance = float(plain);
    log_joint = args.log_constant[k] -
            (args.each_dimension ? scaled : plain * inverse[0]);
}

/// Number of `flag` in threads before this one; total for the block.
__device__ int block_prefix(bool flag, int* counts, int& total) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t votes = __ballot_sync(0xffffffffu, flag);
    __syncthreads();
    if (lane == 0) {
        counts[warp] = __popc(votes);
    }
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1));
    total = 0;
    for (int w = 0; w < kWarps; w++) {
        before += w < warp ? counts[w] : 0;
        total += counts[w];
    }
    return before;
}

/** One block a row: radix select of the m-th largest score, byte by byte;
 * then everything above it, and of its equals the lowest numbers. */
__global__ void __launch_bounds__(kThreads)
        top_kernel(const __grid_constant__ KernelArgs args) {
    extern __shared__ unsigned char shared[];
    __shared__ int histogram[256];
    __shared__ int counts[kWarps];
    __shared__ uint32_t prefix;
    __shared__ int wanted;
    __shared__ double best_of[kWarps];
    const int row = blockIdx.x, m = args.top.m;
    const float* const scores = args.top.scores + size_t(row) * args.padded_k;
    const size_t out = size_t(row) * m;

    if (threadIdx.x == 0) {
        prefix = 0;
        wanted = m;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += kThreads) {
            histogram[i] = 0;
        }
        __syncthreads();
        const uint32_t high = prefix;
        for (int j = threadIdx.x; j < args.k; j += kThreads) {
            const uint32_t u = ordered(scores[j]);
            if (shift == 24 || u >> (shift + 8) == high >> (shift + 8)) {
                atomicAdd(&histogram[u >> shift & 255], 1);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int left = wanted, bin = 255;
            while (histogram[bin] < left) {
                left -= histogram[bin--];
            }
            wanted = left;
            prefix = high | uint32_t(bin) << shift;
        }
        __syncthreads();
    }
    const uint32_t threshold = prefix;
    const int equals = wanted;
    int above = 0, equal = 0;
    for (int j0 = 0; j0 < args.k; j0 += kThreads) {
        const int j = j0 + threadIdx.x;
        const uint32_t u = j < args.k ? ordered(scores[j]) : 0;
        int total;
        int at = block_prefix(j < args.k && u > threshold, counts, total);
        if (j < args.k && u > threshold) {
            args.top.components[out + above + at] = j;
        }
        above += total;
        at = block_prefix(j < args.k && u == threshold, counts, total);
        if (j < args.k && u == threshold && equal + at < equals) {
            args.top.components[out + m - equals + equal + at] = j;
        }
        equal += total;
    }
    __syncthreads();
    double best = -INFINITY;
    for (int i = threadIdx.x / 32; i < m; i += kWarps) {
        double log_joint;
        float distance;
        evaluate(args, row, args.top.components[out + i], log_joint, distance);
        if (threadIdx.x % 32 == 0) {
            args.top.log_joint[out + i] = log_joint;
            args.top.distances[out + i] = distance;
        }
        best = fmax(best, log_joint);
    }
    if (m > kMaxSorted) {
        return;
    }
    best_of[threadIdx.x / 32] = best;
    __syncthreads();
    for (double other : best_of) {
        best = fmax(best, other);
    }
    // Bitonic sort of {value, component}, the best and then the lowest first.
    int size = 1;
    while (size < m) {
        size *= 2;
    }
    auto* const entries = reinterpret_cast<unsigned long long*>(shared);
    auto* const joints = reinterpret_cast<double*>(entries + size);
    auto* const distances = reinterpret_cast<float*>(joints + size);
    for (int i = threadIdx.x; i < size; i += kThreads) {
        unsigned long long entry = ~0ull;
        if (i < m) {
            const float value = args.top.by_distance
                    ? -args.top.distances[out + i]
                    : float(args.top.log_joint[out + i] - best);
            entry = (unsigned long long)(~ordered(value)) << 32 |
                    args.top.components[out + i];
            joints[i] = args.top.log_joint[out + i];
            distances[i] = args.top.distances[out + i];
        }
        entries[i] = entry;
    }
    // The values travel by the sorted position of their component.
    __syncthreads();
    auto* const order = reinterpret_cast<uint16_t*>(distances + size);
    for (int i = threadIdx.x; i < size; i += kThreads) {
        order[i] = uint16_t(i);
    }
    __syncthreads();
    for (int width = 2; width <= size; width *= 2) {
        for (int step = width / 2; step; step /= 2) {
            for (int i = threadIdx.x; i < size; i += kThreads) {
                const int other = i ^ step;
                if (other > i &&
                    (entries[i] > entries[other]) == !(i & width)) {
                    const auto entry = entries[i];
                    entries[i] = entries[other];
                    entries[other] = entry;
                    const auto o = order[i];
                    order[i] = order[other];
                    order[other] = o;
                }
            }
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < m; i += kThreads) {
        args.top.components[out + i] = uint32_t(entries[i]);
        args.top.log_joint[out + i] = joints[order[i]];
        args.top.distances[out + i] = distances[order[i]];
    }
}

/// m = 1, already chosen: one warp a row.
__global__ void __launch_bounds__(kThreads)
        pair_kernel(const __grid_constant__ KernelArgs args) {
    const int row = blockIdx.x * kWarps + threadIdx.x / 32;
    if (row >= args.top.rows) {
        return;
    }
    double log_joint;
    float distance;
    evaluate(args, row, args.top.components[row], log_joint, distance);
    if (threadIdx.x % 32 == 0) {
        args.top.log_joint[row] = log_joint;
        args.top.distances[row] = distance;
    }
}

__global__ void unpack_kernel(
        const uint32_t* keys,
        const uint16_t* row_ranges,
        int rows,
        uint32_t* components) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        components[row] =
                keys[size_t(row / kUnitRows) * kUnitCapacity +
                     (row_ranges[row] >> 8)];
    }
}

} // namespace

void choose_top(const TopArgs& top, const Model& model, cudaStream_t stream) {
    KernelArgs args;
    args.top = top;
    args.means = model.means;
    args.half_inverse = model.half_inverse;
    args.log_constant = model.log_constant;
    args.each_dimension = model.covariance == Covariance::diagonal;
    args.squares = args.each_dimension;
    args.k = model.k;
    args.padded_k = model.padded_k;
    args.d = model.d;
    if (!top.scores) {
        pair_kernel<<<(top.rows + kWarps - 1) / kWarps, kThreads, 0, stream>>>(
                args);
        check_launch("evaluation of the best components");
        return;
    }
    const size_t size = std::bit_ceil(unsigned(std::min(top.m, kMaxSorted)));
    const size_t shared = size * kSortedBytes;
    allow_shared(top_kernel, int(kMaxSorted * kSortedBytes));
    top_kernel<<<top.rows, kThreads, shared, stream>>>(args);
    check_launch("choice of the best components");
}

void unpack_best(
        const uint32_t* keys,
        const uint16_t* row_ranges,
        int rows,
        uint32_t* components,
        cudaStream_t stream) {
    unpack_kernel<<<(rows + 255) / 256, 256, 0, stream>>>(
            keys, row_ranges, rows, components);
    check_launch("unpacking of the best components");
}

} // namespace gmm::cuda
