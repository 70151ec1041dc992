#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"
#include "cuda/ptx/Ptx.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kScreenThreads = 256;
constexpr int kScreenRows = kScreenThreads; ///< 32 a warp
constexpr int kStages = 3;
constexpr int kBlock = 16; ///< factors are in blocks of 16 x 16
constexpr int kBlockBytes = kBlock * kBlock * 2;
/// Factors are scaled by a power of two so that none is larger.
constexpr float kLargest = 4096;
/// Standard deviations of a length's error that are allowed for.
constexpr float kDeviations = 3;
/// Of an operand's rounding to fp16, relative, for two operands: each is
/// uniform, 2^-11 at most.
constexpr float kRounding = 0x1p-11f * 0.8165f; // sqrt(2 / 3)
/// What is not a normal number of fp16 is rounded by so much.
constexpr float kSubnormal = 0x1p-25f;
/// Larger values are none of fp16.
constexpr float kRange = 60000;

__host__ __device__ constexpr int blocks_of(int side) {
    return side * (side + 1) / 2;
}

/// Of a component: blocks column by column, each as far as the triangle is
/// deep, then the shifts of all columns.
__host__ __device__ constexpr int component_bytes(int side) {
    return blocks_of(side) * kBlockBytes + side * kBlock * int(sizeof(float));
}

