// Which lists are partners, and in which order their cells lie.
#include <algorithm>
#include <cmath>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>

#include "ParallelFor.h"
#include "faiss_ext/PairCells.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

namespace {

/// Cells of a ring, at least.
constexpr size_t kRingCells = 32;

/** An order of partners in which each is followed by the nearest that is left,
 * from the one farthest from the first.
 *
 * @param v  size L * d
 */
std::vector<size_t> chain(size_t L, size_t d, const float* v) {
    std::vector<float> to(L);
    std::vector<bool> used(L);
    const CodeKernels& kernels = best_code_kernels();
    auto measure = [&](size_t from) {
        for (size_t l = 0; l < L; l++) {
            to[l] = kernels.squared_distance(v + from * d, v + l * d, d);
        }
    };
    measure(0);
    size_t at = std::max_element(to.begin(), to.end()) - to.begin();
    std::vector<size_t> out;
    for (;;) {
        out.push_back(at);
        used[at] = true;
        if (out.size() == L) {
            return out;
        }
        measure(at);
        size_t next = L;
        for (size_t l = 0; l < L; l++) {
            if (!used[l] && (next == L || to[l] < to[next])) {
                next = l;
            }
        }
        at = next;
    }
}

/// Up to so many means each is compared with every other.
constexpr size_t kComparedMeans = 16384;
/// Beyond, with those in so many of the sqrt(nlist) groups of means.
constexpr size_t kComparedGroups = 16;

/** The n nearest of the means to each of them, itself among them: size nlist *
 * n. Of many means nearly always: those in the groups nearest to it (k-means of
 * the means), time O(nlist^1.5 d). */
void nearest_means(
        size_t nlist,
        size_t d,
        const float* means,
        size_t n,
        float* distances,
        idx_t* ids) {
    faiss::IndexFlatL2 flat(d);
    if (nlist <= kComparedMeans) {
        flat.add(nlist, means);
        flat.search(nlist, means, n, distances, ids);
        return;
    }
    const size_t groups = size_t(std::sqrt(double(nlist)));
    faiss::IndexIVFFlat grouped(&flat, d, groups);
    grouped.cp.niter = 5;
    grouped.cp.max_points_per_centroid = 64;
    grouped.train(nlist, means);
    grouped.add(nlist, means);
    grouped.nprobe = kComparedGroups;
    grouped.search(nlist, means, n, distances, ids);
    grouped.nprobe = groups;
    for (size_t i = 0; i < nlist; i++) { // small groups can be too few
        if (ids[i * n + n - 1] < 0) {
            grouped.search(1, means + i * d, n, distances + i * n, ids + i * n);
        }
    }
}

} // namespace

size_t PairCells::n_rings(size_t L) {
    // half a ring and half of the rings to cross, on average
    return L / std::max(kRingCells, size_t(std::sqrt(2.0 * double(L))));
}

void PairCells::find_partners(
        size_t nlist_in, size_t d, const float* means, size_t L) {
    nlist = nlist_in;
    n_partners = L;
    partner.resize(nlist * L);
    gap.resize(nlist * L);

    // About their centre: FAISS rounds relative to the norms.
    const std::vector<float> centred =
            about(nlist, d, means, centre_of_means(nlist, d, means));
    const size_t rings = n_rings(L), n = L - rings;
    std::vector<float> dis(nlist * (n + 1));
    std::vector<idx_t> ids(nlist * (n + 1));
    nearest_means(nlist, d, centred.data(), n + 1, dis.data(), ids.data());
    const CodeKernels& kernels = best_code_kernels();
    gmm::parallel_for(nlist, [&](size_t i) {
        // i itself is not always the first: means can coincide
        std::vector<int32_t> nearest;
        std::vector<float> v(n * d);
        for (size_t l = 0; l <= n && nearest.size() < n; l++) {
            const idx_t j = ids[i * (n + 1) + l];
            if (j != idx_t(i)) {
                subtract(
                        1,
                        d,
                        means + j * d,
                        means + i * d,
                        &v[nearest.size() * d]);
                nearest.push_back(int32_t(j));
            }
        }
        const std::vector<size_t> order = chain(n, d, v.data());
        int32_t* own = &partner[i * L];
        auto next = order.begin();
        for (size_t r = 0, l = 0; l < L; l++) {
            const size_t begin = rings > 0 ? r * L / rings : 0;
            if (rings > 0 && l + 1 == (r + 1) * L / rings) {
                own[l] = own[begin];
                r++;
            } else {
                own[l] = nearest[*next++];
            }
            gap[i * L + l] = kernels.squared_distance(
                    means + i * d, means + own[l] * d, d);
        }
    });
}

bool PairCells::rings_are_closed() const {
    const size_t L = n_partners, rings = n_rings(L);
    for (size_t i = 0; i < nlist; i++) {
        for (size_t r = 0; r < rings; r++) {
            if (partners(i)[r * L / rings] !=
                partners(i)[(r + 1) * L / rings - 1]) {
                return false;
            }
        }
    }
    return true;
}

} // namespace faiss_ext
