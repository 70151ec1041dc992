#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/PairCells.h"

namespace faiss_ext {

/** What PairCells keeps of each entry beside FAISS's lists, one for each place
 * of a list: its code. The only code that knows what that is. */
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

    /// Makes a list's as long as that; changes nothing if it throws, and never
    /// does if the list gets shorter.
    static void resize(PairCells& cells, size_t list, size_t n);

    /// Asks for what move() will read and write of a place, soon.
    static void prefetch(
            const PairCells& cells, size_t list, size_t entry) noexcept;

    static void move(
            PairCells& cells, size_t list, size_t from, size_t to) noexcept;

    /// The same of n entries side by side, to places that are none of theirs.
    static void move_run(
            PairCells& cells,
            size_t list,
            size_t from,
            size_t n,
            size_t to) noexcept;

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
