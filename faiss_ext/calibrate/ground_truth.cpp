#include "faiss_ext/calibrate/ground_truth.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <unordered_map>
#include <unordered_set>

#include <faiss/IndexIVFFlat.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>

#include "InnerProducts.h"
#include "ParallelFor.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/simd.h"
#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/scan/VectorDecoder.h"
#include "faiss_ext/scan/gmm_search.h"

namespace faiss_ext {

namespace {

/// For a query that is no other's equal, draws.
constexpr size_t kMostDraws = 4;
/// Equally near ones are kept beyond k.
constexpr size_t kNearPerNeighbour = 2;
/// Vectors decoded at once.
constexpr size_t kBlock = 8192;
/// Queries that one thread compares with them at once.
constexpr size_t kQueries = 32;
/// Of the norms: what rounding can do to a distance made of products.
constexpr float kRounding = 1e-6f;
/// What so large a share of the queries, and more than a few, are near to is a
/// copy of none of them, and what others will ask for.
constexpr double kHub = 0.05;
constexpr size_t kFewQueries = 5;
/// Where as many are as near as the first that is not left out, as among
/// vectors of small integers, any of them is found more easily than the nearest
/// of a query.
constexpr double kTies = 2;
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

} // namespace

GroundTruth exact_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self) {
    const faiss::IndexIVF& ivf = index.ivf;
    const bool ip = is_ip(ivf);
    const size_t d = ivf.d;
    // About the centre, so that rounding is relative to the queries' spread.
    std::vector<float> centre, queries(xq, xq + nq * d);
    if (!ip) {
        centre = coordinate_medians(nq, d, xq);
        subtract(nq, d, queries.data(), centre.data(), queries.data());
    }
    const bool own = nq > 0 && self[0] >= 0;
    std::vector<Nearest> nearest(nq);
    std::vector<float> query_norms(nq);
    faiss::fvec_norms_L2sqr(query_norms.data(), queries.data(), d, nq);
    const size_t kept = kNearPerNeighbour * k + left_out;
    for (Nearest& n : nearest) {
        n.width = kept;
    }
    // 2 - 2 q.x / (|q| sqrt(norm2)); without cells norm2 is not known, and
    // only the order counts
    const float norm2 = index.gmm.cells.norm2;
    const float norm = norm2 > 0 ? std::sqrt(norm2) : 1;
    auto scale_of = [&](size_t q) {
        return !ip ? 2 : norm_scale(2 / norm, d, &queries[q * d]);
    };

    std::vector<float> x, list_x, norms;
    std::vector<idx_t> where;
    auto compare = [&]() {
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
                const float* query = &queries[q * d];
                to_distances(
                        n,
                        norms.data(),
                        ip ? 2 : query_norms[q],
                        scale_of(q),
                        row);
                for (size_t j = 0; j < n && !ip; j++) {
                    const float size = norms[j] + query_norms[q];
                    if (row[j] < kNearOfNorms * size &&
                        row[j] - kConfused * size < nearest[q].bound) {
                        row[j] = faiss::fvec_L2sqr(query, &x[j * d], d);
                    }
                }
                if (own) {
                    const float of_self =
                            ip ? 2 - scale_of(q) * query_norms[q] : 0;
                    const float rounding = kConfused * (1 + std::abs(of_self));
                    for (size_t j = 0; j < n; j++) {
                        if (where[j] == self[q] ||
                            (std::abs(row[j] - of_self) <= rounding &&
                             std::equal(query, query + d, &x[j * d]))) {
                            std::vector<idx_t>& equal = nearest[q].equal;
                            if (equal.size() <= kept) { // more are too many
                                equal.push_back(where[j]);
                            }
                            row[j] = std::numeric_limits<float>::infinity();
                        }
                    }
                }
                nearest[q].look(row, where);
            }
        });
        x.clear();
        where.clear();
    };
    for (size_t i = 0; i < ivf.nlist; i++) {
        decode_list(ivf, i, list_x);
        for (size_t j = 0; j < list_x.size() / d; j++) {
            if (is_primary(index.gmm, i, j)) {
                where.push_back(faiss::lo_build(i, j));
                x.insert(x.end(), &list_x[j * d], &list_x[j * d] + d);
            }
            if (where.size() == kBlock) {
                compare();
            }
        }
    }
    compare();

    GroundTruth truth;
    truth.near.resize(nq);
    truth.rounding.resize(nq);
    truth.hidden.resize(own ? nq : 0);
    truth.distances_left_out.resize(truth.hidden.size());
    // decoded about the list's mean, or summed from tables
    const bool rounded = !dynamic_cast<const faiss::IndexIVFFlat*>(&ivf);
    const VectorDecoder decode(ivf);
    gmm::parallel_for(nq, [&](size_t q) {
        nearest[q].cut();
        auto& near = truth.near[q] = std::move(nearest[q].best);
        if (own) {
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
        truth.rounding[q] = ip ? 2 * kRounding
                : rounded      ? kRounding * query_norms[q]
                               : 0;
    });
    return truth;
}

