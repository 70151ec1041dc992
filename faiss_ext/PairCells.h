#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

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
 * the end of their list, the tail; each belongs to a cell too, and is scanned
 * with its home.
 */
struct PairCells {
    size_t nlist = 0;
    size_t cells_per_list = 0; ///< L; 0: no cells, whole lists only

    std::vector<int32_t> partner; ///< list of partner l of i, size nlist * L
    std::vector<float> gap;       ///< |mu_i - mu_j|^2, size nlist * L
    std::vector<float> a;         ///< size nlist, in [0, 1]
    /// mean |x - m_ij|^2 of the vectors of a cell, shrunk towards its list's,
    /// size nlist * L
    std::vector<float> variance;
    /// cell l of list i is entries [offset[l], offset[l + 1]) of the list,
    /// offset = offsets + i * (L + 1); size nlist * (L + 1)
    std::vector<uint32_t> offsets;
    /// cells of the entries from offset[L] on, nlist vectors
    std::vector<std::vector<uint16_t>> tail;

    bool empty() const {
        return cells_per_list == 0;
    }
    const uint32_t* list_offsets(size_t list) const {
        return offsets.data() + list * (cells_per_list + 1);
    }

    /// L for lists of that many vectors on average: cells of 5 to 10.
    static size_t default_cells_per_list(double mean_list_size);

    /** Chooses partners and fits a and variance on a sample.
     *
     * Time O(nlist^2 d + 3 n L d); lists are taken to be empty.
     *
     * @param means  size nlist * d
     * @param homes  list of each vector of the sample, size n (-1: left out)
     */
    void fit(
            size_t nlist,
            size_t d,
            const float* means,
            size_t cells_per_list,
            size_t n,
            const float* x,
            const idx_t* homes);

    /** The cell of each vector within its home list: nearest cell mean.
     *
     * Time O(n L d).
     *
     * @param cells  output, size n; 0 where the home is -1
     */
    void assign(
            size_t n,
            size_t d,
            const float* x,
            const idx_t* homes,
            const float* means,
            uint16_t* cells) const;

    /** |q - m_il|^2 of all cells of a list, in O(L).
     *
     * @param distances   squared distances of the query to all means, size
     *                    nlist
     * @param similarity  distances are affine in the inner product, and the
     *                    gap term falls away
     * @param out         size L
     */
    void score(size_t list, const float* distances, bool similarity, float* out)
            const;

    /// Entries in all tails.
    size_t tail_size() const;
    void clear_entries();
};

} // namespace faiss_ext
