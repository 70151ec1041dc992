#pragma once

#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// The stock part of an index whose lists hold ids alone: code_size is 0.
struct IndexIVFIds : faiss::IndexIVF {
    IndexIVFIds(
            faiss::Index* quantizer,
            size_t d,
            size_t nlist,
            faiss::MetricType metric = faiss::METRIC_L2)
            : IndexIVF(quantizer, d, nlist, 0, metric) {}
    IndexIVFIds() = default;

    void train(idx_t n, const float* x) override;
    /// Throws: a code means nothing without the cell that it is about.
    void encode_vectors(
            idx_t n,
            const float* x,
            const idx_t* list_nos,
            uint8_t* codes,
            bool include_listno = false) const override;
    /// Of one that throws for any entry.
    faiss::InvertedListScanner* get_InvertedListScanner(
            bool store_pairs,
            const faiss::IDSelector* sel
                    FAISS_EXT_SCANNER_TAIL_DECL) const override;
};

/** Codes about the means of cells (CellCodes.h) and ids, without vectors:
 * bits * d / 8 + 16 bytes for each, d rounded up to 16 * 8 / (8 * bits).
 *
 * Distances are the codes' estimates, which are unbiased; a search returns the
 * k least. IndexRefine (",RFlat") compares vectors after it.
 *
 * All of IndexIVFGMM, but for what would need the vectors:
 *  - cells are fitted by training, and stay: L = cells_per_list, or what lists
 *    of n / nlist would have (16 at least). cells_per_list = 1 makes codes
 *    about the means of lists. optimize() and maintain() only calibrate.
 *  - `nprobe` buys as many codes as so many lists hold on average, those of
 *    the nearest cells; max_codes is a cap on that, but for the last cells.
 *    Orders of whole lists throw.
 *  - target_recall is a share of what searching all codes finds: what codes of
 *    so few bits miss, no setting finds. By the queries given, or by decoded
 *    vectors.
 *  - reconstruct() decodes.
 *  - merge_from and copy_subset_to copy codes, and want an index of the same
 *    training (a copy of it, as for any sharded index): the same means, cells
 *    and bits.
 *  - max_assign is 1. search_preassigned, range_search_preassigned,
 *    sa_encode and what else asks FAISS for bytes of a code throw.
 *
 * FAISS does not read the files (faiss_ext::write_index): it says that it does
 * not know the type "GMMc".
 */
struct IndexIVFRaBitQGMM : IndexIVFGMM<IndexIVFIds> {
    /// @param bits  of a dimension: 1, 2 or 4
    IndexIVFRaBitQGMM(
            size_t d,
            size_t nlist,
            int bits = 1,
            faiss::MetricType metric = faiss::METRIC_L2);
    IndexIVFRaBitQGMM() = default;

    void reset() override;
    void reconstruct_from_offset(
            int64_t list_no, int64_t offset, float* recons) const override;
    void merge_from(faiss::Index& other, idx_t add_id) override;
    void check_compatible_for_merge(const faiss::Index& other) const override;
    void copy_subset_to(
            faiss::IndexIVF& other,
            subset_type_t subset_type,
            idx_t a1,
            idx_t a2) const override;
    void optimize() override;
};

} // namespace faiss_ext
