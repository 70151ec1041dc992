#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Screen.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads; ///< 32 a warp
constexpr int kStages = 3;
/// Factors are scaled by a power of two so that none is larger.
constexpr float kLargest = 4096;
/// Standard deviations of a length's error that are allowed for.
constexpr float kDeviations = 3;
/// Of an operand's rounding to fp16, relative, for two operands: each is
/// uniform, 2^-11 at most.
constexpr float kRounding = 0x1p-11f * 0.8165f; // sqrt(2 / 3)
/// What is not a normal number of fp16 is rounded by so much.
constexpr float kSubnormal = 0x1p-25f;

/// Where a column is: on Hopper, blocks of them are in reverse, so that those
/// that a row has of the triangle come first.
template <int kSide, bool kHopper>
__device__ __forceinline__ int place_of(int j) {
    return kHopper
            ? (kSide - 1 - j / kScreenBlock) * kScreenBlock + j % kScreenBlock
            : j;
}

/// Where the factor's row i, column j is, in halves.
template <int kSide, bool kHopper>
__device__ __forceinline__ int place_of(int i, int j) {
    const int slice = i / kScreenBlock, row = i % kScreenBlock;
    if (kHopper) {
        // Columns of 16 rows, 32 bytes, whose halves are exchanged in every
        // other four: the 32-byte swizzle.
        const int column = place_of<kSide, kHopper>(j);
        return (slice_begin(kSide, slice) * kScreenBlock + column) *
                kScreenBlock +
                ((row / 8) ^ (column / 4 % 2)) * 8 + row % 8;
    }
    // Fragments of two 16 x 8 operands side by side in a lane's 16 bytes.
    const int block = blocks_of(j / kScreenBlock) + slice;
    const int column = j % kScreenBlock;
    const int lane = column % 8 * 4 + row % 8 / 2;
    return (block * 32 + lane) * 8 + column / 8 * 4 + row / 8 * 2 + row % 2;
}

template <int kSide, bool kHopper>
__global__ void __launch_bounds__(256)
        fill_kernel(const FullModelView model, char* operands) {
    constexpr int kSize = kSide * kScreenBlock;
    __shared__ float largest_of[8];
    const int c = blockIdx.x, d = model.d;
    const float* const factor = model.factors + c * model.factor_stride;
    float largest = 0;
    for (int at = threadIdx.x; at < d * d; at += 256) {
        largest = fmaxf(
                largest, fabsf(factor[int64_t(at / d) * model.pitch + at % d]));
    }
    for (int step = 16; step; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    if (threadIdx.x % 32 == 0) {
        largest_of[threadIdx.x / 32] = largest;
    }
    __syncthreads();
    for (float other : largest_of) {
        largest = fmaxf(largest, other);
    }
    const float scale = exp2f(fminf(floorf(log2f(kLargest / largest)), 0.f));
    char* const to = operands + size_t(c) * component_bytes(kSide);
    auto* const halves = reinterpret_cast<__half*>(to + factor_at(kSide));
    auto* const shifts = reinterpret_cast<float*>(to);
    const auto rounded = [&](int i, int j) {
        return i <= j && j < d
                ? __float2half_rn(scale * factor[int64_t(i) * model.pitch + j])
                : __half(0);
    };
    for (int at = threadIdx.x; at < kSize * kSize; at += 256) {
        const int i = at / kSize, j = at % kSize;
        if (i / kScreenBlock <= j / kScreenBlock) {
            halves[place_of<kSide, kHopper>(i, j)] = rounded(i, j);
        }
    }
    for (int j = threadIdx.x; j < kSize; j += 256) {
        double shift = 0;
        for (int i = 0; i <= j && j < d; i++) {
            shift += double(__half2float(rounded(i, j))) *
                    model.means[int64_t(c) * model.pitch + i];
        }
        shifts[place_of<kSide, kHopper>(j)] = float(-shift);
    }
    if (threadIdx.x == 0) {
        const ComponentTerms terms = model.terms[c];
        *reinterpret_cast<ScreenTerms*>(to + terms_at(kSide)) = {
                float(terms.log_norm),
                1 / scale,
                kDeviations * kRounding * terms.weighted_spectrum,
                kDeviations * kSubnormal * terms.spectrum};
    }
}

/// Adds the squares of the product's columns 16 j to 16 j + 15: of each
/// thread's four rows.
template <int kSide>
__device__ __forceinline__ void add_columns(
        int j,
        const uint32_t (&y)[2][kSide][4],
        const uint4* blocks,
        const float* shifts,
        int q,
        float (&square)[4]) {
    float sum[2][2][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const float2 shift = *reinterpret_cast<const float2*>(
                shifts + j * kScreenBlock + n * 8 + 2 * q);
#pragma unroll
        for (int t = 0; t < 2; t++) {
            sum[t][n][0] = sum[t][n][2] = shift.x;
            sum[t][n][1] = sum[t][n][3] = shift.y;
        }
    }
#pragma unroll
    for (int i = 0; i < kSide; i++) {
        if (i > j) {
            break;
        }
        const uint4 u = blocks[(blocks_of(j) + i) * 32];
#pragma unroll
        for (int t = 0; t < 2; t++) {
            ptx::mma_m16n8k16(sum[t][0], y[t][i], u.x, u.y);
            ptx::mma_m16n8k16(sum[t][1], y[t][i], u.z, u.w);
        }
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float* const v = sum[t][n];
            square[2 * t] += v[0] * v[0] + v[1] * v[1];
            square[2 * t + 1] += v[2] * v[2] + v[3] * v[3];
        }
    }
}

