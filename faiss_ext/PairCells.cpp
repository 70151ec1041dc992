#include "faiss_ext/PairCells.h"

#include <algorithm>
#include <cmath>

#include <faiss/IndexFlat.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// |x - means[rows[l]]|^2 for l < n.
FAISS_EXT_SIMD_CLONES
void squared_distances_to(
        const float* __restrict x,
        const float* __restrict means,
        size_t d,
        const int32_t* __restrict rows,
        size_t n,
        float* __restrict out) {
    for (size_t l = 0; l < n; l++) {
        const float* m = means + size_t(rows[l]) * d;
        float sum = 0;
        for (size_t j = 0; j < d; j++) {
            const float t = x[j] - m[j];
            sum += t * t;
        }
        out[l] = sum;
    }
}

FAISS_EXT_SIMD_CLONES
void score_cells(
        const float* __restrict distances,
        const int32_t* __restrict partner,
        const float* __restrict gap,
        float a,
        float own,
        float gap_weight,
        size_t n,
        float* __restrict out) {
    for (size_t l = 0; l < n; l++) {
        const float s = own + a * distances[partner[l]] - gap_weight * gap[l];
        out[l] = s > 0 ? s : 0;
    }
}

/// Vectors shrink a cell's variance towards its list's as so many would.
constexpr double kPriorCount = 4;
constexpr int kFitRounds = 3;
/// Cells are uint16_t.
constexpr size_t kMaxCells = 65535;

} // namespace

size_t PairCells::default_cells_per_list(double mean_list_size) {
    size_t cells = 1;
    while (cells < 1024 && mean_list_size / (2 * cells) >= 5) {
        cells *= 2;
    }
    return cells;
}

void PairCells::init(
        size_t nlist_in, size_t d, const float* means, size_t cells_in) {
    *this = PairCells();
    const size_t L = std::min({cells_in, nlist_in - 1, kMaxCells});
    if (L <= 1) {
        return;
    }
    nlist = nlist_in;
    cells_per_list = L;
    partner.resize(nlist * L);
    gap.resize(nlist * L);
    a.assign(nlist, 0);
    variance.assign(nlist * (L + 1), 0);

    faiss::IndexFlatL2 flat(d);
    flat.add(nlist, means);
    std::vector<float> dis(nlist * (L + 1));
    std::vector<idx_t> ids(nlist * (L + 1));
    flat.search(nlist, means, L + 1, dis.data(), ids.data());
    for (size_t i = 0; i < nlist; i++) {
        // i itself is not always the first: means can coincide
        size_t out = 0;
        for (size_t l = 0; l <= L && out < L; l++) {
            const size_t at = i * (L + 1) + l;
            if (ids[at] != idx_t(i)) {
                partner[i * L + out] = int32_t(ids[at]);
                gap[i * L + out] = std::max(dis[at], 0.0f);
                out++;
            }
        }
    }
    clear_entries();
}

void PairCells::fit_list(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const float* means,
        uint16_t* out) {
    const size_t L = cells_per_list;
    const float* g = &gap[list * L];

    // With u = x - mu_i and v = mu_j - mu_i: |x - m_ij|^2 = |u|^2 - 2 a u.v +
    // a^2 v.v, so one pass over the vectors serves all rounds.
    std::vector<float> uv(n * L), uu(n);
    {
        std::vector<float> dis(L);
        const int32_t own = int32_t(list);
        for (size_t r = 0; r < n; r++) {
            squared_distances_to(x + r * d, means, d, &own, 1, &uu[r]);
            squared_distances_to(
                    x + r * d, means, d, &partner[list * L], L, dis.data());
            for (size_t l = 0; l < L; l++) {
                uv[r * L + l] = 0.5f * (uu[r] + g[l] - dis[l]);
            }
        }
    }

    // Alternates the cell of each vector and the a that minimises the sum of
    // |x - m_ij|^2, which is sum u.v / sum v.v.
    float al = 0.3f;
    for (int round = 0;; round++) {
        double sum_uv = 0, sum_vv = 0;
        for (size_t r = 0; r < n; r++) {
            float best = HUGE_VALF;
            for (size_t l = 0; l < L; l++) {
                const float s = al * (al * g[l] - 2 * uv[r * L + l]);
                if (s < best) {
                    best = s;
                    out[r] = uint16_t(l);
                }
            }
            sum_uv += uv[r * L + out[r]];
            sum_vv += g[out[r]];
        }
        if (round == kFitRounds || !(sum_vv > 0)) {
            break;
        }
        al = std::clamp(float(sum_uv / sum_vv), 0.0f, 1.0f);
    }
    a[list] = al;

    std::vector<double> sum(L + 1), count(L + 1);
    double within = 0;
    for (size_t r = 0; r < n; r++) {
        const size_t l = out[r];
        const double s =
                std::max(0.0f, uu[r] + al * (al * g[l] - 2 * uv[r * L + l]));
        sum[l] += s;
        count[l] += 1;
        within += s;
        sum[L] += uu[r];
        count[L] += 1;
    }
    // An empty list still has a scale: that of the gap to its nearest mean.
    const double gap_scale = std::max(0.5 * g[0], 1e-30);
    const double prior = n > 0 ? within / n : gap_scale;
    // Less than 1e-7 |mu|^2 is lost in the rounding of the distances.
    const double floor = std::max(
            {1e-6 * prior,
             1e-9 * gap_scale,
             1e-7 * faiss::fvec_norm_L2sqr(means + list * d, d),
             1e-18});
    for (size_t l = 0; l <= L; l++) {
        const double p = l < L ? prior : n > 0 ? sum[L] / n : gap_scale;
        variance[list * (L + 1) + l] = float(std::max(
                floor, (sum[l] + kPriorCount * p) / (count[l] + kPriorCount)));
    }
}

void PairCells::assign(
        size_t n,
        size_t d,
        const float* x,
        const idx_t* homes,
        const float* means,
        uint16_t* cells) const {
    const size_t L = cells_per_list;
#pragma omp parallel if (n > 256)
    {
        std::vector<float> dis(L);
#pragma omp for schedule(static)
        for (size_t r = 0; r < n; r++) {
            cells[r] = 0;
            if (homes[r] < 0) {
                continue;
            }
            const size_t i = homes[r];
            squared_distances_to(
                    x + r * d, means, d, &partner[i * L], L, dis.data());
            float best = HUGE_VALF;
            for (size_t l = 0; l < L; l++) {
                // (1 - a) d_i is the same for all cells of the list
                const float s =
                        a[i] * dis[l] - a[i] * (1 - a[i]) * gap[i * L + l];
                if (s < best) {
                    best = s;
                    cells[r] = l;
                }
            }
        }
    }
}

void PairCells::score(
        size_t list,
        const float* distances,
        bool similarity,
        float* out) const {
    const size_t L = cells_per_list;
    const float al = a[list];
    score_cells(
            distances,
            &partner[list * L],
            &gap[list * L],
            al,
            (1 - al) * distances[list],
            similarity ? 0 : al * (1 - al),
            L,
            out);
    out[L] = std::max(distances[list], 0.0f);
}

void PairCells::clear_entries() {
    offsets.assign(nlist * (cells_per_list + 1), 0);
    tail.assign(nlist, {});
}

} // namespace faiss_ext
