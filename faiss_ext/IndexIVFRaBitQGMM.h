#pragma once

#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// An IVF index whose lists hold ids and no codes (code_size = 0): the base of
/// IndexIVFRaBitQGMM, of no use by itself.
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
    /// Returns a scanner that throws for any entry.
    faiss::InvertedListScanner* get_InvertedListScanner(
            bool store_pairs,
            const faiss::IDSelector* sel
                    FAISS_EXT_SCANNER_TAIL_DECL) const override;
};

/** An IVF index of codes about the means of cells (CellCodes.h) and ids,
 * without vectors: bits * d / 8 + 16 bytes a vector, d rounded up to a multiple
 * of 16 / bits.
 *
 * Distances are estimates by the codes, which are unbiased; a search returns
 * the k least. An IndexRefine around (",RFlat") compares vectors after that.
 *
 * Works like IndexIVFGMM, except for what would need the vectors:
 *  - Cells are fitted by training and stay: cells_per_list of them in each
 *    list, or as many as lists of n / nlist vectors would have (16 at least).
 *    cells_per_list = 1 makes codes about the means of lists. optimize() and
 *    maintain() only calibrate.
 *  - nprobe buys as many codes as that many lists hold on average, those of
 *    the nearest cells. max_codes caps them, but cells are not cut. Orders of
 *    whole lists throw.
 *  - target_recall is a share of what searching all codes finds: what so few
 *    bits miss, no setting finds. Without queries of the user's the
 *    calibration searches decoded vectors.
 *  - reconstruct() decodes.
 *  - merge_from and copy_subset_to copy codes between copies of one trained
 *    index: the same means, cells and bits.
 *  - max_assign is 1. search_preassigned, range_search_preassigned, sa_encode
 *    and other calls that ask FAISS for the bytes of a code throw.
 *
 * Stock FAISS refuses the files of faiss_ext::write_index: it does not know the
 * type "GMMc".
 */
struct IndexIVFRaBitQGMM : IndexIVFGMM<IndexIVFIds> {
    /// @param bits    of each dimension: 1, 2 or 4
    /// @param metric  METRIC_L2 or METRIC_INNER_PRODUCT
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
