#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** A vector as an affine combination of means,
 *
 *    x ~ mu_i + sum_t w_t (mu_jt - mu_i),
 *
 * with its home i, kTerms of the home's partners j_t chosen by orthogonal
 * matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993), and weights from
 * -2 to 127/64 in steps of 1/64. A query knows its distances to all means, and
 * with them
 *
 *    |q - x|^2 ~ d_i + sum_t w_t (d_jt - d_i) + constant
 *
 * without looking at x: the constant is |p|^2 - sum_t w_t |mu_jt - mu_i|^2 for
 * the combination p about mu_i, and a quarter of |x - mu_i - p|^2: weight 1
 * would be unbiased, but neighbours are in the tail of that error, and their
 * estimates too high.
 *
 * METRIC_INNER_PRODUCT: the sketch of the vector's direction, and its norm in
 * the place of the constant.
 */
struct Sketch {
    static constexpr size_t kTerms = 12;
    uint8_t partner[kTerms];
    int8_t weight[kTerms];
    float constant;
};

/** Inverted lists divided into cells of pairs.
 *
 * A vector belongs to the two components most responsible for it: its home i
 * (the list that it is in) and its partner j, one of the L means nearest to
 * mu_i. Cell (i, j) has the mean
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
 * cell. Memory O(nlist * L). Entries added since they were last sorted are at
 * the end of their list, the tail: one more cell, number L, whose mean is
 * mu_i, until they are folded into their own.
 */
struct PairCells {
    size_t nlist = 0;
    size_t cells_per_list = 0; ///< L; 0: no cells, whole lists only
    size_t n_partners = 0;     ///< P >= L: nearest means known of each list

    std::vector<int32_t> partner; ///< list of partner l of i, size nlist * P
    std::vector<float> gap;       ///< |mu_i - mu_j|^2, size nlist * P
    std::vector<float> a;         ///< size nlist, in [0, 1]
    /// mean |x - m_ij|^2 of the vectors of a cell, shrunk towards its list's;
    /// the last of each list is that of the tail, about mu_i itself; size
    /// nlist * (L + 1)
    std::vector<float> variance;
    /// cell l of list i is entries [offset[l], offset[l + 1]) of the list,
    /// offset = offsets + i * (L + 1); size nlist * (L + 1)
    std::vector<uint32_t> offsets;
    /// cells of the entries from offset[L] on, nlist vectors
    std::vector<std::vector<uint16_t>> tail;
    /// One for each entry of each list, or empty: nlist vectors
    std::vector<std::vector<Sketch>> sketches;
    size_t fitted_n = 0; ///< entries in the index when the cells were chosen
    /// METRIC_INNER_PRODUCT: the largest squared norm in the index, which
    /// turns inner products into distances: 2 - 2 q.x / (|q| sqrt(norm2))
    float norm2 = 0;

    bool empty() const {
        return cells_per_list == 0;
    }
    const uint32_t* list_offsets(size_t list) const {
        return offsets.data() + list * (cells_per_list + 1);
    }

    const int32_t* partners(size_t list) const {
        return partner.data() + list * n_partners;
    }

    /// L for lists of that many vectors on average: cells of 5 to 10.
    static size_t default_cells_per_list(double mean_list_size);

    /** Chooses the partners of each list: the P = max(L, 64) nearest means, at
     * most 256 and nlist - 1; cells are empty then. Time O(nlist^2 d).
     *
     * @param means  size nlist * d
     */
    void init(
            size_t nlist, size_t d, const float* means, size_t cells_per_list);

    /** Fits a and the variances of one list to its vectors, and says which
     * cell each belongs to. Time O((n + P) P d), memory O(n P). May be called
     * for several lists at once.
     *
     * @param x         the list's vectors, size n * d
     * @param means     of all lists
     * @param out       cells, size n
     * @param sketches  output, size n, or nullptr
     */
    void fit_list(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const float* means,
            uint16_t* out,
            Sketch* sketches = nullptr);

    /** The cell of each vector within its home list, nearest cell mean, and
     * its sketch. Time O((n + homes P) P d).
     *
     * @param cells     output, size n; 0 where the home is -1
     * @param sketches  output, size n, or nullptr
     */
    void assign(
            size_t n,
            size_t d,
            const float* x,
            const idx_t* homes,
            const float* means,
            uint16_t* cells,
            Sketch* sketches = nullptr) const;

    /// What estimate() needs to know of a query and a list: a number for each
    /// partner.
    size_t table_size() const {
        return n_partners;
    }
    void make_table(size_t list, const float* distances, float* table) const;

    /** Estimates |q - x|^2 of consecutive entries of a list from their
     * sketches, in kTerms multiplications each.
     *
     * @param own         squared distance of the query to the list's mean
     * @param similarity  as in score
     * @param table       make_table's, of this query and list
     */
    void estimate(
            size_t list,
            size_t begin,
            size_t end,
            float own,
            bool similarity,
            const float* table,
            float* out) const;

    /// Fetches what estimate() will read.
    void prefetch_sketches(size_t list, size_t begin, size_t end) const;

    /** |q - m_il|^2 of all cells of a list, the tail's last, in O(L).
     *
     * @param distances   squared distances of the query to all means, size
     *                    nlist
     * @param similarity  distances are affine in the inner product, and the
     *                    gap term falls away
     * @param out         size L + 1
     */
    void score(size_t list, const float* distances, bool similarity, float* out)
            const;

    /// Begin and end of cell l (or the tail, l = L) in a list of that size.
    std::pair<size_t, size_t> range(
            size_t list, size_t l, size_t list_size) const {
        const uint32_t* o = list_offsets(list);
        return {o[l], l == cells_per_list ? list_size : o[l + 1]};
    }

    /// Empties all cells, tails and sketches.
    void clear_entries();

private:
    /// v_l = mu_jl - mu_i, size P * d.
    std::vector<float> partner_offsets(
            size_t list, size_t d, const float* means) const;

    /// u.u and u.v_l (size n * P) with u = x - mu_i, for the given rows of x,
    /// or all if nullptr.
    void project(
            size_t list,
            size_t n,
            size_t d,
            const float* x,
            const uint32_t* rows,
            const float* means,
            const std::vector<float>& v,
            float* uu,
            float* uv) const;

    void sketch(
            size_t list,
            size_t n,
            size_t d,
            const float* uu,
            const float* uv,
            const std::vector<float>& v,
            Sketch* out) const;
};

} // namespace faiss_ext
