#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/PairCells.h"

namespace faiss_ext {

/// What CellCodes keeps of each entry beside FAISS's lists, of entries that are
/// not in their places yet.
struct Payload {
    /// What is kept of some vectors, in their order.
    std::vector<uint8_t> records;
    double squared_error = 0; ///< CellCodes::encode's sum

    /** Computes cells and codes of vectors of one list, as PairCells::assign.
     *
     * @param norms  the vectors' norms where x are directions of them
     *               (METRIC_INNER_PRODUCT), or nullptr
     */
    void assign(
            const PairCells& cells,
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* norms,
            const float* means,
            uint16_t* out);

    /// The same of a whole list, whose cells are fitted to it.
    void fit(
            PairCells& cells,
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const float* norms,
            const float* means,
            uint16_t* out);

    /// The codes of vectors whose cells are known.
    void encode(
            const PairCells& cells,
            size_t list,
            size_t n,
            const float* x,
            const uint32_t* rows,
            const float* norms,
            const uint16_t* cell);

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
            size_t row) noexcept;
};

} // namespace faiss_ext
