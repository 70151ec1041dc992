#include "faiss_ext/calibrate/ground_truth.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <unordered_map>
#include <unordered_set>

#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/VectorDecoder.h"
#include "faiss_ext/scan/gmm_search.h"

namespace faiss_ext {

namespace {

/// For a query that is no other's equal, draws.
constexpr size_t kMostDraws = 4;
/// What so large a share of the queries, and more than a few, are near to is a
/// copy of none of them, and what others will ask for.
constexpr double kHub = 0.05;
constexpr size_t kFewQueries = 5;
/// Where as many are as near as the first that is not left out, as among
/// vectors of small integers, any of them is found more easily than the nearest
/// of a query.
constexpr double kTies = 2;

} // namespace

GroundTruth::GroundTruth(const std::vector<idx_t>& self)
        : near(self.size()), rounding(self.size()) {
    if (std::any_of(
                self.begin(), self.end(), [](idx_t at) { return at >= 0; })) {
        hidden.resize(self.size());
        distances_left_out.resize(self.size());
    }
}

GroundTruth code_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        size_t left_out,
        const std::vector<idx_t>& self) {
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
    GroundTruth truth(self);
    // In the units of coarse distances: 2 - 2 q.x / (|q| sqrt(norm2)).
    const bool ip = is_ip(index.ivf);
    const size_t d = index.ivf.d;
    const float norm2 = index.gmm.cells.norm2;
    const float factor = norm2 > 0 ? 2 / std::sqrt(norm2) : 2;
    for (size_t q = 0; q < nq; q++) {
        if (self[q] >= 0) {
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
    const float kth = all[last].distance; // of inner products below 0, maybe
    const float farthest = kth + kRounding * std::abs(kth) + rounding[q];
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

/// Where a list has the vector's code about the mean of a cell, or -1.
static idx_t find_record(
        const PairCells& cells, size_t list, size_t d, const float* vector) {
    std::vector<float> x(vector, vector + d);
    float norm = 1;
    if (cells.codes.similarity) {
        norm = std::sqrt(faiss::fvec_norm_L2sqr(vector, d));
        faiss::fvec_renorm_L2(d, 1, x.data());
    }
    const size_t bytes = cells.codes.shape.entry_bytes();
    std::vector<uint8_t> record(bytes), of_entry(bytes);
    const uint32_t* offset = cells.list_offsets(list);
    for (uint16_t cell = 0; cell < cells.cells_per_list; cell++) {
        if (offset[cell] == offset[cell + 1]) {
            continue;
        }
        cells.codes.encode(
                list,
                cells.a[list],
                cells.partners(list),
                1,
                x.data(),
                nullptr,
                &norm,
                &cell,
                record.data());
        for (size_t j = offset[cell]; j < offset[cell + 1]; j++) {
            cells.codes.get(list, j, of_entry.data());
            if (of_entry == record) {
                return faiss::lo_build(list, j);
            }
        }
    }
    return -1;
}

std::vector<idx_t> find_queries(GMMIndexRef index, size_t nq, const float* xq) {
    const faiss::IndexIVF& ivf = index.ivf;
    SearchPlan plan;
    plan.nprobe = 1;
    std::vector<idx_t> self(nq, -1), list(nq);
    std::vector<float> coarse(nq);
    probe(ivf, index.gmm, plan, nq, xq, coarse.data(), list.data());
    const size_t size = ivf.code_size;
    std::vector<uint8_t> codes(nq * size);
    if (has_vectors(ivf)) {
        ivf.encode_vectors(nq, xq, list.data(), codes.data());
    }
    gmm::parallel_for(nq, [&](size_t q) {
        if (list[q] < 0) {
            return;
        }
        if (!has_vectors(ivf)) {
            self[q] = find_record(
                    index.gmm.cells, list[q], ivf.d, xq + q * ivf.d);
            return;
        }
        const size_t n = ivf.invlists->list_size(list[q]);
        faiss::InvertedLists::ScopedCodes of_list(ivf.invlists, list[q]);
        for (size_t j = 0; j < n && self[q] < 0; j++) {
            if (!memcmp(of_list.get() + j * size, &codes[q * size], size) &&
                is_primary(index.gmm, list[q], j)) {
                self[q] = faiss::lo_build(list[q], j);
            }
        }
    });
    return self;
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
