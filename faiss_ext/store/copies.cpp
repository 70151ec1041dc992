#include "faiss_ext/store/copies.h"

#include <algorithm>
#include <cmath>

#include <faiss/utils/distances.h>

#include "Backend.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

namespace {

constexpr size_t kCandidates = 8;
/// Weight of the direction term: lambda = 0.5 did best in RAIR's paper and on
/// the photo sets.
constexpr float kDirection = 0.5f;

void add_copy(
        Assignment& out,
        size_t row,
        idx_t list,
        const std::vector<int32_t>& lists_so_far,
        size_t width) {
    out.copied.push_back(uint32_t(row));
    out.copy_lists.push_back(list);
    for (size_t w = 0; w < width; w++) {
        out.copy_earlier.push_back(
                w < lists_so_far.size() ? lists_so_far[w] : -1);
    }
}

Assignment by_responsibility(GMMIndexRef index, size_t n, const float* x) {
    const size_t d = index.ivf.d, width = index.gmm.max_assign - 1;
    const size_t m = std::min(index.gmm.max_assign, index.ivf.nlist);
    std::vector<int64_t> component(n * m);
    std::vector<float> log_joint(n * m), log_prob(n), directions;
    if (is_ip(index.ivf)) { // the mixture lives on the unit sphere
        directions.assign(x, x + n * d);
        faiss::fvec_renorm_L2(d, n, directions.data());
        x = directions.data();
    }
    as_faiss_exception([&]() {
        const gmm::GaussianMixture mixture = index.gmm.mixture();
        gmm::Frame frame;
        frame.center.assign(d, 0);
        for (size_t c = 0; c < mixture.k; c++) {
            for (size_t j = 0; j < d; j++) {
                frame.center[j] += mixture.means[c * d + j] / mixture.k;
            }
        }
        const auto backend = gmm::make_cpu_backend();
        const auto source = gmm::memory_source(x, n, d);
        backend->set_data(*source, nullptr, frame);
        backend->set_model(frame.to_frame(mixture));
        gmm::Rows rows{x, gmm::ElementType::f32, n, d, d * sizeof(float)};
        backend->top_components(
                rows,
                m,
                component.data(),
                log_joint.data(),
                nullptr,
                log_prob.data());
    });
    Assignment out;
    for (size_t r = 0; r < n; r++) {
        out.homes.push_back(component[r * m]);
        std::vector<int32_t> lists = {int32_t(component[r * m])};
        for (size_t c = 1; c < m; c++) {
            const float responsibility =
                    std::exp(log_joint[r * m + c] - log_prob[r]);
            if (responsibility >= index.gmm.assign_threshold) {
                add_copy(out, r, component[r * m + c], lists, width);
                lists.push_back(int32_t(component[r * m + c]));
            }
        }
    }
    return out;
}

} // namespace

std::vector<float> Assignment::gather(size_t d, const float* x) const {
    std::vector<float> out(copied.size() * d);
    for (size_t c = 0; c < copied.size(); c++) {
        std::copy_n(x + copied[c] * d, d, &out[c * d]);
    }
    return out;
}

void Assignment::enter(GMMIndexRef index) const {
    auto& earlier = index.gmm.earlier_lists;
    const size_t width = index.gmm.max_assign - 1;
    earlier.resize(index.ivf.nlist);
    for (idx_t home : homes) {
        if (home >= 0) {
            earlier[home].insert(earlier[home].end(), width, -1);
        }
    }
    for (size_t c = 0; c < copied.size(); c++) {
        const auto from = copy_earlier.begin() + c * width;
        auto& list = earlier[copy_lists[c]];
        list.insert(list.end(), from, from + width);
    }
}

