#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/SmallShapes.cuh"

namespace gmm::cuda::full {

namespace {

using namespace small;

struct SmallArgs {
    FullModelView model;
    FullRows rows;
    int64_t count;
    const float* weight; ///< or nullptr
    float least;
    bool hard;
    double* log_prob;
    PassTotals totals;
    double* partial; ///< kSmallPieces times MomentSums::size()
};

/// A component's sums over the rows that its warp has seen.
template <int P>
struct Accumulated {
    double n, x[P / 8];
    double left[4];  ///< of all coordinates' products with the first eight
    double right[2]; ///< of the others' with the others
};

/// What one thread adds up for the pass's totals.
struct ThreadTotals {
    double objective = 0;
    unsigned long long dropped = 0;
    uint32_t kept = 0;
};

/// From log-joints to responsibilities times weights: two lanes a row.
template <int P>
__device__ __forceinline__ void normalise(
        SmallShared<P>& s,
        const SmallArgs& args,
        int64_t tile_row,
        ThreadTotals& totals) {
    const int lane = threadIdx.x % 32, part = lane / kWarpRows;
    const int row = threadIdx.x / 32 * kWarpRows + lane % kWarpRows;
    const int64_t at = tile_row + row;
    const bool inside = at < args.count;
    const int k = args.model.k;
    double top = -HUGE_VAL;
    int best = k;
    for (int c = part; c < k; c += 2) {
        const double value = s.value[c][row];
        if (value > top) {
            top = value;
            best = c;
        }
    }
    const double other = __shfl_xor_sync(0xffffffffu, top, kWarpRows);
    const int other_best = __shfl_xor_sync(0xffffffffu, best, kWarpRows);
    if (other > top || (other == top && other_best < best)) {
        top = other;
        best = other_best;
    }
    const float w = !inside ? 0.f : args.weight ? args.weight[at] : 1.f;
    double log_prob = 2 * top;
    if (args.hard) {
        for (int c = part; c < k; c += 2) {
            s.value[c][row] = c == best ? w : 0.f;
        }
        totals.kept += part == 0 && w > 0;
    } else {
        double sum = 0;
        for (int c = part; c < k; c += 2) {
            const double below = s.value[c][row] - top;
            const float e = below > -kNegligible ? expf(float(below)) : 0.f;
            s.value[c][row] = e;
            sum += e;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, kWarpRows);
        log_prob = top + log(sum);
        const double scale = 1 / sum;
        double dropped = 0;
        for (int c = part; c < k; c += 2) {
            float r = float(s.value[c][row] * scale);
            if (r < args.least) {
                dropped += r;
                r = 0;
            }
            r *= w;
            totals.kept += r > 0;
            s.value[c][row] = r;
        }
        totals.dropped +=
                (unsigned long long)(dropped * w * args.totals.dropped_unit);
    }
    if (part == 0 && inside) {
        args.log_prob[at] = log_prob;
        totals.objective += w != 0 ? w * log_prob : 0.;
    }
}

/// Adds the tile's rows to a component's sums: those that it has a part of,
/// four at a time.
template <int P>
__device__ __forceinline__ void add_rows(
        SmallShared<P>& s, int c, Accumulated<P>& sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int g = lane / 4, t = lane % 4;
    uint8_t* const list = s.list[warp];
    int found = 0;
#pragma unroll
    for (int first = 0; first < kTileRows; first += 32) {
        const bool any = s.value[c][first + lane] > 0;
        const uint32_t bits = __ballot_sync(0xffffffffu, any);
        if (any) {
            list[found + __popc(bits & ((1u << lane) - 1))] =
                    uint8_t(first + lane);
        }
        found += __popc(bits);
    }
    __syncwarp();
    for (int at = t; at - t < found; at += 4) {
        const int row = at < found ? list[at] : 0;
        const double r = at < found ? s.value[c][row] : 0.;
        const double y0 = s.y[row][g];
        const double a0 = r * y0;
        sums.n += r;
        sums.x[0] += a0;
        if constexpr (P == 8) {
            double left[2] = {sums.left[0], sums.left[1]};
            ptx::mma_f64_m8n8k4(left, a0, y0);
            sums.left[0] = left[0];
            sums.left[1] = left[1];
        } else {
            const double y1 = s.y[row][g + 8];
            const double a1 = r * y1;
            sums.x[1] += a1;
            ptx::mma_f64_m16n8k4(sums.left, a0, a1, y0);
            ptx::mma_f64_m8n8k4(sums.right, a1, y1);
        }
    }
    __syncwarp();
}

/// The sum over lanes of the same g.
__device__ __forceinline__ double across(double x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// To a piece of MomentSums' layout.
template <int P>
__device__ void write_sums(
        const Accumulated<P>& sums, int c, int k, int d, double* out) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const double n = across(sums.n);
    if (lane == 0) {
        out[c] = n;
    }
#pragma unroll
    for (int half = 0; half < P / 8; half++) {
        const double x = across(sums.x[half]);
        if (t == 0 && half * 8 + g < d) {
            out[k + c * d + half * 8 + g] = x;
        }
    }
    double* const x2 = out + k * (1 + d) + c * (d * (d + 1) / 2);
    auto put = [&](int i, int j, double value) {
        if (i < d && j <= i) {
            x2[i * (i + 1) / 2 + j] = value;
        }
    };
#pragma unroll
    for (int e = 0; e < 2; e++) {
        put(g, 2 * t + e, sums.left[e]);
        if constexpr (P > 8) {
            put(g + 8, 2 * t + e, sums.left[2 + e]);
            put(g + 8, 8 + 2 * t + e, sums.right[e]);
        }
    }
}

/** All of the E-step for few components of few dimensions, in double: a block
 * takes tiles of 256 rows; its warps first evaluate 16 rows each under all
 * components, then sum all of the tile's rows for four components each, whose
 * sums stay in registers until the block has no more rows. */
template <int P>
__global__ void __launch_bounds__(kThreads, 1)
        small_kernel(const SmallArgs args) {
    extern __shared__ __align__(16) char memory[];
    SmallShared<P>& s = *reinterpret_cast<SmallShared<P>*>(memory);
    const int k = args.model.k, d = args.model.d;
    const int warp = threadIdx.x / 32;
    load_model<P>(args.model, s);
    Accumulated<P> sums[kWarpComponents] = {};
    ThreadTotals totals;
    const int64_t tiles = (args.count + kTileRows - 1) / kTileRows;
    const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
    for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; tile++) {
        const int64_t first = tile * kTileRows;
        __syncthreads();
        for (int e = threadIdx.x; e < kTileRows * P; e += kThreads) {
            const int row = e / P, j = e % P;
            s.y[row][j] = first + row < args.count && j < d
                    ? args.rows.y[(first + row) * args.rows.pitch + j]
                    : 0.f;
        }
        __syncthreads();
        evaluate<P>(s, k);
        __syncwarp();
        normalise<P>(s, args, first, totals);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kWarpComponents; i++) {
            if (const int c = i * kWarps + warp; c < k) {
                add_rows<P>(s, c, sums[i]);
            }
        }
    }
    const size_t size = size_t(k) * (1 + d + d * (d + 1) / 2);
#pragma unroll
    for (int i = 0; i < kWarpComponents; i++) {
        if (const int c = i * kWarps + warp; c < k) {
            write_sums<P>(sums[i], c, k, d, args.partial + blockIdx.x * size);
        }
    }
    __syncthreads();
    s.partial[threadIdx.x] = totals.objective;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        for (double x : s.partial) {
            sum += x;
        }
        args.totals.partial[blockIdx.x] = sum;
    }
    const uint32_t kept = __reduce_add_sync(0xffffffffu, totals.kept);
    if (threadIdx.x % 32 == 0 && kept) {
        atomicAdd(args.totals.kept, (unsigned long long)kept);
    }
    if (totals.dropped) {
        atomicAdd(args.totals.dropped, totals.dropped);
    }
}

