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

/// @param homes  or nullptr: the most responsible components
Assignment by_responsibility(
        GMMIndexRef index, size_t n, const float* x, const idx_t* homes) {
    const size_t d = index.ivf.d, width = index.gmm.max_assign - 1;
    const size_t m = std::min(index.gmm.max_assign, index.ivf.nlist);
    std::vector<int64_t> component(n * m);
    std::vector<double> log_joint(n * m);
    std::vector<float> log_prob(n), directions;
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
        const idx_t home = homes ? homes[r] : component[r * m];
        out.homes.push_back(home);
        std::vector<int32_t> lists = {int32_t(home)};
        for (size_t c = 0; c < m && home >= 0 && lists.size() <= width; c++) {
            const idx_t other = component[r * m + c];
            const float responsibility =
                    std::exp(log_joint[r * m + c] - log_prob[r]);
            if (other != home && responsibility >= index.gmm.assign_threshold) {
                add_copy(out, r, other, lists, width);
                lists.push_back(int32_t(other));
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

Assignment assign_copies(
        GMMIndexRef index,
        size_t n,
        const float* x,
        const idx_t* homes,
        bool given) {
    if (index.gmm.assign_threshold > 0) {
        return by_responsibility(index, n, x, given ? homes : nullptr);
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

void check_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    check_max_assign(ivf, gmm);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == 1 ||
                    (gmm.assign_ratio > 0 && std::isfinite(gmm.assign_ratio)),
            "assign_ratio = %g, expected a positive value",
            gmm.assign_ratio);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == 1 ||
                    (gmm.assign_threshold >= 0 && gmm.assign_threshold <= 1),
            "assign_threshold = %g, expected 0 to 1",
            gmm.assign_threshold);
}

bool has_copies(const IVFGMM& gmm) {
    return std::any_of(
            gmm.earlier_lists.begin(),
            gmm.earlier_lists.end(),
            [](const auto& of_list) { return !of_list.empty(); });
}

void check_max_assign(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign > 0 && gmm.max_assign <= ivf.nlist,
            "max_assign = %zu, expected at least 1 and at most nlist = %zu",
            gmm.max_assign,
            ivf.nlist);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == 1 || has_vectors(ivf),
            "max_assign = %zu, expected 1 in an index of codes alone",
            gmm.max_assign);
    const bool copies = has_copies(gmm);
    // ntotal counts those in no list, too
    const bool others = !copies && gmm.max_assign > 1 && ivf.ntotal > 0 &&
            ivf.invlists->compute_ntotal() > 0;
    const size_t filled_with = copies ? gmm.filled_assign
            : others                  ? 1
                                      : gmm.max_assign;
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == filled_with,
            "max_assign = %zu, expected %zu, which the index was filled with "
            "(or optimize(), if stock FAISS put entries in)",
            gmm.max_assign,
            filled_with);
}

} // namespace faiss_ext
