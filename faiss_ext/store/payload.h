#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/PairCells.h"

namespace faiss_ext {

/// What CellCodes keeps of each entry beside FAISS's lists, of entries that are
/// not in their places yet.
struct Payload {
    std::vector<uint8_t> records; ///< of some vectors, in their order
    double squared_error = 0;     ///< CellCodes::encode's sum

    /** The codes of vectors of one list whose cells are known.
     *
     * @param x      vectors; directions of them for METRIC_INNER_PRODUCT
     * @param rows   their n rows in x, or nullptr: the first n
     * @param norms  of the vectors where x are directions, or nullptr
     * @param cell   of each, size n
     */
    void encode(
            const PairCells& cells,
            size_t list,
            size_t n,
            const float* x,
            const uint32_t* rows,
            const float* norms,
            const uint16_t* cell) {
        records.resize(n * cells.codes.shape.entry_bytes());
        squared_error = cells.codes.encode(
                list,
                cells.a[list],
                cells.partners(list),
                n,
                x,
                rows,
                norms,
                cell,
                records.data());
    }

    /// Sets what is kept of an entry to that of a row.
    void set(PairCells& cells, size_t list, size_t entry, size_t row)
            const noexcept {
        set(cells, list, entry, records.data(), row);
    }
    static void set(
            PairCells& cells,
            size_t list,
            size_t entry,
            const uint8_t* records,
            size_t row) noexcept {
        cells.codes.set(
                list, entry, records + row * cells.codes.shape.entry_bytes());
    }
};

} // namespace faiss_ext