template <int P>
void launch(const SmallArgs& args, cudaStream_t stream) {
    const int bytes = int(sizeof(SmallShared<P>));
    allow_shared(small_kernel<P>, bytes);
    small_kernel<P><<<kSmallPieces, kThreads, bytes, stream>>>(args);
    check_launch("small_kernel");
}

} // namespace

bool has_small_shape(int k, int d, int device) {
    if (k > kComponents || d > 16) {
        return false;
    }
    const int shared =
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int double_ratio = device_attribute(
            cudaDevAttrSingleToDoublePrecisionPerfRatio, device);
    const size_t bytes =
            d <= 8 ? sizeof(SmallShared<8>) : sizeof(SmallShared<16>);
    return double_ratio <= 2 && size_t(shared) >= bytes;
}

void accumulate_small(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* weight,
        float least,
        bool hard,
        const RowTotals& totals,
        const PassTotals& pass,
        const MomentSums& sums,
        double* scratch,
        cudaStream_t stream) {
    const SmallArgs args{
            model,
            rows,
            count,
            weight,
            least,
            hard,
            totals.log_prob,
            pass,
            scratch};
    if (model.d <= 8) {
        launch<8>(args, stream);
    } else {
        launch<16>(args, stream);
    }
    add_objective(pass, kSmallPieces, stream);
    add_pieces(scratch, kSmallPieces, sums, stream);
}

} // namespace gmm::cuda::full
