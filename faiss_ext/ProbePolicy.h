#pragma once

#include <cstddef>
#include <string>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/// What a search looks at first.
enum class ProbeOrder {
    /// `codes` where the index has them and they pay, else `distance`.
    calibrated,
    /// Whole lists by distance to their mean: what k-means IVF does.
    distance,
    /// Whole lists by log pi_k + log N(x; mu_k, Sigma_k), the textbook
    /// posterior. It says which component made the query and not which list
    /// holds its neighbours, and loses recall on real data: for comparisons.
    log_likelihood,
    /// Whole lists by distance, with the scale-free posterior d_k^-v to stop
    /// by (the unknown local scale integrated out of the Gaussian).
    scale_free,
    /// Vectors of the nearest cells, by the distances that their codes estimate
    /// (CellCodes.h).
    codes,
    // Names of earlier versions.
    sketch = codes,
    cell_distance = codes,
    cell_posterior = codes,
};

/// The name of the enumerator: "distance", ...
const char* to_string(ProbeOrder order);
/// The order of that name, or of an earlier version's name. Throws
/// FaissException naming the string if there is none.
ProbeOrder probe_order_from_string(const std::string& name);

/// Chooses the whole lists that a query probes, and their order, from its
/// distances to the means or from its log-likelihoods.
struct ProbePolicy {
    ProbeOrder order = ProbeOrder::distance;
    /// In (0, 1]. With log_likelihood and scale_free, lists end once this share
    /// of the posterior is covered; other orders have no posterior over whole
    /// lists and give nprobe of them.
    float probe_mass = 1;
    /// v of the scale-free posterior d_k^-v of squared distances d_k; positive.
    float exponent = 2;

    /// Throws FaissException for a field out of its range, naming it.
    void validate() const;

    /** The lists that one query probes.
     *
     * Time O(nlist + nprobe log nprobe). Ties go to the list with the smaller
     * number. `codes` and `calibrated` give the order `distance`. At least one
     * list is given, whatever probe_mass is; lists whose score is NaN are left
     * out, so that a query with a NaN gets -1 only.
     *
     * @param nlist      number of components
     * @param distances  squared L2 distance to each mean, or with similarity
     *                   the inner product, size nlist; scale_free takes inner
     *                   products for those of unit vectors (d = 2 - 2 s)
     * @param log_joint  log pi_k + log N, size nlist; read for log_likelihood
     * @param similarity whether larger `distances` are better
     * @param nprobe     lists wanted, size of the outputs
     * @param out_keys   lists in the order in which to probe them, then -1
     * @param out_dis    their entries of `distances`
     */
    void select(
            size_t nlist,
            const float* distances,
            const float* log_joint,
            bool similarity,
            size_t nprobe,
            idx_t* out_keys,
            float* out_dis) const;
};

} // namespace faiss_ext
