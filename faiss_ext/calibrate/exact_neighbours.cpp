#include <algorithm>
#include <cmath>
#include <limits>

#include <faiss/IndexIVFFlat.h>
#include <faiss/utils/distances.h>

#include "InnerProducts.h"
#include "ParallelFor.h"
#include "faiss_ext/calibrate/ground_truth.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/simd.h"
#include "faiss_ext/scan/VectorDecoder.h"

namespace faiss_ext {

namespace {

/// Vectors decoded at once.
constexpr size_t kBlock = 8192;
/// Queries that one thread compares with them at once.
constexpr size_t kQueries = 32;
/// Where groups are far apart, products confuse what is within: below so large
/// a share of the norms a distance may be wrong by that of them.
constexpr float kNearOfNorms = 1e-3f, kConfused = 1e-5f;

/// Distances from inner products, in place.
FAISS_EXT_SIMD_CLONES
void to_distances(
        size_t n,
        const float* __restrict norms,
        float offset,
        float scale,
        float* __restrict products) {
    for (size_t j = 0; j < n; j++) {
        products[j] = offset + norms[j] - scale * products[j];
    }
}

bool nearer(const GroundTruth::Near& p, const GroundTruth::Near& q) {
    return p.distance < q.distance;
}

/// The nearest of all vectors seen, in no order until the end.
class Nearest {
public:
    Nearest() = default;

    void look(const float* distances, const std::vector<idx_t>& locations) {
        for (size_t j = 0; j < locations.size(); j++) {
            if (distances[j] < bound) {
                best.push_back({locations[j], distances[j]});
                if (best.size() == 2 * width) {
                    cut();
                }
            }
        }
    }

    void cut() {
        if (best.size() > width) {
            std::nth_element(
                    best.begin(), best.begin() + width, best.end(), nearer);
            bound = best[width].distance;
            best.resize(width);
        }
    }

    size_t width = 0;
    std::vector<GroundTruth::Near> best;
    std::vector<idx_t> equal; ///< own queries: itself and those equal to it
    float bound = std::numeric_limits<float>::infinity(); ///< of those to come
};

/// The neighbours of all queries among vectors that are given one by one.
class BruteForce {
public:
    /// @param kept  neighbours to know of each query
    BruteForce(
            GMMIndexRef index,
            size_t nq,
            const float* xq,
            size_t kept,
            const std::vector<idx_t>& self)
            : ivf(index.ivf), ip(is_ip(ivf)), d(ivf.d), nq(nq), kept(kept),
              xq(xq), self(self), queries(xq, xq + nq * d), query_norms(nq),
              nearest(nq) {
        // About the centre, so that rounding is relative to the queries'
        // spread.
        if (!ip) {
            centre = coordinate_medians(nq, d, xq);
            subtract(nq, d, queries.data(), centre.data(), queries.data());
        }
        faiss::fvec_norms_L2sqr(query_norms.data(), queries.data(), d, nq);
        for (Nearest& n : nearest) {
            n.width = kept;
        }
        // without cells norm2 is not known, and only the order counts
        const float norm2 = index.gmm.cells.norm2;
        norm = norm2 > 0 ? std::sqrt(norm2) : 1;
    }

    void add(const float* vector, idx_t location) {
        x.insert(x.end(), vector, vector + d);
        where.push_back(location);
        if (where.size() == kBlock) {
            compare();
        }
    }

    GroundTruth finish();

private:
    /// Of distances 2 - 2 q.x / (|q| sqrt(norm2)), or |q|^2 - 2 q.x + |x|^2.
    float scale_of(size_t q) const {
        return !ip ? 2 : norm_scale(2 / norm, d, &queries[q * d]);
    }

    void compare();
    void compute_confused(size_t q, float* row) const;
    void hide_equals(size_t q, float* row);
    void finish(size_t q, const VectorDecoder& decode, GroundTruth& truth);

