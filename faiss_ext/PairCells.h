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
 * whose squared distance to a query q costs no inner product:
 *
 *     |q - m_ij|^2 = (1 - a_i) d_i + a_i d_j - a_i (1 - a_i) |mu_i - mu_j|^2
 *
 * with d_i, d_j the squared distances of q to the means. K components become a
 * mixture of K L for the price of K. (Relatives: grouping and pruning,
 * Baranchuk et al., ECCV 2018.)
 *
 * Plain arrays beside FAISS's inverted lists, whose entries are sorted by
 * cell. Memory O(nlist * L). Entries that FAISS's own functions appended to a
 * list belong to no cell until the index takes them in.
 */
struct PairCells {
    size_t nlist = 0;
    size_t cells_per_list = 0; ///< L; 0: no cells, whole lists only
    size_t n_partners = 0;     ///< L, or what it was before undivide()

    /// The list j of partner l of list i is partner[i * L + l]; size nlist * L.
    /// Partners in like directions have like numbers, so that a query's cells
    /// are side by side.
    std::vector<int32_t> partner;
    std::vector<float> gap; ///< |mu_i - mu_j|^2, size nlist * L
    std::vector<float> a;   ///< size nlist, in [0, 1]
    /// Cell l of list i is the entries [offset[l], offset[l + 1]) of the list,
    /// offset = offsets + i * (L + 1); size nlist * (L + 1).
    std::vector<uint32_t> offsets;
    /// Of the entries that each list's a was fitted to, those that are still
    /// there; size nlist.
    std::vector<uint32_t> fitted_size;
    CellCodes codes; ///< of the entries
    /// Of the vectors that cells and calibration were made for, those that are
    /// still there; 0: not known.
    size_t fitted_n = 0;
    /// METRIC_INNER_PRODUCT: the largest squared norm in the index, which
    /// turns inner products into distances: 2 - 2 q.x / (|q| sqrt(norm2)).
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

    /** Number of rings that the L cells of a list lie in: ring r is the cells
     * from r L / n_rings on. The last cell of a ring has the same partner as
     * the first, so that an entry that moves from one end of the ring to the
     * other leaves all others where they are (store/FreePlace.h). Fewer than 32
     * cells are in no ring. In files of versions up to 0.2 the last cell has a
     * partner of its own, and entries cannot move so.
     */
    static size_t n_rings(size_t cells_per_list);

    /// L for lists of that many vectors on average: cells of 16 to 32.
    static size_t default_cells_per_list(double mean_list_size);

    /** Makes L cells in each list, without entries and codes; the partners of a
     * list are the L - n_rings nearest means. No cells are made if L would be
     * below 2. Time O(nlist^2 d), or O(nlist^1.5 d) above 16,384 lists, where a
     * few partners are not quite the nearest. Memory O(nlist (d + L)). Changes
     * nothing if it throws.
     *
     * @param means           size nlist * d
     * @param cells_per_list  L, which is at most nlist - 1
     */
    void init(
            size_t nlist, size_t d, const float* means, size_t cells_per_list);

    /// The same in O(nlist L) where there are already as many partners, which
    /// are kept.
    void divide(
            size_t nlist, size_t d, const float* means, size_t cells_per_list);

    /** Fits the a of one list to n of its vectors (of many, to 256 to 511 of
     * them, evenly chosen), and finds the cell of each with it. Time O((n + L)
     * L d), memory O(n L).
     *
     * @param x      vectors of d values
     * @param rows   their n rows in x, or nullptr: the first n
     * @param means  of all lists, size nlist * d
     * @param out    cell of each vector, size n
     * @return       the a; that of the list stays as it is
     */
    float best_a(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* means,
            uint16_t* out) const;

    /** The a that one more round of best_a() would give, by n of the list's
     * vectors and the cells that they are in. Time O(n d).
     *
     * @param x        vectors of d values
     * @param rows     their n rows in x, or nullptr: the first n
     * @param entries  the entry of the list that each is, ascending, size n
     * @param means    of all lists, size nlist * d
     */
    float next_a(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const uint32_t* entries,
            const float* means) const;

    /** Sets the a of a list to best_a() of all its vectors. May be called for
     * several lists at once. Changes nothing if it throws.
     *
     * @param x      the list's vectors, size n * d
     * @param means  of all lists, size nlist * d
     * @param out    cell of each vector, size n
     */
    void fit_list(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const float* means,
            uint16_t* out);

    /** The cell of each of n vectors of a list: that of the nearest cell mean.
     * Time O((n + L) L d).
     *
     * @param x      vectors of d values
     * @param rows   their n rows in x, or nullptr: the first n
     * @param means  of all lists, size nlist * d
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

    /// Makes each list one cell about its own mean: a is 0, and the list its
    /// own partner.
    void init_whole(size_t nlist);

    /// Removes all entries and their codes, and keeps the cells.
    void clear_entries();

    /// First entry of cell l of a list, and the one behind its last.
    std::pair<size_t, size_t> range(size_t list, size_t l) const {
        const uint32_t* o = list_offsets(list);
        return {o[l], o[l + 1]};
    }

    /// The cell of an entry below list_size(list).
    size_t cell_of(size_t list, size_t entry) const {
        const uint32_t* o = list_offsets(list);
        return std::upper_bound(o, o + cells_per_list, uint32_t(entry)) - o - 1;
    }

    /// Something was fitted to `known` of n entries, and `out` of the n were
    /// removed: how many of the known ones are left, on average.
    static size_t known_left(size_t known, size_t n, size_t out) noexcept {
        return size_t(double(known) * double(n - out) / double(n) + 0.5);
    }

    /// Lowers fitted_n: `out` of the index's n vectors were removed or
    /// replaced.
    void forget(size_t n, size_t out) noexcept {
        if (fitted_n > 0 && out > 0) {
            fitted_n = std::max<size_t>(1, known_left(fitted_n, n, out));
        }
    }

    /// Removes entries and cells, and keeps the partners for divide().
    void undivide() noexcept;

private:
    void find_partners(size_t nlist, size_t d, const float* means, size_t L);
    bool rings_are_closed() const;

    /// v_l = mu_j - mu_i for partner j = l of list i, size L * d.
    std::vector<float> partner_offsets(
            size_t list, size_t d, const float* means) const;

    /// u.v_l with u = x - mu_i, size n * L; rows as in best_a().
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
