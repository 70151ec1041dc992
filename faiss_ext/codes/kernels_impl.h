// Included by one source file for each instruction set, which defines
// BlockLanes and below_threshold first and is compiled with that set's flags
// and without fused products. Standard headers with inline functions stay out:
// the linker might keep the copy that was compiled for a newer processor than
// the one the program runs on.

#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/codes/kernels_impl_floats.h"

#include "faiss_ext/codes/kernels_impl_codes.h"

namespace faiss_ext {
namespace {

/// Blocks ahead that are fetched.
constexpr size_t kPrefetched = 4;
/// Blocks that are gathered before their entries are estimated.
constexpr size_t kGathered = 64;

inline void prefetch_block(const uint8_t* block, size_t block_bytes) {
    for (size_t b = 0; b < block_bytes; b += 64) {
        __builtin_prefetch(block + b);
    }
}

/// Entries of one block that are wanted.
struct GatheredBlock {
    const uint8_t* block;
    uint32_t list;
    uint32_t entry; ///< of its first lane
    unsigned wanted;
};

/// Estimates what was gathered, blocks 1 to n.
template <bool similarity, bool pairs>
CodeCandidate* estimate_gathered(
        const CodeShape& shape,
        const CodeQuery& query,
        const GatheredBlock* gathered,
        const BlockLanes* lanes,
        size_t n,
        float threshold,
        CodeCandidate* out) {
    const size_t groups = shape.groups, block_bytes = shape.block_bytes();
    for (size_t i = 1; i <= n; i++) {
        prefetch_block(gathered[i + kPrefetched].block, block_bytes);
        const GatheredBlock& g = gathered[i];
        alignas(64) float estimate[kBlockEntries];
        const unsigned mask = below_threshold<similarity, pairs>(
                g.block,
                groups,
                query.tables,
                query.base,
                query.step,
                lanes[i],
                threshold,
                estimate);
        out = append(mask & g.wanted, estimate, g.list, g.entry, out);
    }
    return out;
}

// Few branches here can be foreseen, so there are few: what every segment
// wants of its first two blocks is written down, whether it has a second or
// not, and looked at later.
template <bool similarity, bool pairs>
size_t scan_of(
        const CodeShape& shape,
        const CodeQuery& query,
        const Segment* segments,
        size_t n_segments,
        size_t ahead,
        float threshold,
        CodeCandidate* out) {
    const size_t block_bytes = shape.block_bytes();
    const CodeCandidate* const out_begin = out;
    GatheredBlock gathered[kGathered + kPrefetched + 3];
    BlockLanes lanes[kGathered + 3];
    size_t n = 0;
    const uint8_t* held = nullptr;
    gathered[0].wanted = 0;
    const auto flush = [&] {
        for (size_t i = 1; i <= kPrefetched; i++) {
            gathered[n + i].block = gathered[n].block;
        }
        out = estimate_gathered<similarity, pairs>(
                shape, query, gathered, lanes, n, threshold, out);
        n = 0;
        held = nullptr;
        gathered[0].wanted = 0;
    };
    const auto add = [&](const uint8_t* block,
                         const Segment& segment,
                         uint32_t entry,
                         unsigned mask) {
        const unsigned next = block != held;
        n += next;
        GatheredBlock& g = gathered[n];
        g = {block, segment.list, entry, mask | (g.wanted & (next - 1))};
        lanes[n].set(mask, segment.score, segment.slack);
        held = block;
    };
    for (size_t s = 0; s < kPrefetched && s < n_segments; s++) {
        prefetch_block(
                segments[s].blocks +
                        segments[s].begin / kBlockEntries * block_bytes,
                block_bytes);
    }
    for (size_t s = 0; s < n_segments; s++) {
        if (n >= kGathered) {
            flush();
        }
        const Segment& segment = segments[s];
        const uint32_t lane = segment.begin % kBlockEntries;
        const uint32_t size = segment.end - segment.begin;
        const uint8_t* block = segment.blocks +
                segment.begin / kBlockEntries * block_bytes;
        uint32_t entry = segment.begin - lane;
        const uint64_t mask = ((uint64_t(1) << (size < 47 ? size : 47)) - 1)
                << lane;
        add(block, segment, entry, unsigned(mask & 0xffff));
        const unsigned second = unsigned(mask >> 16 & 0xffff);
        GatheredBlock& g = gathered[n + 1];
        block += block_bytes;
        entry += kBlockEntries;
        g = {block, segment.list, entry, second};
        lanes[n + 1].set(second, segment.score, segment.slack);
        n += second > 0;
        held = second > 0 ? block : held;
        while (entry + kBlockEntries < segment.end) {
            if (n >= kGathered) {
                flush();
            }
            block += block_bytes;
            entry += kBlockEntries;
            const uint32_t left = segment.end - entry;
            add(block,
                segment,
                entry,
                left < kBlockEntries ? (1u << left) - 1 : 0xffff);
        }
    }
    flush();
    return out - out_begin;
}

size_t scan(
        const CodeShape& shape,
        const CodeQuery& query,
        bool similarity,
        const Segment* segments,
        size_t n_segments,
        size_t ahead,
        float threshold,
        CodeCandidate* out) {
    const auto f = similarity
            ? (shape.bits == 4 ? scan_of<true, false> : scan_of<true, true>)
            : (shape.bits == 4 ? scan_of<false, false> : scan_of<false, true>);
    return f(shape, query, segments, n_segments, ahead, threshold, out);
}

constexpr CodeKernels kTable = {
        scan,
        make_tables,
        code_product,
        squared_distance,
        inner_product,
        all_distances,
        decode_bytes,
        decode_halves,
        hadamard,
        distances,
        largest_difference,
        score_cells,
        buckets,
        places,
        encode};

} // namespace
} // namespace faiss_ext
