#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "faiss_ext/CellCodes.h"

namespace faiss_ext {

/** Inverted lists divided into cells of pairs.
 *
 * A vector belongs to two components: its home i, the nearest mean (the list
 * that it is in), and its partner j, the next nearest among the L means nearest
 * to mu_i. Cell (i, j) has the mean
 *
 *     m_ij = (1 - a_i) mu_i + a_i mu_j
 *
 * whose squared distance to a query costs no inner product:
 *
 *     |q - m_ij|^2 = (1 - a_i) d_i + a_i d_j - a_i (1 - a_i) |mu_i - mu_j|^2
 *
 * with d_i, d_j the squared distances to the means. K components become a
 * mixture of K L for the price of K. (Relatives: grouping and pruning,
 * Baranchuk et al., ECCV 2018.)
 *
 * Plain arrays beside FAISS's inverted lists, whose entries are sorted by
 * cell. Memory O(nlist * L). Entries that FAISS's own functions appended to a
 * list behind the index's back belong to no cell until they are adopted
 * (store/strays.h).
 */
struct PairCells {
    size_t nlist = 0;
    size_t cells_per_list = 0; ///< L; 0: no cells, whole lists only
    size_t n_partners = 0;     ///< L, or what it was before undivide()

    /// list of partner l of i, size nlist * L: those in like directions have
    /// like numbers, so that a query's cells are side by side
    std::vector<int32_t> partner;
    std::vector<float> gap; ///< |mu_i - mu_j|^2, size nlist * L
    std::vector<float> a;   ///< size nlist, in [0, 1]
    /// cell l of list i is entries [offset[l], offset[l + 1]) of the list,
    /// offset = offsets + i * (L + 1); size nlist * (L + 1)
    std::vector<uint32_t> offsets;
    /// entries that a list's a was fitted to, size nlist; less those that were
    /// taken out since
    std::vector<uint32_t> fitted_size;
    CellCodes codes; ///< of the entries
    /// vectors that cells and calibration were made for; less those that were
    /// removed or replaced since. 0: not known
    size_t fitted_n = 0;
    /// METRIC_INNER_PRODUCT: the largest squared norm in the index, which
    /// turns inner products into distances: 2 - 2 q.x / (|q| sqrt(norm2))
    float norm2 = 0;

    bool empty() const {
        return cells_per_list == 0;
    }
    const uint32_t* list_offsets(size_t list) const {
        return offsets.data() + list * (cells_per_list + 1);
    }
    uint32_t* list_offsets(size_t list) {
        return offsets.data() + list * (cells_per_list + 1);
    }
    /// Entries of a list that are in its cells.
    size_t list_size(size_t list) const {
        return list_offsets(list)[cells_per_list];
    }

    const int32_t* partners(size_t list) const {
        return partner.data() + list * n_partners;
    }
    const float* gaps(size_t list) const {
        return gap.data() + list * n_partners;
    }

    /** The cells of a list lie in so many rings, of L / n_rings each: ring r
     * begins with cell r L / n_rings. The last cell of a ring has the partner
     * of the first, of whose cell it is the rest: so the entries of a ring can
     * be turned, one at a time, without moving the others (store/FreePlace.h).
     * None of fewer than 32 cells. In files of versions up to 0.2 the last
     * cell has a partner of its own: then a ring cannot be turned.
     */
    static size_t n_rings(size_t cells_per_list);

    /// L for lists of that many vectors on average: cells of 16 to 32.
    static size_t default_cells_per_list(double mean_list_size);

    /** Chooses the partners of each list, the L - n_rings nearest means, and
     * makes L cells of each, at most nlist - 1, which are empty; none if there
     * would be fewer than two. Time O(nlist^2 d); of more than 16,384 lists
     * O(nlist^1.5 d), and a few partners are not quite the nearest. Memory
     * O(nlist (d + L)). Changes nothing if it throws. There are no codes.
     *
     * @param means  size nlist * d
     */
    void init(
            size_t nlist, size_t d, const float* means, size_t cells_per_list);

    /// The same, but partners that are known already are kept if they are as
    /// many: O(nlist L).
    void divide(
            size_t nlist, size_t d, const float* means, size_t cells_per_list);

    /** The a of one list that suits these of its vectors best (of many, about
     * 256 to 511 of them, evenly), and the cell of each with it. Time O((n + L)
     * L d), memory O(n L).
     *
     * @param rows   of x that are meant, or nullptr: the first n
     * @param means  of all lists
     * @param out    cells, size n
     */
    float best_a(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* means,
            uint16_t* out) const;

    /** What another round of best_a() would make of a list's a, by some of its
     * vectors in the cells where they are. Time O(n d).
     *
     * @param x        of the list's vectors
     * @param rows     of x that are meant, or nullptr: the first n
     * @param entries  of the list that they are, ascending, size n
     */
    float next_a(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const uint32_t* entries,
            const float* means) const;

    /** Fits a of one list to its vectors, and says which cell each belongs to.
     * As best_a(). May be called for several lists at once. Changes nothing if
     * it throws.
     *
     * @param x  the list's vectors, size n * d
     */
    void fit_list(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const float* means,
            uint16_t* out);

    /** The cell of each of n vectors within their home list: that of the
     * nearest cell mean. Time O((n + L) L d).
     *
     * @param rows   of x that are meant, or nullptr: the first n
     * @param cells  output, size n
     */
    void assign(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* means,
            uint16_t* cells) const;

    /// Makes one cell of each list, its own mean: a is 0, and each list its own
    /// partner.
    void init_whole(size_t nlist);

    /// Forgets the entries, and keeps the cells.
    void clear_entries();

    /// Begin and end of cell l.
    std::pair<size_t, size_t> range(size_t list, size_t l) const {
        const uint32_t* o = list_offsets(list);
        return {o[l], o[l + 1]};
    }

    /// The cell that an entry is in, of those in cells.
    size_t cell_of(size_t list, size_t entry) const {
        const uint32_t* o = list_offsets(list);
        return std::upper_bound(o, o + cells_per_list, uint32_t(entry)) - o - 1;
    }

    /// Of n entries, `known` of which something was fitted to, so many were
    /// taken out: how many of those are left, on average.
    static size_t known_left(size_t known, size_t n, size_t out) noexcept {
        return size_t(double(known) * double(n - out) / double(n) + 0.5);
    }

    /// Of n vectors so many were removed or replaced.
    void forget(size_t n, size_t out) noexcept {
        if (fitted_n > 0 && out > 0) {
            fitted_n = std::max<size_t>(1, known_left(fitted_n, n, out));
        }
    }

    /// Forgets entries and cells, and keeps the partners.
    void undivide() noexcept;

private:
    void find_partners(size_t nlist, size_t d, const float* means, size_t L);
    bool rings_are_closed() const;

    /// v_l = mu_jl - mu_i, size L * d.
    std::vector<float> partner_offsets(
            size_t list, size_t d, const float* means) const;

    /// u.v_l (size n * L) with u = x - mu_i, for the given rows of x, or all if
    /// nullptr.
    void project(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* means,
            float* uv) const;
};

} // namespace faiss_ext
