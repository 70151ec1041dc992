#pragma once

#include <cstddef>
#include <memory>

#include <faiss/invlists/InvertedLists.h>

#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/list_storage.h"

/// What is different where an index keeps codes about the means of cells and
/// no vectors: the codes are in PairCells alone, FAISS's lists have ids and
/// code_size = 0, and cells stay what training made them.
namespace faiss_ext {

/** Cells without entries, for an index that training is about to make.
 *
 * L is gmm.cells_per_list, or that for lists of n / nlist; of fewer than three
 * means, or for cells_per_list = 1, a list is its cell. CellCodes::error is
 * that of the training vectors.
 *
 * @param x      size n * d; directions for METRIC_INNER_PRODUCT
 * @param means  quantizer of the nlist means
 */
PairCells fit_cells_in_training(
        const IVFGMM& gmm,
        const faiss::Index& means,
        size_t nlist,
        size_t n,
        const float* x);

/// Throws FaissException, beginning with `call`, unless a record of one is a
/// record of the other.
void check_same_cells(
        const char* call, const PairCells& to, const PairCells& from);

/// Bytes of the partner of an entry's cell (four) and its record.
size_t record_size(const PairCells& cells);

/// Lists whose codes are partner and record of each entry: a copy of all codes.
std::unique_ptr<faiss::InvertedLists> copy_records(
        const faiss::IndexIVF& ivf, const PairCells& cells);

/// Cells and payload of arrivals whose `codes` are those of copy_records(), to
/// an index of the same cells.
void place_records(GMMIndexRef index, Arrivals& arrivals);

/// The vectors of n entries of a list from `begin` on, decoded; size n * d.
void decode_entries(
        const faiss::IndexIVF& ivf,
        const PairCells& cells,
        size_t list,
        size_t begin,
        size_t n,
        float* out);

} // namespace faiss_ext
