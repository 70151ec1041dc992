#pragma once

#include "cuda/dense/CtaClusterBlock.cuh"

namespace gmm::cuda::cta_cluster {

template <int kSteps>
__device__ __forceinline__ void Block<kSteps>::score_rows(
        bool any_narrow) const {
    const int u = warp / 4;
    const int first_row = warp % 4 * 16; // of this warp, in a tile
    const float least = exp2f(-args.bound);
    float c[kGroups][4];   // scores
    __half2 p[kGroups][2]; // exponentials

    const auto begin_scores = [&](uint32_t at) {
        const uint64_t y = ptx::wgmma_descriptor(at);
        const uint64_t m = ptx::wgmma_descriptor(base);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            ptx::wgmma_m64n128k16(
                    c,
                    y + (k / 4 * kRowChunkBytes + k % 4 * 32) / 16,
                    m + (k / 4 * kComponentChunkBytes + k % 4 * 32) / 16,
                    k > 0);
        }
        ptx::wgmma_m64n128k16(
                c,
                ptx::wgmma_descriptor_narrow(at + L::kRowSlotsAt),
                ptx::wgmma_descriptor_narrow(base + L::kComponentSlotsAt),
                true);
        ptx::wgmma_commit();
    };

    int stage = u;
    uint32_t phase = 0;
    ptx::barrier_wait(full(stage), phase);
    begin_scores(base + L::kStagesAt + stage * L::kStageBytes);
    // Rows that have a log-sum-exp: one block knows. Of the next tile, for
    // that takes its time.
    float known[2];
    const auto look_up = [&](int i) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            known[s] = rank == 0 && i < tiles
                    ? args.row_lse
                              [(begin + i) * kRows + first_row + lane / 4 +
                               8 * s]
                    : NAN;
        }
    };

    /// Factors that make exponentials responsibilities: two threads a row,
    /// four blocks each.
    const auto find_factors = [&](int i) {
        const int slot = i % kSlots, part_slot = i % kPartSlots;
        const int own = threadIdx.x % 128 / 2;
        const int row = (begin + i) * kRows + own;
        const uint32_t parts = base + L::kPartsAt + part_slot * L::kPartBytes +
                threadIdx.x % 2 * 4 * L::kRowBytes + own * 4;
        const float weight = args.row_weight ? args.row_weight[row] : 1.f;
        // Alone, a block waits for nobody: a barrier that expects nothing would
        // be two phases on before all threads had looked.
        if (blocks > 1) {
            ptx::barrier_wait(parts_full(part_slot), i / kPartSlots & 1);
        }
        const float best = ptx::load_shared_float(
                base + L::kBestAt + slot * L::kRowBytes + own * 4);
        float theirs[kMaxCtaCluster / 2];
        float top = -INFINITY, z = 0;
        bool some_near = false;
#pragma unroll
        for (int b = 0; b < kMaxCtaCluster / 2; b++) {
            theirs[b] = ptx::load_shared_float(parts + b * L::kRowBytes);
            top = fmaxf(top, theirs[b]);
            some_near |= is_marked(theirs[b]);
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
#pragma unroll
        for (float part : theirs) {
            z += ptx::exp2_approx(part - top);
        }
        z += __shfl_xor_sync(kAllLanes, z, 1);
        const float lse = top + __log2f(z);
        bool valid = z < INFINITY; // nor no number
        if (args.narrow && __any_sync(kAllLanes, some_near)) {
            bool near = false;
#pragma unroll
            for (float part : theirs) {
                near |= is_marked(part) && part > lse - args.bound;
            }
            const uint32_t all = __ballot_sync(kAllLanes, near);
            valid &= !(all >> (lane & ~1) & 3);
        }
        const float factor = weight * kResponsibilityScale *
                __fdividef(ptx::exp2_approx(best - top), z);
        if (threadIdx.x % 2 == 0) {
            ptx::store_shared(
                    base + L::kFactorsAt + slot * L::kFactorBytes + own * 2,
                    __float2half_rn(valid ? factor : 0.f));
            if (rank == 0 && valid) {
                args.row_lse[row] = lse;
            }
        }
        ptx::barrier_arrive(slot_full(slot));
        if (blocks > 1 && threadIdx.x % 128 == 0) {
            ptx::barrier_expect(
                    parts_full(part_slot), (blocks - 1) * L::kRowBytes);
        }
    };

    look_up(u);
    int i = u;
    for (; i < tiles; i += 2) {
        const bool done[2] = {!isnan(known[0]), !isnan(known[1])};
        look_up(i + 2);
        ptx::wgmma_wait<0>();

        float best[2], sum[2] = {};
        Strip::maxima(c, best);
        best[0] = quad_max(best[0]);
        best[1] = quad_max(best[1]);
#pragma unroll
        for (int g = 0; g < kGroups; g++) {
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float e0 = ptx::exp2_approx(c[g][2 * s] - best[s]);
                const float e1 = ptx::exp2_approx(c[g][2 * s + 1] - best[s]);
                sum[s] += e0 + e1;
                p[g][s] = __floats2half2_rn(e0, e1);
            }
        }
        stage += 2;
        if (stage >= kStages) {
            stage -= kStages;
            phase ^= 1;
        }
        ptx::barrier_wait(full(stage), phase);
        begin_scores(base + L::kStagesAt + stage * L::kStageBytes);
        if (i >= 2) {
            find_factors(i - 2); // parts have had their time to come
        }

        sum[0] = quad_sum(sum[0]);
        sum[1] = quad_sum(sum[1]);
        bool near[2] = {};
        if (any_narrow) {
            __half2 of_narrow[2] = {};
            const uint32_t from = base + L::kNarrowAt + quad * kGroups * 4;
#pragma unroll
            for (int g = 0; g < kGroups; g += 4) {
                const uint4 is = ptx::load_shared_uint4(from + g * 4);
                const uint32_t each[4] = {is.x, is.y, is.z, is.w};
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    of_narrow[e % 2] =
                            __hfma2(p[g + e / 2][e % 2],
                                    ptx::half2_of(each[e / 2]),
                                    of_narrow[e % 2]);
                }
            }
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float2 f = __half22float2(of_narrow[s]);
                near[s] = quad_sum(f.x + f.y) > least;
            }
        }
        // The part among the others', and to all of them. One that is no number
        // gives its row a factor of 0. (Rows that are none themselves spoil the
        // sums all the same; their pass ends with an error.)
        const int slot = i % kSlots, part_slot = i % kPartSlots;
        const uint32_t own = base + L::kPartsAt + part_slot * L::kPartBytes +
                rank * L::kRowBytes;
        ptx::barrier_wait(slot_empty(slot), (i / kSlots & 1) ^ 1);
        if (quad < 2) {
            const bool second = quad == 1;
            const int row = first_row + lane / 4 + 8 * quad;
            const float top = second ? best[1] : best[0];
            const float part = top + __log2f(second ? sum[1] : sum[0]);
            ptx::store_shared(
                    base + L::kBestAt + slot * L::kRowBytes + row * 4, top);
            ptx::store_shared(
                    own + row * 4,
                    (second ? done[1] : done[0])
                            ? NAN
                            : marked(part, second ? near[1] : near[0]));
        }
        ptx::async_fence();
        ptx::named_sync(1 + u, 128);
#pragma unroll
        for (int b = warp % 4; b < kMaxCtaCluster; b += 4) {
            if (b < blocks && b != rank && ptx::elect_one()) {
                ptx::cluster_copy(
                        ptx::cluster_address(own, b),
                        own,
                        L::kRowBytes,
                        ptx::cluster_address(parts_full(part_slot), b));
            }
        }
        __syncwarp();
        const uint32_t to = base + L::kSlotsAt + slot * L::kSlotBytes +
                (first_row + lane % 16) * 128;
#pragma unroll
        for (int g = 0; g < kGroups; g += 2) {
            const uint32_t piece = g % 8 + lane / 16;
            ptx::store_matrix(
                    to + g / 8 * kRowChunkBytes + ((piece ^ lane % 8) << 4),
                    ptx::bits(p[g][0]),
                    ptx::bits(p[g][1]),
                    ptx::bits(p[g + 1][0]),
                    ptx::bits(p[g + 1][1]));
        }
    }
    ptx::wgmma_wait<0>();
    if (i >= 2) {
        find_factors(i - 2);
    }
}

} // namespace gmm::cuda::cta_cluster
