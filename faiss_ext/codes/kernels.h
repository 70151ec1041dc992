#pragma once

/// The inner loops of a search, for one instruction set each: they do not
/// depend on the flags that the FAISS beneath was built with.
///
/// Every set gives the same bits: sums of integers, then products and sums of
/// floats in one order, none of them fused.

#include <cstddef>
#include <cstdint>

namespace faiss_ext {

/// Entries whose codes lie together, see CellCodes.
constexpr size_t kBlockEntries = 16;

/// Consecutive entries of a list that share a cell, as one query sees them.
struct Segment {
    const uint8_t* blocks; ///< the list's, each aligned to 32 bytes
    uint32_t list;
    uint32_t begin;
    uint32_t end; ///< above begin
    /// |q - m|^2 of the cell's mean, or -q.m for inner products
    float score;
    /// added to <q, o> so that an estimate becomes a lower bound
    float slack;
};

/// Elements behind the last candidate that CodeKernels::scan may write to.
constexpr size_t kMoreCandidates = 6;

/// An entry whose lower bound is below the threshold.
struct CodeCandidate {
    float bound; ///< lower bound of its distance: estimate and slack
    uint32_t list;
    uint32_t entry;
};

/** What a query knows of every code: for each column of four bits, the share
 * of <q, o> of each of its 16 values, as whole steps above the least.
 *
 * tables: groups * 32 bytes for the low halves of a group's bytes (columns 0
 * and 1), then as many for the high halves (columns 2 and 3).
 */
struct CodeQuery {
    const uint8_t* tables;
    float base; ///< <q, o> = base + step * sum of the tables' entries
    float step;
};

/// The shape of blocks, see CellCodes.
struct CodeShape {
    size_t d = 0;
    int bits = 0;
    size_t groups = 0; ///< of four columns of four bits: 32 bytes a block

    size_t block_bytes() const {
        return groups * 32 + kBlockEntries * 2 * sizeof(float);
    }
    /// Of one entry: the bytes of its columns, then A, then B.
    size_t entry_bytes() const {
        return groups * 2 + 2 * sizeof(float);
    }
};

/// Vectors that are encoded at a time.
constexpr size_t kEncodedTogether = 8;

/// What a code's terms are made of, see CodeKernels::encode.
struct CodeProducts {
    float rr; ///< <r, r>
    float ro; ///< <r, o>
    float oo; ///< <o, o>
    float mo; ///< <m, o>
};

/// See CodeKernels::encode.
struct EncodeArgs {
    size_t d;
    int bits;
    size_t n;       ///< at most kEncodedTogether
    const float* y; ///< size n * d
    // of each, size n
    const float* const* own;
    const float* const* partner;
    const float* a;
    float* room; ///< size 2 * n * d
    // output
    uint8_t* level; ///< of vector i from i * pitch on: d, below 2^bits
    size_t pitch;
    CodeProducts* out; ///< size n; o = level - (2^bits - 1) / 2
};

struct CodeKernels {
    /** Estimates the entries of segments from their codes.
     *
     *     estimate = score + A + B (<q, o> + slack)   (squared distances)
     *     estimate = A score   + B (<q, o> + slack)   (similarity)
     *
     * @param segments  those that share a block side by side, for their sums
     *                  are taken once
     * @param out       those below the threshold, in order; has room for all
     *                  and kMoreCandidates
     * @return          how many they are
     */
    size_t (*scan)(
            const CodeShape& shape,
            const CodeQuery& query,
            bool similarity,
            const Segment* segments,
            size_t n_segments,
            float threshold,
            CodeCandidate* out);

    /** The tables of a query.
     *
     * @param q       rotated, size d
     * @param tables  output, size groups * 64
     */
    void (*make_tables)(
            const CodeShape& shape,
            const float* q,
            uint8_t* tables,
            float* base,
            float* step);

    /// <q, o> of one entry, from the rotated query itself: lane of a block.
    float (*code_product)(
            const CodeShape& shape,
            const float* q,
            const uint8_t* block,
            size_t lane);

    /// |x - y|^2 and <x, y>, of vectors of d values
    float (*squared_distance)(const float* x, const float* y, size_t d);
    float (*inner_product)(const float* x, const float* y, size_t d);

    /// out[i] = squared_distance(x, y + i * d), or the negated inner product
    void (*all_distances)(
            bool similarity,
            const float* x,
            const float* y,
            size_t n,
            size_t d,
            float* out);

    /// out[j] = offset[j] + scale[j] * code[j]
    void (*decode_bytes)(
            size_t d,
            const uint8_t* code,
            const float* scale,
            const float* offset,
            float* out);
    /// IEEE 754 binary16, little-endian
    void (*decode_halves)(size_t d, const uint8_t* code, float* out);

    /// In place: the Walsh-Hadamard transform of n = 2^p values, each times its
    /// sign before (nullptr: as they are), over sqrt(n).
    void (*hadamard)(float* x, const float* signs, size_t n);

    /// out[j] = max(0, products[j] * scale + (offset + norms[j])); the least
    /// and the largest of them
    void (*distances)(
            size_t n,
            const float* products,
            const float* norms,
            float scale,
            float offset,
            float* out,
            float* least,
            float* largest);

    /// The place of the largest x[j] - y[j], the first of equals.
    size_t (*largest_difference)(size_t n, const float* x, const float* y);

    /// The cell of the least half_norms[partner[l]] - scale
    /// products[partner[l]] - weight gap[l], the first of equals.
    size_t (*nearest_cell)(
            size_t n,
            const float* products,
            float scale,
            const float* half_norms,
            const int32_t* partner,
            const float* gap,
            float weight);

    /// out[l] = own + a distances[partner[l]] - weight gap[l]; widens least
    /// and largest to hold them
    void (*score_cells)(
            size_t n,
            const float* distances,
            const int32_t* partner,
            const float* gap,
            float a,
            float own,
            float weight,
            float* out,
            float* least,
            float* largest);

    /// bucket[j] = (x[j] - least) * scale, as a whole number of at most `last`
    void (*buckets)(
            size_t n,
            const float* x,
            float least,
            float scale,
            uint16_t last,
            uint16_t* bucket);

    /// The places of values from low to low + width, ascending; returns how
    /// many. out has size n.
    size_t (*places)(
            size_t n,
            const uint16_t* value,
            uint16_t low,
            uint16_t width,
            uint32_t* out);

    /// A value that `least` to `most` of the values x are below, or nearly so
    /// many (where values are equal, or one is far from all others).
    float (*cut)(size_t n, const float* x, size_t least, size_t most);

    /// The codes of rotated vectors, each about its cell's mean m = own + a
    /// (partner - own): levels that come nearest to the direction of the
    /// residual r = y - m among a few steps.
    void (*encode)(const EncodeArgs& args);
};

enum class SimdLevel { portable, avx2, avx512 };

/// The kernels of one level; nullptr where this machine or build lacks it.
const CodeKernels* code_kernels(SimdLevel level);

/// The fastest that this machine has and gmm::simd_limit() allows, as it was
/// at the first call.
const CodeKernels& best_code_kernels();

} // namespace faiss_ext
