#include "faiss_ext/coarse/QueryCoarse.h"

#include <algorithm>
#include <limits>

#include <faiss/utils/distances.h>

#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

namespace {

/// Lists asked of the graph at first, then four times as many up to the
/// second number or a sixteenth of all, and then all that are left.
constexpr size_t kFirstAsked = 256;
constexpr size_t kMostAsked = 1024;
constexpr size_t kShareAsked = 16;

} // namespace

QueryCoarse::QueryCoarse(
        const faiss::IndexIVF& ivf_in, const faiss::SearchParameters* params)
        : ivf(ivf_in),
          means(hnsw_of(ivf_in) ? hnsw_of(ivf_in)->get_xb() : nullptr),
          graph_params(params) {
    if (by_graph()) {
        own.resize(ivf.nlist);
        known.resize(ivf.nlist);
        given.resize(ivf.nlist);
    }
}

void QueryCoarse::start(const float* all, float least_in, float largest_in) {
    distances = all;
    least = least_in;
    largest = largest_in;
    query = nullptr;
    n_asked = 0;
}

void QueryCoarse::start_graph(const float* q) {
    distances = own.data();
    least = std::numeric_limits<float>::infinity();
    query = q;
    n_asked = 0;
    stamp++;
    scale = norm_scale(2, ivf.d, q);
}

bool QueryCoarse::more_lists(std::vector<uint32_t>& lists) {
    if (n_asked >= ivf.nlist) {
        return false;
    }
    lists.clear();
    bool in_order = true;
    n_asked = n_asked == 0 ? kFirstAsked : 4 * n_asked;
    if (n_asked > std::max(kMostAsked, ivf.nlist / kShareAsked) ||
        n_asked >= ivf.nlist) {
        n_asked = ivf.nlist;
        in_order = false;
        for (size_t i = 0; i < ivf.nlist; i++) {
            if (given[i] != stamp) {
                lists.push_back(uint32_t(i));
            }
        }
    } else {
        found.resize(n_asked);
        found_distances.resize(n_asked);
        ivf.quantizer->search(
                1,
                query,
                n_asked,
                found_distances.data(),
                found.data(),
                graph_params);
        for (idx_t i : found) {
            if (i >= 0 && given[i] != stamp) {
                given[i] = stamp;
                lists.push_back(uint32_t(i));
            }
        }
    }
    need(reinterpret_cast<const int32_t*>(lists.data()), lists.size());
    if (!in_order) {
        std::sort(lists.begin(), lists.end(), [&](uint32_t p, uint32_t q) {
            return own[p] != own[q] ? own[p] < own[q] : p < q;
        });
    }
    // a graph that is not connected can find nothing new
    return !lists.empty() || more_lists(lists);
}

void QueryCoarse::need(const int32_t* lists, size_t n) {
    if (!query) {
        return;
    }
    for (size_t l = 0; l < n; l++) {
        const size_t i = lists[l];
        if (known[i] != stamp) {
            known[i] = stamp;
            const float* mean = means + i * ivf.d;
            own[i] = is_ip(ivf)
                    ? std::max(
                              2 -
                                      scale *
                                              faiss::fvec_inner_product(
                                                      query, mean, ivf.d),
                              0.0f)
                    : faiss::fvec_L2sqr(query, mean, ivf.d);
            least = std::min(least, own[i]);
        }
    }
}

} // namespace faiss_ext
