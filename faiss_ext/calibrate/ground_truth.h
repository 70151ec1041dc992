#pragma once

#include <cstddef>
#include <vector>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Equally near ones are kept beyond k: so many times k are known.
constexpr size_t kNearPerNeighbour = 2;
/// Of the norms: what rounding can do to a distance made of products.
constexpr float kRounding = 1e-6f;

/// The nearest vectors of the calibration's queries.
struct GroundTruth {
    /// @param self  of each query, where it is in the index itself, or -1
    explicit GroundTruth(const std::vector<idx_t>& self);

    struct Near {
        idx_t location; ///< (list, offset) pair
        float distance; ///< in the units of a query's coarse distances
    };
    /// More than k of each query, nearest first.
    std::vector<std::vector<Near>> near;
    /// Of queries that are themselves in the index: they, vectors equal to them
    /// (but where so many are that nothing else is near) and those left out, as
    /// (list, offset) pairs, ascending. Empty if no query is.
    std::vector<std::vector<idx_t>> hidden;
    std::vector<std::vector<float>> distances_left_out; ///< ascending

    /// The k nearest of query q, and those as near as the last of them but for
    /// rounding; ascending.
    std::vector<idx_t> wanted(size_t q, size_t k) const;
    /// Of each query, what the k-th distance would be with the `left_out`
    /// nearest not hidden, over what it is: size of `hidden`.
    std::vector<float> nearer(size_t k) const;
    /// Hides of each query that is itself in the index the `left_out` nearest,
    /// but for what many queries are near to, and none where many are equally
    /// near. They are not among `near` any more. Returns whether there were
    /// any.
    bool hide(size_t left_out);
    bool has_ties(size_t left_out) const;
    /// What rounding can do to distances, over the distance and beside it.
    std::vector<float> rounding;
};

/** By brute force over blocks of decoded lists, O(ntotal d nq) time as matrix
 * products.
 *
 * A query that is itself in the index, at `self` (or -1), is hidden with those
 * equal to it. Enough is known of each for hide(left_out): vectors of one
 * picture or document have near-duplicates that a new query has not, and are
 * easier to find.
 */
GroundTruth exact_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self);

/// The same of an index that has codes and no vectors: the nearest by the
/// estimates of all codes.
GroundTruth code_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self);

/// Where the user's queries are in the index: a vector of the same code; or -1.
std::vector<idx_t> find_queries(GMMIndexRef index, size_t nq, const float* xq);

/// nq vectors of the index, drawn without replacement, and where they are;
/// equal ones only where four times as many draws do not give as many different
/// ones.
void draw_queries(
        GMMIndexRef index,
        size_t nq,
        std::vector<float>& xq,
        std::vector<idx_t>& self);

} // namespace faiss_ext
