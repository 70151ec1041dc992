#include "faiss_ext/codes/kernels_plain.h"

namespace faiss_ext {
namespace {

/// The scores and the slacks of a block's entries.
struct BlockLanes {
    float score[kBlockEntries], slack[kBlockEntries];

    void set(unsigned mask, float its_score, float its_slack) {
        for (size_t l = 0; l < kBlockEntries; l++) {
            if (mask >> l & 1) {
                score[l] = its_score;
                slack[l] = its_slack;
            }
        }
    }
};

/** Estimates the entries of a block; returns which are below the threshold.
 * <q, o> is base + step times the sum of the tables' entries that the nibbles
 * name. */
template <bool similarity, bool pairs, class Tables>
unsigned below_threshold(
        const uint8_t* block,
        size_t groups,
        const Tables& tables,
        float base,
        float step,
        const BlockLanes& lanes,
        float threshold,
        float* estimate) {
    uint32_t sum[kBlockEntries] = {};
    for (size_t g = 0; g < groups; g++) {
        for (size_t column = 0; column < 2; column++) {
            const uint8_t* code = block + g * 32 + column * 16;
            const uint8_t* low = tables.low + g * 32 + column * 16;
            const uint8_t* high = tables.high + g * 32 + column * 16;
            for (size_t l = 0; l < kBlockEntries; l++) {
                sum[l] += low[code[l] & 15] + high[code[l] >> 4];
            }
        }
    }
    const float* terms = reinterpret_cast<const float*>(block + groups * 32);
    unsigned mask = 0;
    for (size_t l = 0; l < kBlockEntries; l++) {
        const float product = float(int32_t(sum[l])) * step + base;
        const float own = similarity ? terms[l] * lanes.score[l]
                                     : terms[l] + lanes.score[l];
        estimate[l] =
                terms[kBlockEntries + l] * (product + lanes.slack[l]) + own;
        mask |= unsigned(estimate[l] < threshold) << l;
    }
    return mask;
}

} // namespace
} // namespace faiss_ext

#include "faiss_ext/codes/kernels_impl.h"

namespace faiss_ext {
extern const CodeKernels code_kernels_portable = kTable;
}
