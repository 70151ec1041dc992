#include "faiss_ext/IndexIVFRaBitQGMM.h"

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/codes_alone.h"
#include "faiss_ext/store/maintain.h"
#include "faiss_ext/store/take_entries.h"

namespace faiss_ext {

namespace {

/// Throws where it is asked about an entry: within what FAISS catches.
struct NoScanner : faiss::InvertedListScanner {
    void set_query(const float*) override {}
    void set_list(idx_t, float) override {}
    float distance_to_code(const uint8_t*) const override {
        FAISS_THROW_MSG(
                "codes about the means of cells are not compared one by one by "
                "FAISS: use search() or range_search()");
    }
};

} // namespace

void IndexIVFIds::train(idx_t n, const float* x) {
    train_q1(n, x, verbose, metric_type);
    is_trained = true;
}

void IndexIVFIds::encode_vectors(
        idx_t, const float*, const idx_t*, uint8_t*, bool) const {
    FAISS_THROW_MSG(
            "encode_vectors: codes about the means of cells are not the bytes "
            "of a vector; add() makes them");
}

faiss::InvertedListScanner* IndexIVFIds::get_InvertedListScanner(
        bool, const faiss::IDSelector* FAISS_EXT_SCANNER_TAIL_DECL) const {
    return new NoScanner;
}

IndexIVFRaBitQGMM::IndexIVFRaBitQGMM(
        size_t d, size_t nlist, int bits, faiss::MetricType metric)
        : IndexIVFGMM<IndexIVFIds>(d, nlist, metric) {
    CellCodes::check_fits(d, bits);
    code_bits = bits;
}

void IndexIVFRaBitQGMM::reset() {
    PairCells kept = std::move(cells);
    try {
        IndexIVFGMM::reset();
    } catch (...) {
        cells = std::move(kept);
        throw;
    }
    kept.clear_entries();
    cells = std::move(kept);
}

void IndexIVFRaBitQGMM::reconstruct_from_offset(
        int64_t list_no, int64_t offset, float* recons) const {
    FAISS_THROW_IF_NOT_FMT(
            size_t(list_no) < nlist && !cells.empty() &&
                    size_t(offset) < cells.list_size(list_no),
            "reconstruct_from_offset: entry %zd of list %zd, expected one that "
            "there is",
            ssize_t(offset),
            ssize_t(list_no));
    check_not_shortened(
            list_no,
            invlists->list_size(list_no),
            cells.list_size(list_no),
            false);
    decode_entries(*this, cells, list_no, offset, 1, recons);
}

void IndexIVFRaBitQGMM::check_compatible_for_merge(
        const faiss::Index& other) const {
    IndexIVFGMM::check_compatible_for_merge(other);
    check_same_cells(
            "merge_from",
            cells,
            dynamic_cast<const IndexIVFRaBitQGMM&>(other).cells);
}

void IndexIVFRaBitQGMM::merge_from(faiss::Index& other_index, idx_t add_id) {
    check_compatible_for_merge(other_index);
    auto& other = dynamic_cast<IndexIVFRaBitQGMM&>(other_index);
    check_writable(other);
    Growth growth({*this, *this}, "merge_from");
    const auto records = copy_records(other, other.cells);
    take_entries({*this, *this}, *records, other.ntotal, add_id, {});
    other.reset();
    growth.finish();
}

void IndexIVFRaBitQGMM::copy_subset_to(
        faiss::IndexIVF& other,
        subset_type_t subset_type,
        idx_t a1,
        idx_t a2) const {
    auto to = dynamic_cast<IndexIVFRaBitQGMM*>(&other);
    FAISS_THROW_IF_NOT_MSG(
            to && to != this,
            "copy_subset_to: expected another IndexIVFRaBitQGMM: codes about "
            "the means of cells mean nothing to others");
    FAISS_THROW_IF_NOT_MSG(
            other.direct_map.no(),
            "copy_subset_to: expected an index without a direct map");
    FAISS_THROW_IF_NOT_FMT(
            to->d == d && to->nlist == nlist && to->metric_type == metric_type,
            "copy_subset_to: d = %d, nlist = %zu and metric %d, expected %d, "
            "%zu and %d",
            to->d,
            to->nlist,
            int(to->metric_type),
            d,
            nlist,
            int(metric_type));
    check_same_cells("copy_subset_to", to->cells, cells);
    if (!has_subset(*this, other, int(subset_type), a1, a2)) {
        return;
    }
    // FAISS knows what a subset is: of lists with records in place of codes
    IndexIVFIds from, subset;
    from.nlist = subset.nlist = nlist;
    from.code_size = subset.code_size = record_size(cells);
    from.invlists = copy_records(*this, cells).release();
    subset.invlists = new faiss::ArrayInvertedLists(nlist, record_size(cells));
    from.own_invlists = subset.own_invlists = true;
    from.ntotal = idx_t(from.invlists->compute_ntotal());
    from.copy_subset_to(subset, subset_type, a1, a2);
    add_subset({*to, *to}, *subset.invlists);
}

void IndexIVFRaBitQGMM::optimize() {
    check_trained(*this);
    if (size_t(ntotal) >= kMinCalibrationVectors) {
        calibrate_again({*this, *this});
    }
}

} // namespace faiss_ext
