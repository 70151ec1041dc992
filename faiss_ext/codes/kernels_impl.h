// Included by one source file for each instruction set, which defines
// BlockLanes and below_threshold first and is compiled with that set's flags
// and without fused products. Standard headers with inline functions stay out:
// the linker might keep the copy that was compiled for a newer processor than
// the one the program runs on.

#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/codes/kernels_impl_floats.h"

#include "faiss_ext/codes/kernels_impl_codes.h"
#include "faiss_ext/codes/kernels_impl_hadamard.h"

namespace faiss_ext {
namespace {

/// Blocks ahead that are fetched.
constexpr size_t kPrefetched = 8;
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
template <bool similarity, bool pairs, class Tables>
CodeCandidate* estimate_gathered(
        const CodeShape& shape,
        const CodeQuery& query,
        const GatheredBlock* gathered,
        const BlockLanes* lanes,
        size_t n,
        float threshold,
        CodeCandidate* out) {
    const size_t groups = shape.groups, block_bytes = shape.block_bytes();
    const Tables tables(query.tables, groups);
    for (size_t i = 1; i <= n; i++) {
        prefetch_block(gathered[i + kPrefetched].block, block_bytes);
        const GatheredBlock& g = gathered[i];
        alignas(64) float estimate[kBlockEntries];
        const unsigned mask = below_threshold<similarity, pairs>(
                g.block,
                groups,
                tables,
                query.base,
                query.step,
                lanes[i],
                threshold,
                estimate);
        out = append(mask & g.wanted, estimate, g.list, g.entry, out);
    }
    return out;
}

/** Gathers the blocks of segments from the `from`-th entry of the first on,
 * into places 1 to n, until all are or there is no more room.
 *
 * Few branches here can be foreseen, so there are few: what every segment
 * wants of its first two blocks is written down, whether it has a second or
 * not. Segments that share a block are looked at together: every lane has the
 * score of its own.
 */
size_t gather(
        size_t block_bytes,
        const Segment*& segment,
        const Segment* end,
        uint32_t& from,
        GatheredBlock* gathered,
        BlockLanes* lanes) {
    size_t n = 0;
    const uint8_t* held = nullptr;
    gathered[1].wanted = 0;
    const Segment* s = segment;
    uint32_t begin = from;
    while (s < end && n < kGathered) {
        const uint32_t lane = begin % kBlockEntries;
        uint32_t entry = begin - lane;
        const uint8_t* block = s->blocks + entry / kBlockEntries * block_bytes;
        const uint32_t size = s->end - begin;
        const uint64_t mask = ((uint64_t(1) << (size < 32 ? size : 32)) - 1)
                << lane;
        const unsigned next = block != held;
        n += next;
        gathered[n] = {
                block,
                s->list,
                entry,
                unsigned(mask & 0xffff) | (gathered[n].wanted & (next - 1))};
        lanes[n].set(mask & 0xffff, s->score, s->slack);
        block += block_bytes;
        entry += kBlockEntries;
        const unsigned second = unsigned(mask >> 16 & 0xffff);
        gathered[n + 1] = {block, s->list, entry, second};
        lanes[n + 1].set(second, s->score, s->slack);
        n += second > 0;
        held = gathered[n].block;
        begin = entry + kBlockEntries;
        if (begin >= s->end) {
            s++;
            begin = s < end ? s->begin : 0;
        }
    }
    segment = s;
    from = begin;
    return n;
}

template <bool similarity, bool pairs>
size_t scan_of(
        const CodeShape& shape,
        const CodeQuery& query,
        const Segment* segments,
        size_t n_segments,
        float threshold,
        CodeCandidate* out) {
    const size_t block_bytes = shape.block_bytes();
    const CodeCandidate* const out_begin = out;
    const Segment* const end = segments + n_segments;
    GatheredBlock gathered[kGathered + kPrefetched + 3];
    BlockLanes lanes[kGathered + 3];
    for (size_t s = 0; s < kPrefetched && s < n_segments; s++) {
        prefetch_block(
                segments[s].blocks +
                        segments[s].begin / kBlockEntries * block_bytes,
                block_bytes);
    }
    const Segment* segment = segments;
    uint32_t from = n_segments > 0 ? segment->begin : 0;
    while (segment < end) {
        const size_t n =
                gather(block_bytes, segment, end, from, gathered, lanes);
        for (size_t i = 1; i <= kPrefetched; i++) {
            gathered[n + i].block = gathered[n].block;
        }
        out = with_tables(shape.groups, [&]<class Tables>() {
            return estimate_gathered<similarity, pairs, Tables>(
                    shape, query, gathered, lanes, n, threshold, out);
        });
    }
    return out - out_begin;
}

size_t scan(
        const CodeShape& shape,
        const CodeQuery& query,
        bool similarity,
        const Segment* segments,
        size_t n_segments,
        float threshold,
        CodeCandidate* out) {
    const auto f = similarity
            ? (shape.bits == 4 ? scan_of<true, false> : scan_of<true, true>)
            : (shape.bits == 4 ? scan_of<false, false> : scan_of<false, true>);
    return f(shape, query, segments, n_segments, threshold, out);
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
        nearest_cell,
        score_cells,
        buckets,
        places,
        cut,
        encode};

} // namespace
} // namespace faiss_ext
