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

/// Segments ahead whose blocks are fetched.
constexpr size_t kPrefetched = 4;

inline const uint8_t* first_block(const Segment& s, size_t block_bytes) {
    return s.blocks + s.begin / kBlockEntries * block_bytes;
}
inline const uint8_t* last_block(const Segment& s, size_t block_bytes) {
    return s.blocks + (s.end - 1) / kBlockEntries * block_bytes;
}

/// @param fetched  the block fetched last; the first of the segment may be it
inline const uint8_t* prefetch_blocks(
        const Segment& segment, size_t block_bytes, const uint8_t* fetched) {
    const uint8_t* p = first_block(segment, block_bytes);
    const uint8_t* last = last_block(segment, block_bytes);
    for (p += p == fetched ? block_bytes : 0; p < last + block_bytes; p += 64) {
        __builtin_prefetch(p);
    }
    return last;
}

template <bool similarity, bool pairs>
size_t scan_of(
        const CodeShape& shape,
        const CodeQuery& query,
        const Segment* segments,
        size_t n_segments,
        size_t ahead,
        float threshold,
        CodeCandidate* out) {
    const size_t groups = shape.groups, block_bytes = shape.block_bytes();
    const size_t n_fetched = n_segments + ahead;
    const CodeCandidate* const out_begin = out;
    const uint8_t* fetched = nullptr;
    for (size_t s = 0; s < kPrefetched && s < n_fetched; s++) {
        fetched = prefetch_blocks(segments[s], block_bytes, fetched);
    }
    // Segments that share a block are looked at together: every lane has the
    // score of its own.
    BlockLanes lanes;
    const uint8_t* held = nullptr;
    unsigned wanted = 0;
    uint32_t list = 0, entry = 0;
    const auto look = [&] {
        alignas(64) float estimate[kBlockEntries];
        unsigned mask = below_threshold<similarity, pairs>(
                held,
                groups,
                query.tables,
                query.base,
                query.step,
                lanes,
                threshold,
                estimate);
        for (mask &= wanted; mask; mask &= mask - 1) {
            const unsigned lane = unsigned(__builtin_ctz(mask));
            *out++ = {estimate[lane], list, entry + lane};
        }
    };
    for (size_t s = 0; s < n_segments; s++) {
        const Segment& segment = segments[s];
        if (s + kPrefetched < n_fetched) {
            fetched = prefetch_blocks(
                    segments[s + kPrefetched], block_bytes, fetched);
        }
        const uint8_t* block = first_block(segment, block_bytes);
        uint32_t begin = segment.begin % kBlockEntries;
        uint32_t left = segment.end - segment.begin;
        for (;;) {
            if (block != held) {
                if (held) {
                    look();
                }
                held = block;
                wanted = 0;
                list = segment.list;
                entry = segment.end - left - begin;
            }
            const uint32_t here = left < kBlockEntries - begin
                    ? left
                    : uint32_t(kBlockEntries) - begin;
            const unsigned mask = (1u << (begin + here)) - (1u << begin);
            lanes.set(mask, segment.score, segment.slack);
            wanted |= mask;
            left -= here;
            if (left == 0) {
                break;
            }
            begin = 0;
            block += block_bytes;
        }
    }
    if (held) {
        look();
    }
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
