#include "faiss_ext/store/edit.h"

#include <algorithm>
#include <numeric>

#include <faiss/invlists/OnDiskInvertedLists.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/FreePlace.h"
#include "faiss_ext/store/free_room.h"

namespace faiss_ext {

void Arrivals::place(const KnownCells& known) {
    cell.resize(n);
    for (size_t r = 0; r < n; r++) {
        cell[r] = known.cell[row(r)];
    }
    records = known.records.data();
    norm2 = known.norm2;
}

void Arrivals::place(GMMIndexRef index, const float* x, const float* means) {
    const size_t d = index.ivf.d;
    const PairCells& cells = index.gmm.cells;
    const bool ip = is_ip(index.ivf);
    std::vector<float> directions(ip ? n * d : 0), norms(ip ? n : 0);
    const uint32_t* x_rows = rows;
    if (ip) {
        for (size_t r = 0; r < n; r++) {
            std::copy_n(x + row(r) * d, d, &directions[r * d]);
        }
        norm2 = to_directions(n, d, directions.data(), norms.data());
        x = directions.data();
        x_rows = nullptr;
    }
    cell.resize(n);
    cells.assign(list, n, d, x, x_rows, means, cell.data());
    payload.encode(
            cells,
            list,
            n,
            x,
            x_rows,
            ip ? norms.data() : nullptr,
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
    lists.reserve(std::min(index.ivf.nlist, arrivals.size() + removed.size()));
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
    if (index.gmm.cells.empty() || edit.n_new() < 2) {
        return;
    }
    const size_t L = index.gmm.cells.cells_per_list;
    edit.order.resize(edit.n_new());
    const std::vector<uint16_t>& cell = edit.arrivals->cell;
    if (edit.n_new() > L / 4) {
        std::vector<uint32_t> next(L + 1);
        for (uint16_t l : cell) {
            next[l + 1]++;
        }
        std::partial_sum(next.begin(), next.end(), next.begin());
        for (size_t r = 0; r < cell.size(); r++) {
            edit.order[next[cell[r]]++] = uint32_t(r);
        }
        return;
    }
    std::iota(edit.order.begin(), edit.order.end(), 0);
    std::sort(
            edit.order.begin(), edit.order.end(), [&](uint32_t p, uint32_t q) {
                return cell[p] != cell[q] ? cell[p] < cell[q] : p < q;
            });
}

/// Whether a list changes entry by entry or in one pass: what moves less.
void Edit::choose_way(ListEdit& edit) const {
    PairCells& cells = index.gmm.cells;
    if (cells.empty()) {
        return;
    }
    const size_t L = cells.cells_per_list;
    const size_t n_removed = edit.n_removed(), n_new = edit.n_new();
    edit.singly = n_removed <= 1 && n_new <= 1;
    if (edit.singly || (n_removed == 0 && PairCells::n_rings(L) == 0)) {
        return; // what only comes crosses each cell once, or once for each
    }
    const uint32_t* offset = cells.list_offsets(edit.list);
    ListEntries entries(index, edit.list);
    const FreePlace free(cells, edit.list, entries);
    size_t one_pass = 0;
    for (size_t l = 0, gone = 0, come = 0; l < L; l++) {
        const size_t gone_before = gone, come_before = come;
        while (gone < n_removed &&
               faiss::lo_offset(edit.removed[gone]) < offset[l + 1]) {
            gone++;
        }
        while (come < n_new && edit.arrivals->cell[edit.arrival(come)] == l) {
            come++;
        }
        const size_t going = gone - gone_before;
        const size_t stay = offset[l + 1] - offset[l] - going;
        one_pass += going + std::min(gone_before, stay) +
                std::min(come_before, stay);
    }
    size_t one_by_one = 0;
    const size_t n = std::max(n_removed, n_new);
    for (size_t i = 0; i < n && one_by_one < one_pass; i++) {
        const size_t from = i < n_removed
                ? cells.cell_of(edit.list, faiss::lo_offset(edit.removed[i]))
                : L;
        const size_t to = i < n_new ? edit.arrivals->cell[edit.arrival(i)] : L;
        one_by_one += 1 + free.moves(from, to);
    }
    edit.singly = one_by_one < one_pass;
    if (!edit.singly) {
        return;
    }
    edit.partners.resize(n_new);
    for (size_t i = 0; i < n_new; i++) {
        edit.partners[i] =
                cells.partners(edit.list)[edit.arrivals->cell[edit.arrival(i)]];
    }
    if (n_removed > 0) {
        edit.leaving.resize((edit.known + n_new) / 64 + 1);
    }
    for (const uint64_t* r = edit.removed; r != edit.removed_end; ++r) {
        const size_t entry = faiss::lo_offset(*r);
        edit.leaving[entry / 64] |= uint64_t(1) << entry % 64;
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
        lengthen_list(*index.ivf.invlists, edit.list, n);
    }
    if (!index.gmm.cells.empty()) {
        index.gmm.cells.codes.resize(edit.list, n);
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
    index.gmm.filled_assign = index.gmm.max_assign;
    enter_ids();
    // A list on disk that grows maps the file of all of them anew.
    const bool grow_apart = dynamic_cast<const faiss::OnDiskInvertedLists*>(
                                    index.ivf.invlists) != nullptr;
    gmm::parallel_for(
            lists.size(),
            [&](size_t i) {
                sort_arrivals(lists[i]);
                if (copies) {
                    sort_copies(lists[i]);
                }
                choose_way(lists[i]);
                if (lists[i].n_new() > 0 && !grow_apart) {
                    grow(lists[i]);
                }
            },
            entries >= kParallelEntries);
    if (grow_apart) {
        mend_free_room_if_full(index.ivf.invlists);
    }
    for (ListEdit& edit : lists) {
        if (edit.n_new() > 0 && grow_apart) {
            grow(edit);
        }
    }
}

Edit::~Edit() {
    if (!prepared || committed) {
        return;
    }
    for (const ListEdit& edit : lists) {
        if (edit.growing) {
            shorten_list(*index.ivf.invlists, edit.list, edit.places);
            if (!index.gmm.cells.empty()) {
                index.gmm.cells.codes.resize(edit.list, edit.known);
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

} // namespace faiss_ext
