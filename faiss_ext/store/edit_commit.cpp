// The second half of an Edit: moves, in places that are there.
#include <algorithm>
#include <bit>

#include "ParallelFor.h"
#include "faiss_ext/impl/simd.h"
#include "faiss_ext/store/FreePlace.h"
#include "faiss_ext/store/edit.h"

namespace faiss_ext {

namespace {

/// Cells whose ends are asked for before a change comes to them.
constexpr size_t kCellsAhead = 8;
/// The same of vectors that come.
constexpr size_t kArrivalsAhead = 6;

} // namespace

/// An entry that comes, where its place is free.
void Edit::set(
        ListEntries& entries,
        const Arrivals& a,
        size_t r,
        size_t place) noexcept {
    entries.set(place, a.id(r), a.codes + a.row(r) * index.ivf.code_size);
    const bool primary =
            a.earlier.empty() || a.earlier[r * (index.gmm.max_assign - 1)] < 0;
    if (primary && (a.named.empty() || a.named[r])) {
        entries.enter_in_map(place, a.id(r));
    }
    if (!index.gmm.cells.empty()) {
        if (a.records) {
            Payload::set(index.gmm.cells, a.list, place, a.records, a.row(r));
        } else {
            a.payload.set(index.gmm.cells, a.list, place, r);
        }
    }
}

/// An entry that goes and one that comes at a time.
void Edit::change_singly(ListEdit& edit, ListEntries& entries) noexcept {
    PairCells& cells = index.gmm.cells;
    FreePlace free(cells, edit.list, entries);
    const size_t n_removed = edit.n_removed(), n_new = edit.n_new();
    if (!edit.leaving.empty()) {
        entries.leaving = edit.leaving.data();
    }
    size_t word = 0; // of `leaving`, where the next is looked for
    for (size_t i = 0; i < std::max(n_removed, n_new); i++) {
        if (i < n_removed) {
            size_t entry = faiss::lo_offset(*edit.removed);
            if (entries.leaving) {
                while (edit.leaving[word] == 0) {
                    word = word + 1 < edit.leaving.size() ? word + 1 : 0;
                }
                const int bit = std::countr_zero(edit.leaving[word]);
                edit.leaving[word] ^= uint64_t(1) << bit;
                entry = word * 64 + bit;
            }
            free.leave(entry);
        } else {
            free.append();
        }
        if (i < n_new) {
            const size_t r = edit.arrival(i);
            size_t cell = edit.arrivals->cell[r];
            if (!edit.partners.empty() &&
                cells.partners(edit.list)[cell] != edit.partners[i]) {
                const int32_t* own = cells.partners(edit.list);
                cell = std::find(
                               own,
                               own + cells.cells_per_list,
                               edit.partners[i]) -
                        own; // its ring turned
            }
            set(entries, *edit.arrivals, r, free.go_to(cell));
        } else {
            free.go_to_end();
        }
    }
}

/** Of each cell the last entries fill the places of those that go; then its
 * last entries fill the places that the cells before it left free, which moves
 * the cell to the left. */
void Edit::take_out(
        ListEdit& edit,
        ListEntries& entries,
        uint32_t* offset,
        size_t L) noexcept {
    const uint64_t* r = edit.removed;
    size_t free = 0;
    for (size_t l = 0; l < L; l++) {
        const size_t begin = offset[l];
        size_t end = offset[l + 1];
        if (free > 0 && l + kCellsAhead < L && offset[l + kCellsAhead] > 0) {
            entries.prefetch(offset[l + kCellsAhead] - 1);
        }
        const uint64_t* r_end = r;
        while (r_end != edit.removed_end && faiss::lo_offset(*r_end) < end) {
            r_end++;
        }
        const size_t gone = r_end - r;
        for (const uint64_t* last = r_end; r != last; end--) {
            if (faiss::lo_offset(last[-1]) == end - 1) {
                last--;
            } else {
                entries.move(end - 1, faiss::lo_offset(*r++));
            }
        }
        r = r_end;
        const size_t moving = std::min(free, end - begin);
        for (size_t j = 0; j < moving; j++) {
            entries.move(end - 1 - j, begin - free + j);
        }
        offset[l] = uint32_t(begin - free);
        free += gone;
    }
    offset[L] -= uint32_t(free);
}

/** From the last cell to the first: its first entries move behind it, as many
 * as there will be new ones in the cells before; its own new ones follow. */
void Edit::put_in(
        ListEdit& edit,
        ListEntries& entries,
        uint32_t* offset,
        size_t L) noexcept {
    const Arrivals& a = *edit.arrivals;
    size_t before = a.n; // new entries of this cell and those before it
    for (size_t l = L; l-- > 0;) {
        if (before == 0) {
            break;
        }
        const size_t begin = offset[l], end = offset[l + 1];
        if (l >= kCellsAhead) {
            entries.prefetch(offset[l - kCellsAhead]);
        }
        const size_t new_end = before;
        while (before > 0 &&
               (a.cell.empty() || a.cell[edit.arrival(before - 1)] >= l)) {
            before--;
        }
        const size_t moving = std::min(before, end - begin);
        const size_t to = std::max(begin + before, end);
        entries.move_run(begin, moving, to);
        for (size_t j = before; j < new_end; j++) {
            if (j >= kArrivalsAhead) { // cells come from the last on
                const size_t next = edit.arrival(j - kArrivalsAhead);
                const size_t size = index.ivf.code_size;
                prefetch_bytes(a.codes + a.row(next) * size, size);
            }
            set(entries, a, edit.arrival(j), end + j);
        }
        offset[l + 1] = uint32_t(end + new_end);
    }
}

void Edit::change(ListEdit& edit) noexcept {
    PairCells& cells = index.gmm.cells;
    ListEntries entries(index, edit.list);
    uint32_t whole[2] = {0, uint32_t(edit.known)}; // a list is one cell
    uint32_t* offset = whole;
    size_t L = 1;
    if (!cells.empty()) {
        offset = cells.list_offsets(edit.list);
        L = cells.cells_per_list;
    }
    for (const uint64_t* r = edit.removed; r != edit.removed_end && !ids_stay;
         ++r) {
        entries.leave_map(faiss::lo_offset(*r));
    }
    if (index.gmm.max_assign > 1) {
        // those that stay keep their order, that of all_earlier
        const uint64_t* r = edit.removed;
        size_t to = 0;
        for (size_t j = 0; j < edit.known; j++) {
            if (r != edit.removed_end && faiss::lo_offset(*r) == j) {
                r++;
                continue;
            }
            if (to != j) {
                entries.move(j, to);
            }
            to++;
        }
        whole[1] = uint32_t(to);
    } else if (edit.n_removed() > 0 && !edit.singly) {
        take_out(edit, entries, offset, L);
    }
    if (edit.singly) {
        change_singly(edit, entries);
    } else if (edit.n_new() > 0) {
        put_in(edit, entries, offset, L);
    }
    if (index.gmm.max_assign > 1) {
        entries.permute(edit.all_order, edit.spare.data());
        index.gmm.earlier_lists[edit.list].swap(edit.all_earlier);
    }
    shorten_list(*index.ivf.invlists, edit.list, edit.n_after());
    if (!cells.empty()) {
        cells.codes.resize(edit.list, edit.n_after());
        if (edit.n_removed() > 0) {
            uint32_t& fitted = cells.fitted_size[edit.list];
            fitted = uint32_t(PairCells::known_left(
                    fitted, edit.known, edit.n_removed()));
        }
    }
}

void Edit::commit() noexcept {
    committed = true;
    for (const Arrivals& a : arrivals) {
        index.gmm.cells.norm2 = std::max(index.gmm.cells.norm2, a.norm2);
    }
    size_t entries = 0;
    for (const ListEdit& edit : lists) {
        entries += edit.n_new() + edit.n_removed();
    }
    gmm::parallel_for(
            lists.size(),
            [&](size_t i) { change(lists[i]); },
            entries >= kParallelEntries &&
                    index.ivf.direct_map.type != faiss::DirectMap::Hashtable);
}

} // namespace faiss_ext