GroundTruth code_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self) {
    const bool own = nq > 0 && self[0] >= 0;
    const size_t n = std::min(
            kNearPerNeighbour * k + left_out + 1, size_t(index.ivf.ntotal));
    std::vector<float> distances(nq * n);
    std::vector<idx_t> locations(nq * n);
    SearchPlan everything;
    everything.by_codes = true;
    everything.budget = double(index.ivf.ntotal);
    everything.bound = kSureBound;
    gmm_search(
            index.ivf,
            index.gmm,
            everything,
            nq,
            xq,
            n,
            distances.data(),
            locations.data(),
            true);
    GroundTruth truth;
    truth.near.resize(nq);
    truth.rounding.resize(nq);
    truth.hidden.resize(own ? nq : 0);
    truth.distances_left_out.resize(truth.hidden.size());
    // In the units of coarse distances: 2 - 2 q.x / (|q| sqrt(norm2)).
    const bool ip = is_ip(index.ivf);
    const size_t d = index.ivf.d;
    const float norm2 = index.gmm.cells.norm2;
    const float factor = norm2 > 0 ? 2 / std::sqrt(norm2) : 2;
    for (size_t q = 0; q < nq; q++) {
        if (own) {
            truth.hidden[q] = {self[q]};
        }
        const float scale = ip ? norm_scale(factor, d, xq + q * d) : 1;
        for (size_t j = q * n; j < (q + 1) * n; j++) {
            if (locations[j] >= 0 && locations[j] != self[q]) {
                const float scaled = scale * distances[j];
                truth.near[q].push_back(
                        {locations[j], ip ? 2 - scaled : scaled});
                truth.rounding[q] = std::max( // estimates can be negative
                        truth.rounding[q],
                        2 * kRounding * std::abs(scaled));
            }
        }
    }
    return truth;
}

bool GroundTruth::has_ties(size_t left_out) const {
    size_t queries = 0, equal = 0;
    for (size_t q = 0; q < near.size(); q++) {
        if (near[q].size() <= left_out || !(near[q][left_out].distance > 0)) {
            continue; // copies are no ties
        }
        const float there = near[q][left_out].distance;
        queries++;
        equal += std::count_if(
                near[q].begin(), near[q].end(), [&](const Near& each) {
                    return std::abs(each.distance - there) <=
                            kRounding * there + rounding[q];
                });
    }
    return equal > kTies * queries;
}