/// Four values of four lanes: lane q gets the sum of value q.
__device__ __forceinline__ float own_sum(const float (&v)[4], int q) {
    const bool odd = q & 1, high = q & 2;
    float a = odd ? v[1] : v[0], b = odd ? v[3] : v[2];
    a += __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1);
    b += __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
    return (high ? b : a) + __shfl_xor_sync(0xffffffffu, high ? a : b, 2);
}

/** One warp takes 32 rows, in registers, through all components, whose factors
 * come to shared memory one after the other. */
template <int kSide>
__global__ void __launch_bounds__(kThreads, 2) screen_kernel(
        const __grid_constant__ ScreenArgs args, int components_per_block) {
    constexpr int kBytes = component_bytes(kSide);
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t first = int64_t(blockIdx.x) * kRows + threadIdx.x / 32 * 32;
    const FullRows& rows = args.rows;
    uint32_t y[2][kSide][4];
    bool in_range = true;
#pragma unroll
    for (int t = 0; t < 2; t++) {
        in_range &= load_screen_rows<kSide>(
                rows.y + (first + t * 16) * rows.pitch, rows.pitch, y[t]);
    }
    // Lane q of a row's four decides for the row of tile q / 2, half q % 2.
    const int64_t row = first + q * 8 + g;
    ScreenedRow mine = {
            args.least[row], in_range ? rows.spread[row] : INFINITY};

    const int begin = blockIdx.y * components_per_block;
    const int end = min(args.k, begin + components_per_block);
    const auto load = [&](int c) {
        if (c < end) {
            unsigned char* const to = shared + (c - begin) % kStages * kBytes;
            const char* const from = args.operands + size_t(c) * kBytes;
            for (int at = threadIdx.x * 16; at < kBytes; at += kThreads * 16) {
                ptx::copy_async(ptx::smem_address(to + at), from + at, true);
            }
        }
        ptx::copy_async_commit();
    };
    for (int ahead = 0; ahead < kStages - 1; ahead++) {
        load(begin + ahead);
    }
    for (int c = begin; c < end; c++) {
        ptx::copy_async_wait<kStages - 2>();
        __syncthreads();
        load(c + kStages - 1); // where component c - 1 was, which all have left
        const unsigned char* const stage =
                shared + (c - begin) % kStages * kBytes;
        const uint4* const blocks =
                reinterpret_cast<const uint4*>(stage + factor_at(kSide)) + lane;
        const float* const shifts = reinterpret_cast<const float*>(stage);
        float square[4] = {};
#pragma unroll
        for (int j = 0; j < kSide; j++) {
            add_columns(j, y, blocks, shifts, q, square);
        }
        const auto& terms =
                *reinterpret_cast<const ScreenTerms*>(stage + terms_at(kSide));
        const bool keep = mine.keeps(
                terms, mine.allow(terms), own_sum(square, q), args.reach);
        const uint32_t found = __ballot_sync(0xffffffffu, keep);
        if (lane == 0 && first < args.count) {
            uint32_t word = 0;
#pragma unroll
            for (int r = 0; r < 4; r++) {
                word |= gather_bits(found >> r) << 8 * r;
            }
            reinterpret_cast<uint32_t*>(
                    args.pairs.bits + c * args.pairs.words)[first / 32] = word;
        }
    }
}

void screen_portable(const ScreenArgs& args, cudaStream_t stream) {
    with_side(args.d, [&]<int kSide>() {
        constexpr int kBytes = kStages * component_bytes(kSide);
        constexpr int kEnough = 264;
        const int64_t blocks = (args.count + kBoundRows - 1) / kBoundRows *
                (kBoundRows / kRows);
        const int64_t shares = std::clamp<int64_t>(
                (kEnough + blocks - 1) / blocks, 1, (args.k + 31) / 32);
        const int each = int((args.k + shares - 1) / shares);
        allow_shared(screen_kernel<kSide>, kBytes);
        const dim3 grid(unsigned(blocks), unsigned((args.k + each - 1) / each));
        screen_kernel<kSide><<<grid, kThreads, kBytes, stream>>>(args, each);
    });
    check_launch("screen_kernel");
}

} // namespace

size_t screen_bytes(int d) {
    size_t bytes = 0;
    with_side(d, [&]<int kSide>() { bytes = component_bytes(kSide); });
    return bytes;
}

void prepare_screen(
        const FullModelView& model,
        bool hopper,
        char* operands,
        cudaStream_t stream) {
    with_side(model.d, [&]<int kSide>() {
        const auto fill =
                hopper ? fill_kernel<kSide, true> : fill_kernel<kSide, false>;
        fill<<<unsigned(model.k), 256, 0, stream>>>(model, operands);
    });
    check_launch("fill_kernel");
}

void screen_components(
        const ScreenArgs& args, bool hopper, cudaStream_t stream) {
    (hopper ? screen_hopper : screen_portable)(args, stream);
}

} // namespace gmm::cuda::full
