#include <algorithm>
#include <utility>

#include "cuda/engine/Check.h"
#include "cuda/full/Screen.cuh"
#include "cuda/ptx/PtxColumns.cuh"

namespace gmm::cuda::full {

namespace {

constexpr int kConsumers = 3; ///< warpgroups
constexpr int kGroupRows = 64;
constexpr int kRows = kConsumers * kGroupRows;
constexpr int kThreads = 128 * kConsumers + 32;
constexpr int kStages = 8;
constexpr int kBarrierBytes = 2 * kStages * 8;

/// c += rows times the factor at `stage`, slice by slice.
template <int kSide, int... kSlices>
__device__ __forceinline__ void multiply(
        float (&c)[2 * kSide][4],
        const uint32_t (&y)[kSide][4],
        uint32_t factor,
        std::integer_sequence<int, kSlices...>) {
    const auto slice = [&]<int kSlice>() {
        if (kSlice) {
            ptx::wgmma_fence(); // they have another shape
        }
        ptx::wgmma_columns<kSide - kSlice>(
                c,
                y[kSlice],
                ptx::wgmma_descriptor_narrow(
                        factor +
                        slice_begin(kSide, kSlice) * kScreenBlockBytes));
    };
    (slice.template operator()<kSlices>(), ...);
}

/** A producer warp brings one component after the other to shared memory;
 * three warpgroups take 64 rows each, in registers, through them: one's
 * products are under way while others look at theirs. */
template <int kSide>
__global__ void __launch_bounds__(kThreads, 1)
        screen_kernel(const __grid_constant__ ScreenArgs args) {
    constexpr int kBytes = component_bytes(kSide);
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = ptx::smem_address(shared);
    const uint32_t barriers = base + kStages * kBytes;
    const auto full = [&](int stage) { return barriers + stage * 8; };
    const auto empty = [&](int stage) {
        return barriers + (kStages + stage) * 8;
    };
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            ptx::barrier_init(full(s), 1);
            ptx::barrier_init(empty(s), kConsumers * 128);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    const int begin = int(int64_t(args.k) * blockIdx.y / gridDim.y);
    const int end = int(int64_t(args.k) * (blockIdx.y + 1) / gridDim.y);
    int stage = 0;
    uint32_t phase = 0;
    const auto next = [&]() {
        if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
        }
    };

    if (warp == 4 * kConsumers) {
        const bool elected = ptx::elect_one();
        for (int c = begin; c < end; c++, next()) {
            ptx::barrier_wait(empty(stage), phase ^ 1);
            if (elected) {
                ptx::barrier_expect(full(stage), kBytes);
                ptx::bulk_load(
                        base + stage * kBytes,
                        args.operands + size_t(c) * kBytes,
                        kBytes,
                        full(stage));
            }
        }
        return;
    }

    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t first = int64_t(blockIdx.x) * kRows + warp * 16;
    const int64_t padded =
            (args.count + kBoundRows - 1) / kBoundRows * kBoundRows;
    // Beyond the last there are none: the first ones, and nobody is told.
    const int64_t from = first < padded ? first : 0;
    uint32_t y[kSide][4];
    const bool in_range = load_screen_rows<kSide>(
            args.rows.y + from * args.rows.pitch, args.rows.pitch, y);
    // Lanes q and q + 2 of a row's four decide for row g + 8 q.
    const int64_t row = from + q % 2 * 8 + g;
    ScreenedRow mine = {
            args.least[row], in_range ? args.rows.spread[row] : INFINITY};
    // Turns: else all would wait for products at once, and then none.
    const int w = warp / 4;
    const int my_turn = 1 + w, next_turn = 1 + (w + 1) % kConsumers;
    if (w == kConsumers - 1) {
        ptx::named_arrive(next_turn, 256);
    }
    for (int component = begin; component < end; component++, next()) {
        const unsigned char* const at = shared + stage * kBytes;
        ptx::barrier_wait(full(stage), phase);
        float c[2 * kSide][4];
#pragma unroll
        for (int n = 0; n < 2 * kSide; n++) {
            const float2 shift = *reinterpret_cast<const float2*>(
                    at + (n * 8 + 2 * q) * int(sizeof(float)));
            c[n][0] = c[n][2] = shift.x;
            c[n][1] = c[n][3] = shift.y;
        }
        const auto terms =
                *reinterpret_cast<const ScreenTerms*>(at + terms_at(kSide));
        const auto allowed = mine.allow(terms);
        ptx::named_sync(my_turn, 256);
        ptx::wgmma_fence();
        multiply<kSide>(
                c,
                y,
                base + stage * kBytes + factor_at(kSide),
                std::make_integer_sequence<int, kSide>());
        ptx::wgmma_commit();
        if (w + 1 < kConsumers || component + 1 < end) {
            ptx::named_arrive(next_turn, 256);
        }
        ptx::wgmma_wait<0>();
        ptx::barrier_arrive(empty(stage));
        float square[2] = {};
#pragma unroll
        for (int n = 0; n < 2 * kSide; n++) {
            square[0] += c[n][0] * c[n][0] + c[n][1] * c[n][1];
            square[1] += c[n][2] * c[n][2] + c[n][3] * c[n][3];
        }
        const bool odd = q & 1;
        float sum = (odd ? square[1] : square[0]) +
                __shfl_xor_sync(0xffffffffu, odd ? square[0] : square[1], 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const uint32_t found = __ballot_sync(
                0xffffffffu, mine.keeps(terms, allowed, sum, args.reach));
        if (lane == 0 && first < args.count) {
            reinterpret_cast<uint16_t*>(
                    args.pairs.bits +
                    component * args.pairs.words)[first / 16] =
                    uint16_t(gather_bits(found) | gather_bits(found >> 1) << 8);
        }
    }
}

} // namespace

void screen_hopper(const ScreenArgs& args, cudaStream_t stream) {
    with_side(args.d, [&]<int kSide>() {
        constexpr int kShared =
                kStages * component_bytes(kSide) + kBarrierBytes;
        constexpr int kEnough = 132;
        allow_shared(screen_kernel<kSide>, kShared);
        const int64_t blocks = (args.count + kRows - 1) / kRows;
        const int64_t shares = std::clamp<int64_t>(
                (kEnough + blocks - 1) / blocks, 1, (args.k + 31) / 32);
        screen_kernel<kSide>
                <<<dim3(unsigned(blocks), unsigned(shares)),
                   kThreads,
                   kShared,
                   stream>>>(args);
    });
    check_launch("screen_kernel");
}

} // namespace gmm::cuda::full