Assignment assign_copies(
        GMMIndexRef index, size_t n, const float* x, const idx_t* homes) {
    if (index.gmm.assign_threshold > 0) {
        return by_responsibility(index, n, x);
    }
    const size_t d = index.ivf.d, width = index.gmm.max_assign - 1;
    const size_t m = std::min(kCandidates, index.ivf.nlist);
    const float ratio2 = index.gmm.assign_ratio * index.gmm.assign_ratio;
    const std::vector<float> means = quantizer_means(index.ivf);
    std::vector<float> dis(n * m);
    std::vector<idx_t> near(n * m);
    index.ivf.quantizer->search(n, x, m, dis.data(), near.data());

    Assignment out;
    out.homes.assign(homes, homes + n);
    for (size_t r = 0; r < n; r++) {
        if (homes[r] < 0) {
            continue;
        }
        const float* mu_i = &means[homes[r] * d];
        const float d_i = faiss::fvec_L2sqr(x + r * d, mu_i, d);
        std::vector<std::pair<float, idx_t>> costs;
        for (size_t c = 0; c < m; c++) {
            const idx_t j = near[r * m + c];
            if (j < 0 || j == homes[r]) {
                continue;
            }
            const float* mu_j = &means[j * d];
            const float d_j = faiss::fvec_L2sqr(x + r * d, mu_j, d);
            if (d_j <= ratio2 * d_i) {
                // (x - mu_i).(x - mu_j) from the three squared sides
                const float dot =
                        0.5f * (d_i + d_j - faiss::fvec_L2sqr(mu_i, mu_j, d));
                costs.push_back({d_j + kDirection * dot, j});
            }
        }
        std::sort(costs.begin(), costs.end());
        std::vector<int32_t> lists = {int32_t(homes[r])};
        for (size_t c = 0; c < std::min(width, costs.size()); c++) {
            add_copy(out, r, costs[c].second, lists, width);
            lists.push_back(int32_t(costs[c].second));
        }
    }
    return out;
}

void check_max_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    FAISS_THROW_IF_NOT_MSG(
            gmm.max_assign > 0, "max_assign = 0, expected at least 1");
    size_t list = 0;
    while (list < ivf.nlist && ivf.invlists->list_size(list) == 0) {
        list++;
    }
    if (list == ivf.nlist) {
        return;
    }
    const size_t filled_with = gmm.earlier_lists.empty() ? 1
                                                         : 1 +
                    gmm.earlier_lists[list].size() /
                            ivf.invlists->list_size(list);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == filled_with,
            "max_assign = %zu, expected %zu, which the index was filled with",
            gmm.max_assign,
            filled_with);
}

void adopt_strays(GMMIndexRef index) {
    const IVFGMM& gmm = index.gmm;
    std::vector<size_t> known(index.ivf.nlist);
    bool strays = false;
    for (size_t i = 0; i < known.size(); i++) {
        const size_t size = index.ivf.invlists->list_size(i);
        known[i] = !gmm.cells.empty()
                ? gmm.cells.list_offsets(i)[gmm.cells.cells_per_list] +
                        gmm.cells.tail[i].size()
                : gmm.earlier_lists.empty()
                ? size
                : gmm.earlier_lists[i].size() / (gmm.max_assign - 1);
        strays |= known[i] < size;
    }
    if (strays) {
        append_foreign(index, known, {});
    }
}

void append_foreign(
        GMMIndexRef index,
        const std::vector<size_t>& old_size,
        const std::vector<std::vector<int32_t>>& earlier) {
    faiss::IndexIVF& ivf = index.ivf;
    IVFGMM& gmm = index.gmm;
    const std::vector<float> means = quantizer_means(ivf);
    if (gmm.max_assign > 1) {
        gmm.earlier_lists.resize(ivf.nlist);
    }
    std::vector<float> x;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t added = ivf.invlists->list_size(i) - old_size[i];
        if (added == 0) {
            continue;
        }
        if (!gmm.cells.empty()) {
            decode_list(ivf, i, x);
            const std::vector<idx_t> homes(added, idx_t(i));
            append_to_tails(
                    index, added, &x[old_size[i] * ivf.d], homes.data(), means);
            fold_tail(index, i);
        }
        if (gmm.max_assign > 1) {
            auto& own = gmm.earlier_lists[i];
            if (earlier.empty()) {
                own.insert(own.end(), added * (gmm.max_assign - 1), -1);
            } else {
                own.insert(own.end(), earlier[i].begin(), earlier[i].end());
            }
            sort_copies(index, i);
        }
        if (gmm.cells.empty() && gmm.max_assign == 1) {
            update_direct_map(index, i, old_size[i]);
        }
    }
}

} // namespace faiss_ext
