#pragma once

#include <cstddef>
#include <cstdint>

#include "faiss_ext/PairCells.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/** The one place of a list that is free while a single entry goes, comes or
 * gets another cell, and the way that it takes through the cells.
 *
 * A step across a cell moves one entry, from the cell's other end. So does a
 * step across a closed ring (PairCells::n_rings), whose first and last cell
 * are the same but for their number. Within a ring the way leads back and
 * across it where that is shorter: half a ring at most.
 */
class FreePlace {
public:
    /// Of a list with cells.
    FreePlace(PairCells& cells, size_t list, ListEntries& entries) noexcept;

    /// About how many moves it takes from a cell to another, or to the end of
    /// the list (to = L).
    size_t moves(size_t from, size_t to) const noexcept;

    /// The place of an entry that goes.
    void leave(size_t entry) noexcept;

    /// The place behind the last entry, which must be there.
    void append() noexcept;

    /// To a cell, by the number that it had before. Returns the place that is
    /// free in it.
    size_t go_to(size_t cell) noexcept;

    /// Behind the last entry: the list may be made shorter by one.
    void go_to_end() noexcept;

private:
    struct Ring {
        size_t begin, end;
    };
    /// That of a cell; the cell alone where it is not closed.
    Ring ring_of(size_t cell) const noexcept;
    size_t step_right(size_t from, size_t to) const noexcept;
    size_t step_left(size_t from, size_t to) const noexcept;

    void fill() noexcept;
    void cross_right(Ring ring) noexcept;
    void cross_left(Ring ring) noexcept;
    void turn_right(Ring ring) noexcept;
    void turn_left(Ring ring) noexcept;
    void travel_right(size_t to) noexcept;
    void travel_left(size_t to) noexcept;

    ListEntries& entries;
    const size_t L, n_rings;
    uint32_t* const offset;
    int32_t* const partner;
    float* const gap;

    /// The free place is the last before cell `at` begins. In the offsets it is
    /// the end of the cell before, which has one entry less.
    size_t at = 0;
    size_t goal = 0; ///< number of the cell to go to, which turns change
    // what leave() was told, until fill()
    bool unfilled = false;
    size_t hole = 0;
};

} // namespace faiss_ext