    const faiss::IndexIVF& ivf;
    const bool ip;
    const size_t d, nq, kept;
    const float* const xq;
    const std::vector<idx_t>& self;
    float norm;
    std::vector<float> centre, queries, query_norms;
    std::vector<Nearest> nearest;
    // of the block
    std::vector<float> x, norms;
    std::vector<idx_t> where;
};

void BruteForce::compare() {
    const size_t n = where.size();
    norms.assign(n, 0);
    if (!ip) {
        subtract(n, d, x.data(), centre.data(), x.data());
        faiss::fvec_norms_L2sqr(norms.data(), x.data(), d, n);
    }
    const gmm::PackedMeans packed(n, d, x.data());
    gmm::parallel_for((nq + kQueries - 1) / kQueries, [&](size_t b) {
        check_interrupt();
        const size_t q0 = b * kQueries;
        const size_t nb = std::min(kQueries, nq - q0);
        std::vector<float> dis(nb * n);
        gmm::inner_products(packed, nb, &queries[q0 * d], dis.data(), n);
        for (size_t q = q0; q < q0 + nb; q++) {
            float* row = &dis[(q - q0) * n];
            to_distances(
                    n, norms.data(), ip ? 2 : query_norms[q], scale_of(q), row);
            if (!ip) {
                compute_confused(q, row);
            }
            if (self[q] >= 0) {
                hide_equals(q, row);
            }
            nearest[q].look(row, where);
        }
    });
    x.clear();
    where.clear();
}

void BruteForce::compute_confused(size_t q, float* row) const {
    for (size_t j = 0; j < where.size(); j++) {
        const float size = norms[j] + query_norms[q];
        if (row[j] < kNearOfNorms * size &&
            row[j] - kConfused * size < nearest[q].bound) {
            row[j] = faiss::fvec_L2sqr(&queries[q * d], &x[j * d], d);
        }
    }
}

void BruteForce::hide_equals(size_t q, float* row) {
    const float* query = &queries[q * d];
    const float of_self = ip ? 2 - scale_of(q) * query_norms[q] : 0;
    const float rounding = kConfused * (1 + std::abs(of_self));
    std::vector<idx_t>& equal = nearest[q].equal;
    for (size_t j = 0; j < where.size(); j++) {
        if (where[j] == self[q] ||
            (std::abs(row[j] - of_self) <= rounding &&
             std::equal(query, query + d, &x[j * d]))) {
            if (equal.size() <= kept) { // more are too many
                equal.push_back(where[j]);
            }
            row[j] = std::numeric_limits<float>::infinity();
        }
    }
}

GroundTruth BruteForce::finish() {
    compare();
    GroundTruth truth(self);
    const VectorDecoder decode(ivf);
    gmm::parallel_for(nq, [&](size_t q) { finish(q, decode, truth); });
    return truth;
}

void BruteForce::finish(
        size_t q, const VectorDecoder& decode, GroundTruth& truth) {
    nearest[q].cut();
    auto& near = truth.near[q] = std::move(nearest[q].best);
    if (self[q] >= 0) {
        // New queries have no equals, unless most vectors are equal.
        std::vector<idx_t>& equal = nearest[q].equal;
        if (equal.size() > kept) {
            std::erase(equal, self[q]);
            near.clear();
            for (size_t j = 0; j < kept; j++) {
                near.push_back({equal[j], 0});
            }
            equal = {self[q]};
        }
        truth.hidden[q] = std::move(equal);
    }
    std::vector<float> vector(ip ? 0 : d);
    for (size_t j = 0; j < near.size() && !ip; j++) {
        decode(faiss::lo_listno(near[j].location),
               faiss::lo_offset(near[j].location),
               vector.data());
        near[j].distance = faiss::fvec_L2sqr(xq + q * d, vector.data(), d);
    }
    std::sort(near.begin(), near.end(), nearer);
    near.resize(std::min(near.size(), kept));
    // decoded about the list's mean, or summed from tables
    const bool rounded = !dynamic_cast<const faiss::IndexIVFFlat*>(&ivf);
    truth.rounding[q] = ip ? 2 * kRounding
            : rounded      ? kRounding * query_norms[q]
                           : 0;
}

} // namespace

GroundTruth exact_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self) {
    BruteForce search(index, nq, xq, kNearPerNeighbour * k + left_out, self);
    std::vector<float> x;
    for (size_t i = 0; i < index.ivf.nlist; i++) {
        decode_list(index.ivf, i, x);
        for (size_t j = 0; j < x.size() / index.ivf.d; j++) {
            if (is_primary(index.gmm, i, j)) {
                search.add(&x[j * index.ivf.d], faiss::lo_build(i, j));
            }
        }
    }
    return search.finish();
}

} // namespace faiss_ext
