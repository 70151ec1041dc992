#include "faiss_ext/impl/truth.h"

#include <algorithm>
#include <random>
#include <utility>

#include <faiss/IndexFlat.h>

#include "faiss_ext/impl/coarse.h"

namespace faiss_ext {

Truth exact_neighbours(
        GMMIndexRef index,
        size_t nq,
        const float* xq,
        size_t k,
        const std::vector<idx_t>& self) {
    const faiss::IndexIVF& ivf = index.ivf;
    const bool ip = is_ip(ivf);
    const size_t k1 = k + 1, d = ivf.d;
    constexpr size_t kBlock = 16384;
    std::vector<float> dis(nq * k1), block_dis(nq * k1);
    std::vector<idx_t> locs(nq * k1, -1), block_ids(nq * k1);
    std::vector<float> x, list_x;
    std::vector<idx_t> where;

    auto flush = [&]() {
        if (where.empty()) {
            return;
        }
        faiss::IndexFlat flat(d, ivf.metric_type);
        flat.add(where.size(), x.data());
        flat.search(nq, xq, k1, block_dis.data(), block_ids.data());
        for (idx_t& id : block_ids) {
            id = id < 0 ? -1 : where[id];
        }
        for (size_t q = 0; q < nq; q++) {
            // both are sorted: merge in place of pushing into a heap
            std::vector<std::pair<float, idx_t>> all;
            for (size_t j = 0; j < k1; j++) {
                const size_t at = q * k1 + j;
                if (locs[at] >= 0) {
                    all.push_back({dis[at], locs[at]});
                }
                if (block_ids[at] >= 0) {
                    const float v = block_dis[at];
                    all.push_back({ip ? -v : v, block_ids[at]});
                }
            }
            std::sort(all.begin(), all.end());
            for (size_t j = 0; j < std::min(k1, all.size()); j++) {
                dis[q * k1 + j] = all[j].first;
                locs[q * k1 + j] = all[j].second;
            }
        }
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
        }
        if (where.size() >= kBlock) {
            flush();
        }
    }
    flush();

    Truth truth{k, {}, {}};
    for (size_t q = 0; q < nq; q++) {
        size_t n = 0;
        for (size_t j = 0; j < k1 && n < k; j++) {
            if (locs[q * k1 + j] != self[q]) {
                truth.locations.push_back(locs[q * k1 + j]);
                if (++n == k) {
                    truth.kth.push_back(dis[q * k1 + j]);
                }
            }
        }
    }
    return truth;
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
    std::mt19937_64 rng(ivf.cp.seed);
    for (size_t q = 0; q < nq; q++) {
        std::swap(all[q], all[q + rng() % (all.size() - q)]);
    }
    all.resize(nq);
    self = all;
    xq.resize(nq * ivf.d);
    for (size_t q = 0; q < nq; q++) {
        ivf.reconstruct_from_offset(
                faiss::lo_listno(self[q]),
                faiss::lo_offset(self[q]),
                &xq[q * ivf.d]);
    }
}

} // namespace faiss_ext
