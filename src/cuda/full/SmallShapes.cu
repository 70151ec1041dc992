#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpRows = 16; ///< two tiles of eight: one mma's rows
constexpr int kTileRows = kWarps * kWarpRows;
constexpr int kComponents = 64;
constexpr int kWarpComponents = kComponents / kWarps;
/// Log-joints of a component, one tile's rows: four apart modulo 16, so that
/// neighbours do not meet in a bank.
constexpr int kValuePitch = kTileRows + 4;
constexpr double kNegligible = 40; ///< nats: e^-40 of a row is not added

/// c += a b: a is 16 x 4, b 4 x 8. Lane 4 g + t has a[g][t], a[g + 8][t],
/// b[t][g], and of c rows g and g + 8, columns 2 t and 2 t + 1.
__device__ __forceinline__ void mma16(
        double (&c)[4], double a0, double a1, double b) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
            "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
            : "d"(a0), "d"(a1), "d"(b));
#else
    const double a[2] = {a0, a1};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        asm volatile(
                "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
                "{%0, %1}, {%2}, {%3}, {%0, %1};"
                : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
                : "d"(a[half]), "d"(b));
    }
#endif
}

/// The same with the rows g alone.
__device__ __forceinline__ void mma8(double (&c)[2], double a, double b) {
    asm volatile(
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
            "{%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+d"(c[0]), "+d"(c[1])
            : "d"(a), "d"(b));
}

/** What a block keeps in shared memory; P: the dimension, padded to 8 or 16. */
template <int P>
struct SmallShared {
    /// Fours of rows that the upper triangle has in each eight of columns.
    static constexpr int kFragments = P == 8 ? 2 : 6;
    static constexpr int kRowPitch = P + 4;     ///< as kValuePitch
    double factor[kComponents][kFragments][32]; ///< as mma16 wants them
    double shift[kComponents][P];               ///< mu^T U
    double log_norm[kComponents];
    double value[kComponents][kValuePitch]; ///< log-joint, then r
    double y[kTileRows][kRowPitch];
    double partial[kThreads];
    uint8_t list[kWarps][kTileRows + 4]; ///< rows that a component has
};

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

template <int P>
__device__ void load_model(const FullModelView& model, SmallShared<P>& s) {
    const int d = model.d;
    const int padded = (model.k + 1) / 2 * 2;
    constexpr int kFragments = SmallShared<P>::kFragments;
    for (int e = threadIdx.x; e < padded * kFragments * 32; e += kThreads) {
        const int c = e / (kFragments * 32);
        const int fragment = e / 32 % kFragments, lane = e % 32;
        const int half = fragment < 2 ? 0 : 1;
        const int i = (half ? fragment - 2 : fragment) * 4 + lane % 4;
        const int j = half * 8 + lane / 4;
        const bool inside = c < model.k && i <= j && j < d;
        s.factor[c][fragment][lane] = inside
                ? model.factors
                          [c * model.factor_stride + int64_t(i) * model.pitch +
                           j]
                : 0.f;
    }
    for (int e = threadIdx.x; e < padded * P; e += kThreads) {
        const int c = e / P, j = e % P;
        double sum = 0;
        if (c < model.k && j < d) {
            const float* const factor = model.factors + c * model.factor_stride;
            for (int i = 0; i <= j; i++) {
                sum += double(model.means[int64_t(c) * model.pitch + i]) *
                        factor[int64_t(i) * model.pitch + j];
            }
        }
        s.shift[c][j] = sum;
    }
    for (int c = threadIdx.x; c < padded; c += kThreads) {
        s.log_norm[c] = c < model.k ? model.terms[c].log_norm : -HUGE_VAL;
    }
}

/// The Mahalanobis distances' parts of this lane's columns: rows g, g + 8.
template <int P>
__device__ __forceinline__ void squares(
        const SmallShared<P>& s,
        int c,
        const double (&a)[P / 4][2],
        double (&square)[2]) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    square[0] = square[1] = 0;
#pragma unroll
    for (int half = 0; half < P / 8; half++) {
        const double2 shift = *reinterpret_cast<const double2*>(
                &s.shift[c][half * 8 + 2 * t]);
        double sum[4] = {-shift.x, -shift.y, -shift.x, -shift.y};
#pragma unroll
        for (int i = 0; i < 2 * half + 2; i++) {
            mma16(sum, a[i][0], a[i][1], s.factor[c][2 * half + i][lane]);
        }
        square[0] += sum[0] * sum[0] + sum[1] * sum[1];
        square[1] += sum[2] * sum[2] + sum[3] * sum[3];
    }
}

/// Log-joints of the warp's rows and all components.
template <int P>
__device__ __forceinline__ void evaluate(SmallShared<P>& s, int k) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first = threadIdx.x / 32 * kWarpRows;
    double a[P / 4][2];
#pragma unroll
    for (int i = 0; i < P / 4; i++) {
        a[i][0] = s.y[first + g][4 * i + t];
        a[i][1] = s.y[first + g + 8][4 * i + t];
    }
    const bool odd = t & 1, lower = t & 2;
    for (int c = 0; c < k; c += 2) {
        double one[2], other[2];
        squares<P>(s, c, a, one);
        squares<P>(s, c + 1, a, other);
        // Four lanes add up; each is left with one of component and row.
        double mine[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            mine[i] = (odd ? other[i] : one[i]) +
                    __shfl_xor_sync(0xffffffffu, odd ? one[i] : other[i], 1);
        }
        const double sum = (lower ? mine[1] : mine[0]) +
                __shfl_xor_sync(0xffffffffu, lower ? mine[0] : mine[1], 2);
        const int of = c + (odd ? 1 : 0);
        s.value[of][first + g + (lower ? 8 : 0)] = s.log_norm[of] - 0.5 * sum;
    }
}

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
            mma8(left, a0, y0);
            sums.left[0] = left[0];
            sums.left[1] = left[1];
        } else {
            const double y1 = s.y[row][g + 8];
            const double a1 = r * y1;
            sums.x[1] += a1;
            mma16(sums.left, a0, a1, y0);
            mma8(sums.right, a1, y1);
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
 * takes tiles of 128 rows; its warps first evaluate 16 rows each under all
 * components, then sum all of the tile's rows for eight components each, whose
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
    check(cudaFuncSetAttribute(
                  small_kernel<P>,
                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                  bytes),
          "small_kernel's shared memory");
    small_kernel<P><<<kSmallPieces, kThreads, bytes, stream>>>(args);
    check_launch("small_kernel");
}

} // namespace

bool has_small_shape(int k, int d, int device) {
    if (k > kComponents || d > 16) {
        return false;
    }
    int shared = 0, double_ratio = 0;
    check(cudaDeviceGetAttribute(
                  &shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "device attributes");
    check(cudaDeviceGetAttribute(
                  &double_ratio,
                  cudaDevAttrSingleToDoublePrecisionPerfRatio,
                  device),
          "device attributes");
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
