#pragma once

#include <cstddef>
#include <string>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/// What comes first in a search.
enum class ProbeOrder {
    /// `codes` where the index has them and they pay, else `distance`.
    calibrated,
    /// Whole lists by distance to their mean: what k-means IVF does.
    distance,
    /// Whole lists by log pi_k + log N(x; mu_k, Sigma_k), the textbook
    /// posterior. It answers which component made the query and not which
    /// list holds its neighbours, and loses recall on real data; it is here
    /// to be compared with.
    log_likelihood,
    /// Whole lists by distance, with the scale-free posterior d_k^-v to stop
    /// by (the unknown local scale integrated out of the Gaussian).
    scale_free,
    /// Vectors of the nearest cells by the distance that their code estimates:
    /// see CellCodes.h.
    codes,
    // What orders of earlier versions are now.
    sketch = codes,
    cell_distance = codes,
    cell_posterior = codes,
};

/// "distance", ...; from_string throws FaissException naming the string. It
/// takes "sketch", "cell_distance" and "cell_posterior", which were orders
/// once, for "codes".
const char* to_string(ProbeOrder order);
ProbeOrder probe_order_from_string(const std::string& name);

/** From a query's K log-likelihoods and distances to the lists to probe.
 *
 * The one place that orders whole lists; cells are ordered by CellSelector.
 */
struct ProbePolicy {
    ProbeOrder order = ProbeOrder::distance;
    /// Stops once this share of the posterior is covered, in (0, 1]; 1: never.
    /// For log_likelihood and scale_free; the others have no posterior over
    /// whole lists and give all nprobe of them.
    float probe_mass = 1;
    /// v of the scale-free posterior d_k^-v over squared distances.
    float exponent = 2;

    /// Throws FaissException for a field out of its range, naming it.
    void validate() const;

    /** Ordered, -1-padded probes of one query.
     *
     * Time O(nlist + nprobe log nprobe). Ties go to the list with the smaller
     * number. Cell orders and `calibrated` give the order
     * `distance`. At least one list is
     * given, whatever the mass; a list whose score is NaN never is, so that a
     * query with a NaN gets -1 only.
     *
     * @param nlist      number of components
     * @param distances  squared L2 to each mean, or with similarity the inner
     *                   products, size nlist. scale_free takes the latter for
     *                   those of unit vectors (d = 2 - 2 s)
     * @param log_joint  log pi_k + log N, size nlist; read for log_likelihood
     * @param similarity larger `distances` are better
     * @param nprobe     size of the outputs, at most nlist are filled
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
