#pragma once

#include <cstddef>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/io/fields.h"
#include "faiss_ext/store/list_storage.h"

/// What trailers of version 2 hold and the index does not any more.
namespace faiss_ext {

/// An order; those of version 2 that there are no more are `codes`.
ProbeOrder read_order(FieldReader& ar);

/// Whether an index kept sketches, in the place of `code_bits`, which is left
/// at its default.
void skip_sketched(FieldReader& ar);

/// Cells with more partners, with variances, tails and sketches: partners and
/// the cells of entries are kept. What was in a tail is in no cell.
void read_cells_of_version2(
        FieldReader& ar,
        PairCells& cells,
        const faiss::InvertedLists& lists,
        size_t nlist);

/// Keeps what a calibration was asked for, and that there was one.
void read_calibration_of_version2(
        FieldReader& ar, Calibration& calibration, size_t d);

/// Makes the codes from the vectors, decoded where need be, and calibrates an
/// index that was calibrated.
void complete_version2(GMMIndexRef index);

} // namespace faiss_ext
