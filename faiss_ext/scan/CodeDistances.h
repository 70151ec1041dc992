#pragma once

#include <cstddef>

#include <faiss/IndexIVF.h>

#include "faiss_ext/CellCodes.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/QueryCoarse.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

/** ExactDistances where there is nothing but codes: an entry's distance is what
 * its code says, without the rounding of a query's tables. */
class CodeDistances {
public:
    static constexpr bool of_codes = true;

    CodeDistances(const faiss::IndexIVF&, const IVFGMM& gmm)
            : cells(gmm.cells), codes(gmm.cells.codes) {}

    /// @param rotated_in  P (q - c); must stay valid, and so must the others
    void set_query(
            const float*,
            const float* rotated_in,
            QueryCoarse& coarse_in,
            float q_norm_in) {
        rotated = rotated_in;
        coarse = &coarse_in;
        q_norm = q_norm_in;
    }

    /// Entries ahead that are fetched.
    size_t ahead() const {
        return 8;
    }

    void prefetch(size_t list, size_t entry) const {
        const uint8_t* block = block_of(list, entry);
        for (size_t b = 0; b < codes.shape.block_bytes(); b += 64) {
            __builtin_prefetch(block + b);
        }
    }

    float operator()(size_t list, size_t entry) {
        const size_t l = cells.cell_of(list, entry);
        const int32_t own = int32_t(list), partner = cells.partners(list)[l];
        coarse->need(&own, 1);
        coarse->need(&partner, 1);
        const float a = cells.a[list];
        float score = (1 - a) * coarse->distances[list];
        score += a * coarse->distances[partner];
        const uint8_t* block = block_of(list, entry);
        const size_t lane = entry % kBlockEntries;
        const float* terms =
                reinterpret_cast<const float*>(block + codes.shape.groups * 32);
        const float product =
                kernels.code_product(codes.shape, rotated, block, lane);
        const float A = terms[lane], B = terms[kBlockEntries + lane];
        if (codes.similarity) {
            return A * (q_norm * (0.5f * score - 1)) + B * product;
        }
        return (score - a * (1 - a) * cells.gaps(list)[l]) + A + B * product;
    }

    /// Those to n consecutive entries.
    void all(size_t list, size_t begin, size_t n, float* out) {
        for (size_t i = 0; i < n; i++) {
            out[i] = (*this)(list, begin + i);
        }
    }

    /// As ExactDistances has it.
    void
    some(size_t list, const uint32_t* entries, size_t n, size_t, float* out) {
        for (size_t i = 0; i < n; i++) {
            out[i] = (*this)(list, entries[i]);
        }
    }

private:
    const uint8_t* block_of(size_t list, size_t entry) const {
        return codes.blocks[list].data() +
                entry / kBlockEntries * codes.shape.block_bytes();
    }

    const PairCells& cells;
    const CellCodes& codes;
    const CodeKernels& kernels = best_code_kernels();
    const float* rotated = nullptr;
    QueryCoarse* coarse = nullptr;
    float q_norm = 0;
};

} // namespace faiss_ext
