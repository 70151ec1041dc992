#include "faiss_ext/store/edit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <faiss/utils/distances.h>

#include "Blas.h"
#include "ParallelFor.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/FreePlace.h"

namespace faiss_ext {

namespace {

/// Fewer entries are not worth waking threads for.
constexpr size_t kParallelEntries = 256;
/// Cells whose ends are asked for before a change comes to them.
constexpr size_t kCellsAhead = 8;

} // namespace

void Arrivals::place(GMMIndexRef index, const float* x, const float* means) {
    const size_t d = index.ivf.d;
    const PairCells& cells = index.gmm.cells;
    cell.resize(n);
    const uint32_t* own = rows.empty() ? nullptr : rows.data();
    if (!is_ip(index.ivf)) {
        payload.assign(cells, list, n, d, x, own, nullptr, means, cell.data());
        return;
    }
    std::vector<float> directions(n * d), norms(n);
    for (size_t r = 0; r < n; r++) {
        const float* v = x + row(r) * d;
        const float length2 = faiss::fvec_norm_L2sqr(v, d);
        norm2 = std::max(norm2, length2);
        norms[r] = std::sqrt(length2);
        std::copy_n(v, d, &directions[r * d]);
    }
    faiss::fvec_renorm_L2(d, n, directions.data());
    payload.assign(
            cells,
            list,
            n,
            d,
            directions.data(),
            nullptr,
            norms.data(),
            means,
            cell.data());
}

void Edit::group_by_list() {
    std::sort(removed.begin(), removed.end());
    const auto by_list = [](const Arrivals& p, const Arrivals& q) {
        return p.list < q.list;
    };
    if (!std::is_sorted(arrivals.begin(), arrivals.end(), by_list)) {
        std::sort(arrivals.begin(), arrivals.end(), by_list);
    }
    const uint64_t* r = removed.data();
    const uint64_t* const r_end = r + removed.size();
    auto a = arrivals.begin();
    while (r != r_end || a != arrivals.end()) {
        ListEdit edit;
        edit.list = a == arrivals.end() ? faiss::lo_listno(*r)
                : r == r_end            ? a->list
                             : std::min<size_t>(a->list, faiss::lo_listno(*r));
        edit.removed = r;
        while (r != r_end && faiss::lo_listno(*r) == edit.list) {
            r++;
        }
        edit.removed_end = r;
        if (a != arrivals.end() && a->list == edit.list) {
            edit.arrivals = &*a++;
        }
        edit.known = known_size(index, edit.list);
        edit.places = index.ivf.invlists->list_size(edit.list);
        lists.push_back(std::move(edit));
    }
}

void Edit::sort_arrivals(ListEdit& edit) const {
    edit.order.resize(edit.n_new());
    std::iota(edit.order.begin(), edit.order.end(), 0);
    if (!index.gmm.cells.empty() && edit.n_new() > 1) {
        const std::vector<uint16_t>& cell = edit.arrivals->cell;
        std::sort(
                edit.order.begin(),
                edit.order.end(),
                [&](uint32_t p, uint32_t q) {
                    return cell[p] != cell[q] ? cell[p] < cell[q] : p < q;
                });
    }
}

/// Entries of the same earlier lists together, primaries first.
void Edit::sort_copies(ListEdit& edit) const {
    const size_t width = index.gmm.max_assign - 1;
    std::vector<int32_t> rows;
    rows.reserve(edit.n_after() * width);
    if (edit.known > 0) {
        const std::vector<int32_t>& own = index.gmm.earlier_lists[edit.list];
        const uint64_t* r = edit.removed;
        for (size_t j = 0; j < edit.known; j++) {
            if (r != edit.removed_end && faiss::lo_offset(*r) == j) {
                r++;
            } else {
                rows.insert(
                        rows.end(), &own[j * width], &own[j * width] + width);
            }
        }
    }
    if (edit.arrivals && !edit.arrivals->earlier.empty()) {
        rows.insert(
                rows.end(),
                edit.arrivals->earlier.begin(),
                edit.arrivals->earlier.end());
    }
    rows.resize(edit.n_after() * width, -1);
    edit.all_order.resize(edit.n_after());
    std::iota(edit.all_order.begin(), edit.all_order.end(), 0);
    std::stable_sort(
            edit.all_order.begin(),
            edit.all_order.end(),
            [&](uint32_t p, uint32_t q) {
                return std::lexicographical_compare(
                        &rows[p * width],
                        &rows[p * width] + width,
                        &rows[q * width],
                        &rows[q * width] + width);
            });
    edit.all_earlier.resize(rows.size());
    for (size_t j = 0; j < edit.all_order.size(); j++) {
        std::copy_n(
                &rows[edit.all_order[j] * width],
                width,
                &edit.all_earlier[j * width]);
    }
    edit.spare.resize(index.ivf.code_size);
}

void Edit::enter_ids() {
    faiss::DirectMap& map = index.ivf.direct_map;
    if (map.no()) {
        return;
    }
    if (map.type == faiss::DirectMap::Array && map.array.size() < array_size) {
        map.array.resize(array_size, -1);
    }
    for (const Arrivals& a : arrivals) {
        for (size_t r = 0; r < a.n; r++) {
            const idx_t id = a.id(r);
            if (map.type == faiss::DirectMap::Array) {
                FAISS_THROW_IF_NOT_FMT(
                        id >= 0,
                        "id = %zd, expected at least 0 with a direct map of "
                        "type Array",
                        size_t(id));
                if (size_t(id) >= map.array.size()) {
                    map.array.resize(id + 1, -1);
                }
            } else if (!map_slot(map, id)) {
                entered.push_back(id);
                try {
                    map.hashtable.emplace(id, -1);
                } catch (...) {
                    entered.pop_back();
                    throw;
                }
            }
        }
    }
}

void Edit::grow(ListEdit& edit) {
    const size_t n = edit.known + edit.n_new();
    edit.growing = true;
    if (n > edit.places) {
        index.ivf.invlists->resize(edit.list, n);
    }
    if (!index.gmm.cells.empty()) {
        Payload::resize(index.gmm.cells, edit.list, n);
    }
}

void Edit::prepare() {
    group_by_list();
    check_writable(index.ivf);
    const bool copies = index.gmm.max_assign > 1;
    size_t entries = 0;
    for (const ListEdit& edit : lists) {
        check_writable(index.ivf, edit.list);
        entries += edit.n_new() + edit.n_removed() + (copies ? edit.known : 0);
    }
    array_before = index.ivf.direct_map.array.size();
    prepared = true; // from here on there is something to undo
    if (copies && index.gmm.earlier_lists.empty()) {
        first_copies = true;
        index.gmm.earlier_lists.resize(index.ivf.nlist);
    }
    enter_ids();
    gmm::parallel_for(
            lists.size(),
            [&](size_t i) {
                sort_arrivals(lists[i]);
                if (copies) {
                    sort_copies(lists[i]);
                }
                if (lists[i].n_new() > 0) {
                    grow(lists[i]);
                }
            },
            entries >= kParallelEntries);
}

Edit::~Edit() {
    if (!prepared || committed) {
        return;
    }
    for (const ListEdit& edit : lists) {
        if (edit.growing) {
            shorten_list(*index.ivf.invlists, edit.list, edit.places);
            if (!index.gmm.cells.empty()) {
                Payload::resize(index.gmm.cells, edit.list, edit.known);
            }
        }
    }
    for (idx_t id : entered) {
        index.ivf.direct_map.hashtable.erase(id);
    }
    index.ivf.direct_map.array.resize(array_before);
    if (first_copies) {
        index.gmm.earlier_lists.clear();
    }
}

/// An entry that comes, where its place is free.
void Edit::set(
        ListEntries& entries,
        const Arrivals& a,
        size_t r,
        size_t place) noexcept {
    entries.set(place, a.id(r), a.codes + a.row(r) * index.ivf.code_size);
    if (a.earlier.empty() || a.earlier[r * (index.gmm.max_assign - 1)] < 0) {
        entries.enter_in_map(place, a.id(r));
    }
    if (!index.gmm.cells.empty()) {
        a.payload.set(index.gmm.cells, a.list, place, r);
    }
}

/// At most one goes, and at most one comes.
void Edit::change_one(ListEdit& edit, ListEntries& entries) noexcept {
    FreePlace free(index.gmm.cells, edit.list, entries);
    if (edit.n_removed() > 0) {
        const size_t entry = faiss::lo_offset(*edit.removed);
        if (!ids_stay) {
            entries.leave_map(entry);
        }
        free.leave(entry);
    } else {
        free.append();
    }
    if (edit.n_new() > 0) {
        set(entries, *edit.arrivals, 0, free.go_to(edit.arrivals->cell[0]));
    } else {
        free.go_to_end();
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
    for (const uint64_t* p = r; p != edit.removed_end && !ids_stay; ++p) {
        entries.leave_map(faiss::lo_offset(*p));
    }
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
               (a.cell.empty() || a.cell[edit.order[before - 1]] >= l)) {
            before--;
        }
        const size_t moving = std::min(before, end - begin);
        const size_t to = std::max(begin + before, end);
        for (size_t j = 0; j < moving; j++) {
            entries.move(begin + j, to + j);
        }
        for (size_t j = before; j < new_end; j++) {
            set(entries, a, edit.order[j], end + j);
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
    const bool one =
            !cells.empty() && edit.n_removed() <= 1 && edit.n_new() <= 1;
    if (index.gmm.max_assign > 1) {
        // those that stay keep their order, that of all_earlier
        const uint64_t* r = edit.removed;
        for (const uint64_t* p = r; p != edit.removed_end && !ids_stay; ++p) {
            entries.leave_map(faiss::lo_offset(*p));
        }
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
    } else if (edit.n_removed() > 0 && !one) {
        take_out(edit, entries, offset, L);
    }
    if (one) {
        change_one(edit, entries);
    } else if (edit.n_new() > 0) {
        put_in(edit, entries, offset, L);
    }
    if (index.gmm.max_assign > 1) {
        entries.permute(edit.all_order, edit.spare.data());
        index.gmm.earlier_lists[edit.list].swap(edit.all_earlier);
    }
    shorten_list(*index.ivf.invlists, edit.list, edit.n_after());
    if (!cells.empty()) {
        Payload::resize(cells, edit.list, edit.n_after());
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
