#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/store/list_storage.h"
#include "faiss_ext/store/payload.h"

namespace faiss_ext {

/// Entries that come into one list. Entry r has row rows[r] of codes and ids,
/// or row r where rows is nullptr.
struct Arrivals {
    size_t list;
    size_t n;
    const uint32_t* rows = nullptr;
    const uint8_t* codes = nullptr;
    const idx_t* ids = nullptr; ///< nullptr: the rows' numbers
    idx_t add_id = 0;           ///< added to either
    /// max_assign > 1: earlier_lists of each entry, or empty: all are primary
    std::vector<int32_t> earlier;
    /// Of each entry, whether the direct map names it, or empty: all; else it
    /// goes on naming another of the same id.
    std::vector<uint8_t> named;

    size_t row(size_t r) const {
        return rows ? rows[r] : r;
    }
    idx_t id(size_t r) const {
        return add_id + (ids ? ids[row(r)] : idx_t(row(r)));
    }

    /// Finds cell and code of each entry in an index with cells.
    void place(GMMIndexRef index, const float* x, const float* means);

    /// The same where those of each row are known, which must outlive *this.
    void place(const KnownCells& known);

    // What place() found.
    std::vector<uint16_t> cell;
    Payload payload;                  ///< of the entries,
    const uint8_t* records = nullptr; ///< or those of the rows
    float norm2 = 0; ///< METRIC_INNER_PRODUCT: the largest squared norm, or
                     ///< that of all rows
};

/** Changes to some lists, all or none: entries that go, then entries that
 * come.
 *
 * prepare() does all that can fail, and undoes it when it does; commit()
 * moves entries in places that are there. Every list that is touched must
 * have no untracked entries (adopt_strays). Each list in the cheaper of two
 * ways: entry by entry (FreePlace), or in one pass over its cells, which moves
 * no more than the list has entries.
 */
class Edit {
public:
    explicit Edit(GMMIndexRef index) : index(index) {}
    ~Edit();
    Edit(const Edit&) = delete;

    /// Fewer entries are not worth waking threads for.
    static constexpr size_t kParallelEntries = 256;

    /// Places (list, entry) of those that go, in any order, each once.
    std::vector<uint64_t> removed;
    /// At most one for each list, in any order.
    std::vector<Arrivals> arrivals;
    /// Those that go come back under their ids, which stay in the map.
    bool ids_stay = false;
    /// A direct map of type Array is made as long as that at least.
    size_t array_size = 0;

    void prepare();
    /// ntotal is left to the caller.
    void commit() noexcept;

private:
    struct ListEdit {
        size_t list;
        const uint64_t* removed = nullptr;
        const uint64_t* removed_end = nullptr;
        Arrivals* arrivals = nullptr;
        size_t known = 0;            ///< entries before
        size_t places = 0;           ///< of FAISS's list, before
        bool growing = false;        ///< prepare() may have lengthened it
        std::vector<uint32_t> order; ///< of several arrivals, by cell
        // one after the other: the arrivals' partners in that order, and a bit
        // for each place whose entry goes
        bool singly = false;
        std::vector<int32_t> partners;
        std::vector<uint64_t> leaving;
        // max_assign > 1: final place to entry, and their earlier lists
        std::vector<uint32_t> all_order;
        std::vector<int32_t> all_earlier;
        std::vector<uint8_t> spare;

        size_t n_removed() const {
            return removed_end - removed;
        }
        size_t n_new() const {
            return arrivals ? arrivals->n : 0;
        }
        size_t n_after() const {
            return known - n_removed() + n_new();
        }
        /// The p-th arrival by cell.
        size_t arrival(size_t p) const {
            return order.empty() ? p : order[p];
        }
    };

    void group_by_list();
    void sort_arrivals(ListEdit& edit) const;
    void sort_copies(ListEdit& edit) const;
    void choose_way(ListEdit& edit) const;
    void enter_ids();
    void grow(ListEdit& edit);
    void change(ListEdit& edit) noexcept;
    void change_singly(ListEdit& edit, ListEntries& entries) noexcept;
    void set(
            ListEntries& entries,
            const Arrivals& a,
            size_t r,
            size_t place) noexcept;
    void take_out(
            ListEdit& edit,
            ListEntries& entries,
            uint32_t* offset,
            size_t L) noexcept;
    void put_in(
            ListEdit& edit,
            ListEntries& entries,
            uint32_t* offset,
            size_t L) noexcept;

    GMMIndexRef index;
    std::vector<ListEdit> lists;
    std::vector<idx_t> entered; ///< ids that prepare() put in the Hashtable
    size_t array_before = 0;    ///< size of the Array
    bool first_copies = false;  ///< there was no earlier_lists before
    bool prepared = false, committed = false;
};

} // namespace faiss_ext
