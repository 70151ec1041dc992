#include "faiss_ext/store/FreePlace.h"

#include <algorithm>

#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

FreePlace::FreePlace(
        PairCells& cells, size_t list, ListEntries& entries_in) noexcept
        : entries(entries_in), L(cells.cells_per_list),
          n_rings(PairCells::n_rings(L)), offset(cells.list_offsets(list)),
          partner(&cells.partner[list * L]), gap(&cells.gap[list * L]) {}

FreePlace::Ring FreePlace::ring_of(size_t cell) const noexcept {
    if (n_rings > 0) {
        const size_t r = ((cell + 1) * n_rings - 1) / L;
        const Ring ring = {r * L / n_rings, (r + 1) * L / n_rings};
        if (partner[ring.begin] == partner[ring.end - 1]) {
            return ring;
        }
    }
    return {cell, cell + 1};
}

size_t FreePlace::moves(size_t from, size_t to) const noexcept {
    if (from > to) {
        return moves(to, from);
    }
    const Ring f = ring_of(from), t = to < L ? ring_of(to) : Ring{L, L};
    if (f.begin == t.begin) {
        return std::min(to - from, f.end - f.begin + 1 - (to - from));
    }
    size_t out = std::min(f.end - 1 - from, from + 2 - f.begin);
    if (t.begin < L) {
        out += std::min(to - t.begin, t.end - to) + 1;
    }
    for (size_t at = f.end; at < t.begin; at = ring_of(at).end) {
        out++;
    }
    return out;
}

void FreePlace::leave(size_t entry) noexcept {
    entries.prefetch(entry);
    prefetch_bytes(offset, (L + 1) * sizeof(*offset));
    for (size_t r = 0; r < n_rings; r++) {
        prefetch_bytes(partner + r * L / n_rings, sizeof(*partner));
    }
    at = std::upper_bound(offset, offset + L + 1, uint32_t(entry)) - offset;
    entries.prefetch(offset[at] - 1);
    hole = entry;
    unfilled = true;
}

void FreePlace::append() noexcept {
    at = L;
    offset[L]++;
    unfilled = false;
}

/// Has the cell's last entry fill the hole.
void FreePlace::fill() noexcept {
    if (unfilled && hole != offset[at] - 1) {
        entries.move(offset[at] - 1, hole);
    }
    unfilled = false;
}

/// The last cell, which is empty, becomes the rest of the one before.
void FreePlace::turn_right(Ring ring) noexcept {
    const auto [a, b] = ring;
    std::copy_backward(offset + a, offset + b - 1, offset + b);
    std::copy_backward(partner + a, partner + b - 1, partner + b);
    std::copy_backward(gap + a, gap + b - 1, gap + b);
    partner[a] = partner[b - 1];
    gap[a] = gap[b - 1];
    if (goal >= a && goal < b) {
        goal = goal + 1 < b ? goal + 1 : a + 1;
    }
}

/// The first cell, which is empty, becomes the rest of the next.
void FreePlace::turn_left(Ring ring) noexcept {
    const auto [a, b] = ring;
    std::copy(offset + a + 1, offset + b, offset + a);
    std::copy(partner + a + 1, partner + b, partner + a);
    std::copy(gap + a + 1, gap + b, gap + a);
    offset[b - 1] = offset[b] - 1;
    partner[b - 1] = partner[a];
    gap[b - 1] = gap[a];
    if (goal >= a && goal < b) {
        goal = goal > a ? goal - 1 : b - 2;
    }
}

/// From before its first cell to behind its last.
void FreePlace::cross_right(Ring ring) noexcept {
    const auto [a, b] = ring;
    if (offset[a] == offset[b]) {
        for (size_t l = a; l < b; l++) {
            offset[l]--;
        }
    } else {
        while (offset[b - 1] == offset[b]) {
            turn_right(ring);
        }
        offset[a]--;
        entries.move(offset[b] - 1, offset[a]);
    }
    at = b;
}

/// From behind its last cell to before its first.
void FreePlace::cross_left(Ring ring) noexcept {
    const auto [a, b] = ring;
    const size_t end = offset[b] - 1;
    if (offset[a] == end) {
        for (size_t l = a; l < b; l++) {
            offset[l]++;
        }
    } else {
        while (a + 1 < b && offset[a] == offset[a + 1]) {
            turn_left(ring);
        }
        entries.move(offset[a], end);
        offset[a]++;
    }
    at = a;
}

/// Where a step ends: behind a ring, or a cell where that is too far.
size_t FreePlace::step_right(size_t from, size_t to) const noexcept {
    const Ring ring = ring_of(from);
    return ring.begin == from && ring.end <= to ? ring.end : from + 1;
}

size_t FreePlace::step_left(size_t from, size_t to) const noexcept {
    const Ring ring = ring_of(from - 1);
    return ring.end == from && ring.begin >= to ? ring.begin : from - 1;
}

void FreePlace::travel_right(size_t to) noexcept {
    for (size_t from = at; from < to;) { // each move would wait for memory
        from = step_right(from, to);
        if (offset[from] > 0) {
            entries.prefetch(offset[from] - 1);
        }
    }
    fill();
    while (at < to) {
        cross_right({at, step_right(at, to)});
    }
}

void FreePlace::travel_left(size_t to) noexcept {
    for (size_t from = at; from > to;) {
        from = step_left(from, to);
        entries.prefetch(offset[from]);
    }
    fill();
    while (at > to) {
        cross_left({step_left(at, to), at});
    }
}

size_t FreePlace::go_to(size_t cell) noexcept {
    if (unfilled && partner[cell] == partner[at - 1]) {
        return hole;
    }
    const Ring from = ring_of(at - 1), to = ring_of(cell);
    // the first cell of a ring and its last are one: to the nearer
    if (at >= to.end && cell == to.begin) {
        cell = to.end - 1;
    } else if (at <= to.begin && cell == to.end - 1) {
        cell = to.begin;
    }
    goal = cell;
    if (at > cell) {
        if (at > to.end) {
            if (from.end - at + 1 < at - from.begin) {
                travel_right(from.end);
            }
            travel_left(to.end);
        }
        if (at == to.end && cell - to.begin + 1 < to.end - cell - 1) {
            travel_left(to.begin);
            travel_right(goal);
        } else {
            travel_left(cell + 1);
        }
    } else {
        if (at < to.begin) {
            if (at - from.begin + 1 < from.end - at) {
                travel_left(from.begin);
            }
            travel_right(to.begin);
        }
        if (at == to.begin && to.end - cell < cell - to.begin) {
            travel_right(to.end);
            travel_left(goal + 1);
        } else {
            travel_right(cell);
        }
    }
    return at == goal ? --offset[goal] : offset[at] - 1;
}

void FreePlace::go_to_end() noexcept {
    const Ring from = ring_of(at - 1);
    if (at - from.begin + 1 < from.end - at) {
        travel_left(from.begin);
    }
    travel_right(L);
    offset[L]--;
}

} // namespace faiss_ext