bool GroundTruth::hide(size_t left_out) {
    if (has_ties(left_out)) {
        return false;
    }
    const auto n_hidden = [&](size_t q) {
        return std::min(left_out, std::max<size_t>(near[q].size(), 1) - 1);
    };
    std::unordered_map<idx_t, size_t> times;
    for (size_t q = 0; q < near.size(); q++) {
        for (size_t j = 0; j < n_hidden(q); j++) {
            times[near[q][j].location]++;
        }
    }
    const size_t most = std::max(kFewQueries, size_t(kHub * near.size()));
    for (size_t q = 0; q < near.size(); q++) {
        const auto begin = near[q].begin();
        const auto left = std::stable_partition(
                begin, begin + n_hidden(q), [&](const Near& each) {
                    return times[each.location] <= most;
                });
        for (auto each = begin; each != left; ++each) {
            hidden[q].push_back(each->location);
            distances_left_out[q].push_back(each->distance);
        }
        std::sort(hidden[q].begin(), hidden[q].end());
        near[q].erase(begin, left);
    }
    return true;
}

std::vector<float> GroundTruth::nearer(size_t k) const {
    std::vector<float> out;
    for (size_t q = 0; q < hidden.size(); q++) {
        if (near[q].empty()) {
            out.push_back(1);
            continue;
        }
        const size_t last = std::min(k, near[q].size()) - 1;
        const float now = near[q][last].distance;
        std::vector<float> all = distances_left_out[q];
        for (size_t i = 0; i <= last; i++) {
            all.push_back(near[q][i].distance);
        }
        std::nth_element(all.begin(), all.begin() + last, all.end());
        const float then = all[last];
        out.push_back(now > 0 ? std::clamp(then / now, 0.0f, 1.0f) : 1);
    }
    return out;
}

std::vector<idx_t> GroundTruth::wanted(size_t q, size_t k) const {
    const std::vector<Near>& all = near[q];
    if (all.empty()) { // no distance is finite
        return {};
    }
    const size_t last = std::min(k, all.size()) - 1;
    const float farthest = all[last].distance * (1 + kRounding) + rounding[q];
    std::vector<idx_t> out;
    for (const Near& each : all) {
        if (each.distance > farthest) {
            break;
        }
        out.push_back(each.location);
    }
    std::sort(out.begin(), out.end());
    return out;
}

static void reconstruct_at(
        const faiss::IndexIVF& ivf, idx_t location, float* x) {
    ivf.reconstruct_from_offset(
            faiss::lo_listno(location), faiss::lo_offset(location), x);
}

void draw_queries(
        GMMIndexRef index,
        size_t nq,
        std::vector<float>& xq,
        std::vector<idx_t>& self) {
    const faiss::IndexIVF& ivf = index.ivf;
    std::vector<idx_t> all;
    for (size_t i = 0; i < ivf.nlist; i++) {
        for (size_t j = 0; j < ivf.invlists->list_size(i); j++) {
            if (is_primary(index.gmm, i, j)) {
                all.push_back(faiss::lo_build(i, j));
            }
        }
    }
    FAISS_THROW_IF_NOT_FMT(
            nq <= all.size(),
            "nq = %zu, expected at most the %zu vectors that are in lists",
            nq,
            all.size());
    std::mt19937_64 rng(ivf.cp.seed);
    // Of equal vectors one, as long as others turn up.
    const size_t most = std::min(all.size(), kMostDraws * nq);
    std::unordered_set<uint64_t> seen;
    self.clear();
    xq.resize(nq * ivf.d);
    std::vector<idx_t> again;
    for (size_t at = 0; at < most && self.size() < nq; at++) {
        std::swap(all[at], all[at + rng() % (all.size() - at)]);
        float* x = &xq[self.size() * ivf.d];
        reconstruct_at(ivf, all[at], x);
        Checksum row;
        row.add(x, ivf.d * sizeof(float));
        (seen.insert(row.value()).second ? self : again).push_back(all[at]);
    }
    for (size_t i = 0; self.size() < nq; i++) {
        reconstruct_at(ivf, again[i], &xq[self.size() * ivf.d]);
        self.push_back(again[i]);
    }
}

} // namespace faiss_ext