template <int kSide>
__global__ void __launch_bounds__(256)
        fill_kernel(const FullModelView model, const ScreenOperands out) {
    constexpr int kSize = kSide * kBlock;
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
    char* const to = out.operands + size_t(c) * component_bytes(kSide);
    auto* const blocks = reinterpret_cast<__half*>(to);
    auto* const shifts =
            reinterpret_cast<float*>(to + blocks_of(kSide) * kBlockBytes);
    const auto rounded = [&](int i, int j) {
        return i <= j && j < d
                ? __float2half_rn(scale * factor[int64_t(i) * model.pitch + j])
                : __half(0);
    };
    for (int at = threadIdx.x; at < kSize * kSize; at += 256) {
        const int i = at / kSize, j = at % kSize;
        if (i / kBlock > j / kBlock) {
            continue;
        }
        // Fragments of two 16 x 8 operands side by side in a lane's 16 bytes.
        const int block = blocks_of(j / kBlock) + i / kBlock;
        const int row = i % kBlock, column = j % kBlock;
        const int lane = column % 8 * 4 + row % 8 / 2;
        blocks[(block * 32 + lane) * 8 + column / 8 * 4 + row / 8 * 2 +
               row % 2] = rounded(i, j);
    }
    for (int j = threadIdx.x; j < kSize; j += 256) {
        double shift = 0;
        for (int i = 0; i <= j && j < d; i++) {
            shift += double(__half2float(rounded(i, j))) *
                    model.means[int64_t(c) * model.pitch + i];
        }
        shifts[j] = float(-shift);
    }
    if (threadIdx.x == 0) {
        const ComponentTerms terms = model.terms[c];
        out.terms[c] = {
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
                shifts + j * kBlock + n * 8 + 2 * q);
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
 * come to shared memory one after the other. A row keeps the log-joint below
 * which nothing matters, and raises it by what it sees.
 *
 * Both operands are rounded to fp16 once: what that does to the length of
 * (y - mu)^T U is estimated as the sum of independent errors, taken to point
 * all along it, three standard deviations. */
template <int kSide>
__global__ void __launch_bounds__(kScreenThreads, 2) screen_kernel(
        const FullModelView model,
        const FullRows rows,
        int64_t count,
        const float* __restrict__ least,
        float reach,
        const ScreenOperands operands,
        const PairBits pairs,
        int components_per_block) {
    constexpr int kBytes = component_bytes(kSide);
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t first =
            int64_t(blockIdx.x) * kScreenRows + threadIdx.x / 32 * 32;
    uint32_t y[2][kSide][4];
    bool in_range = true;
#pragma unroll
    for (int t = 0; t < 2; t++) {
#pragma unroll
        for (int b = 0; b < kSide; b++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int j = b * kBlock + e / 2 * 8 + 2 * q;
                const float* const from =
                        rows.y + (first + t * 16 + e % 2 * 8 + g) * rows.pitch;
                float v[2] = {};
                if (j < rows.pitch) { // which is even
                    const float2 both =
                            *reinterpret_cast<const float2*>(from + j);
                    v[0] = both.x;
                    v[1] = both.y;
                }
                in_range &= fmaxf(fabsf(v[0]), fabsf(v[1])) < kRange;
                y[t][b][e] = ptx::bits(__floats2half2_rn(v[0], v[1]));
            }
        }
    }
    in_range = __all_sync(0xffffffffu, in_range);
    // Lane q of a row's four decides for the row of tile q / 2, half q % 2.
    const int64_t row = first + q * 8 + g;
    float limit = least[row];
    const float spread = in_range ? rows.spread[row] : INFINITY;

    const int begin = blockIdx.y * components_per_block;
    const int end = min(model.k, begin + components_per_block);
    const auto load = [&](int c) {
        if (c < end) {
            unsigned char* const to = shared + (c - begin) % kStages * kBytes;
            const char* const from = operands.operands + size_t(c) * kBytes;
            for (int at = threadIdx.x * 16; at < kBytes;
                 at += kScreenThreads * 16) {
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
        const ScreenTerms terms = operands.terms[c];
        const unsigned char* const stage =
                shared + (c - begin) % kStages * kBytes;
        const uint4* const blocks =
                reinterpret_cast<const uint4*>(stage) + lane;
        const float* const shifts = reinterpret_cast<const float*>(
                stage + blocks_of(kSide) * kBlockBytes);
        const float error = terms.error * spread + terms.least_error;
        // From 0 length on, a log-joint is at most log_norm.
        const float most =
                sqrtf(fmaxf(2 * (terms.log_norm - limit), 0.f)) + error;
        const bool may = !(terms.log_norm < limit);
        float square[4] = {};
#pragma unroll
        for (int j = 0; j < kSide; j++) {
            add_columns(j, y, blocks, shifts, q, square);
        }
        const float length = sqrtf(own_sum(square, q)) * terms.scale;
        const bool keep = may && !(length > most);
        const float far = length + error;
        const float low = terms.log_norm - 0.5f * far * far - reach;
        limit = low > limit ? low : limit;
        const uint32_t found = __ballot_sync(0xffffffffu, keep);
        if (lane == 0) {
            uint32_t word = 0;
            if (found) {
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    uint32_t x = found >> r & 0x11111111u;
                    x = (x | x >> 3) & 0x03030303u;
                    x = (x | x >> 6) & 0x000f000fu;
                    word |= ((x | x >> 12) & 0xffu) << 8 * r;
                }
            }
            if (first < count) {
                reinterpret_cast<uint32_t*>(
                        pairs.bits + c * pairs.words)[first / 32] = word;
            }
        }
    }
}

template <int kSide>
void launch(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* least,
        float reach,
        const ScreenOperands& operands,
        const PairBits& bits,
        cudaStream_t stream) {
    constexpr int kBytes = kStages * component_bytes(kSide);
    constexpr int kEnough = 264;
    const int64_t blocks =
            (count + kBoundRows - 1) / kBoundRows * (kBoundRows / kScreenRows);
    const int64_t shares = std::clamp<int64_t>(
            (kEnough + blocks - 1) / blocks, 1, (model.k + 31) / 32);
    const int each = int((model.k + shares - 1) / shares);
    check(cudaFuncSetAttribute(
                  screen_kernel<kSide>,
                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                  kBytes),
          "asking for shared memory");
    const dim3 grid(unsigned(blocks), unsigned((model.k + each - 1) / each));
    screen_kernel<kSide><<<grid, kScreenThreads, kBytes, stream>>>(
            model, rows, count, least, reach, operands, bits, each);
    check_launch("screen_kernel");
}

int side_of(int d) {
    return d <= 32 ? 2 : d <= 64 ? 4 : d <= 96 ? 6 : 8;
}

/// Calls use.operator()<side>().
template <class Use>
void with_side(int d, const Use& use) {
    switch (side_of(d)) {
        case 2:
            use.template operator()<2>();
            break;
        case 4:
            use.template operator()<4>();
            break;
        case 6:
            use.template operator()<6>();
            break;
        default:
            use.template operator()<8>();
    }
}

} // namespace

size_t screen_bytes(int d) {
    return size_t(component_bytes(side_of(d)));
}

void prepare_screen(
        const FullModelView& model,
        const ScreenOperands& operands,
        cudaStream_t stream) {
    with_side(model.d, [&]<int kSide>() {
        fill_kernel<kSide>
                <<<unsigned(model.k), 256, 0, stream>>>(model, operands);
    });
    check_launch("fill_kernel");
}

void screen_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        const float* least,
        float reach,
        const ScreenOperands& operands,
        const PairBits& bits,
        cudaStream_t stream) {
    with_side(model.d, [&]<int kSide>() {
        launch<kSide>(model, rows, count, least, reach, operands, bits, stream);
    });
}

} // namespace gmm::cuda::full
