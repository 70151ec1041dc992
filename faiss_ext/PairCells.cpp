#include "faiss_ext/PairCells.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <faiss/IndexFlat.h>
#include <faiss/utils/distances.h>

#include "cpu/Blas.h"
#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// out = x - y, size d; returns |out|^2.
FAISS_EXT_SIMD_CLONES
float difference(
        const float* __restrict x,
        const float* __restrict y,
        size_t d,
        float* __restrict out) {
    float sum = 0;
    for (size_t j = 0; j < d; j++) {
        out[j] = x[j] - y[j];
        sum += out[j] * out[j];
    }
    return sum;
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

FAISS_EXT_SIMD_CLONES
void estimate_entries(
        const Sketch* __restrict sketches,
        size_t n,
        float own,
        bool similarity,
        float per_norm,
        const float* __restrict table,
        float* __restrict out) {
    for (size_t j = 0; j < n; j++) {
        float sum = own;
        for (size_t t = 0; t < Sketch::kTerms; t++) {
            sum += sketches[j].weight[t] * table[sketches[j].partner[t]];
        }
        sum = similarity ? 2 - (2 - sum) * sketches[j].constant * per_norm
                         : sum + sketches[j].constant;
        out[j] = sum > 0 ? sum : 0;
    }
}

/// argmin over cells of a^2 v.v - 2 a u.v
size_t nearest_cell(size_t L, float a, const float* g, const float* uv) {
    size_t best = 0;
    float least = HUGE_VALF;
    for (size_t l = 0; l < L; l++) {
        const float s = a * (a * g[l] - 2 * uv[l]);
        if (s < least) {
            least = s;
            best = l;
        }
    }
    return best;
}

/** One term of a pursuit, s: its row of the basis, orthonormal to the t before
 * it,
 *
 *     basis_t = (gram_s - sum_i basis_i[s] basis_i) / norm,
 *
 * and what is left of all u.v_l without it, left -= y basis_t. Returns y, the
 * part of u along it; 0, and left as it was, if it depends on those before.
 */
FAISS_EXT_SIMD_CLONES
float add_term(
        size_t P,
        size_t t,
        size_t s,
        const float* __restrict gram,
        float* __restrict basis,
        float* __restrict left) {
    float* row = basis + t * P;
    for (size_t l = 0; l < P; l++) {
        row[l] = gram[s * P + l];
    }
    for (size_t i = 0; i < t; i++) {
        const float* before = basis + i * P;
        const float c = before[s];
        for (size_t l = 0; l < P; l++) {
            row[l] -= c * before[l];
        }
    }
    if (!(row[s] > 1e-4f * gram[s * P + s])) {
        return 0;
    }
    const float scale = 1 / std::sqrt(row[s]);
    const float y = left[s] * scale;
    for (size_t l = 0; l < P; l++) {
        row[l] *= scale;
        left[l] -= y * row[l];
    }
    return y;
}

/// (left / |v_l|)^2: how much of |u|^2 a next term would explain. Returns the
/// most.
FAISS_EXT_SIMD_CLONES
float explained(
        size_t P,
        const float* __restrict left,
        const float* __restrict inverse_length,
        float* __restrict out) {
    float most = 0;
    for (size_t l = 0; l < P; l++) {
        const float part = left[l] * inverse_length[l];
        out[l] = part * part;
        most = out[l] > most ? out[l] : most;
    }
    return most;
}

/// Orthogonal matching pursuit of one vector; memory for many.
class Pursuit {
public:
    Pursuit(size_t partners,
            const float* gram_in,
            const float* inverse_length_in)
            : P(partners), gram(gram_in), inverse_length(inverse_length_in),
              left(P), gain(P), basis(Sketch::kTerms * P) {}

    /// Returns the number of terms chosen.
    size_t operator()(const float* uv, uint8_t* chosen, float* weights) {
        left.assign(uv, uv + P);
        float y[Sketch::kTerms];
        size_t terms = 0;
        while (terms < std::min(Sketch::kTerms, P)) {
            for (size_t t = 0; t < terms; t++) {
                left[chosen[t]] = 0; // but for rounding it is
            }
            const float most =
                    explained(P, left.data(), inverse_length, gain.data());
            if (!(most > 0)) {
                break;
            }
            const size_t best =
                    std::find(gain.begin(), gain.end(), most) - gain.begin();
            y[terms] =
                    add_term(P, terms, best, gram, basis.data(), left.data());
            if (y[terms] == 0) {
                break;
            }
            chosen[terms++] = uint8_t(best);
        }
        // gram on the chosen is L L^T with L[t][i] = basis_i[chosen_t]
        for (size_t i = terms; i-- > 0;) {
            const float* row = &basis[i * P];
            float w = y[i];
            for (size_t t = i + 1; t < terms; t++) {
                w -= row[chosen[t]] * weights[t];
            }
            weights[i] = w / row[chosen[i]];
        }
        return terms;
    }

private:
    const size_t P;
    const float* const gram;           ///< v_s . v_l, size P * P
    const float* const inverse_length; ///< 1 / |v_l|; 0: not to be chosen
    std::vector<float> left, gain, basis;
};

constexpr size_t kMinPartners = 64;
constexpr size_t kSketchPartners = 256; ///< what a Sketch can name
constexpr float kWeightSteps = 64;
/// 0.2 and 0.4 are as good with 4 terms, 1 is far worse.
constexpr float kErrorWeight = 0.25f;
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
    const size_t P = std::max(L, std::min(kMinPartners, nlist - 1));
    n_partners = P;
    partner.resize(nlist * P);
    gap.resize(nlist * P);
    a.assign(nlist, 0);
    variance.assign(nlist * (L + 1), 0);

    faiss::IndexFlatL2 flat(d);
    flat.add(nlist, means);
    std::vector<float> dis(nlist * (P + 1));
    std::vector<idx_t> ids(nlist * (P + 1));
    flat.search(nlist, means, P + 1, dis.data(), ids.data());
    for (size_t i = 0; i < nlist; i++) {
        // i itself is not always the first: means can coincide
        size_t out = 0;
        for (size_t l = 0; l <= P && out < P; l++) {
            const size_t at = i * (P + 1) + l;
            if (ids[at] != idx_t(i)) {
                partner[i * P + out] = int32_t(ids[at]);
                gap[i * P + out] = std::max(dis[at], 0.0f);
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
        uint16_t* out,
        Sketch* sketches_out) {
    const size_t L = cells_per_list, P = n_partners;
    const float* g = &gap[list * P];
    // With u = x - mu_i and v = mu_j - mu_i: |x - m_ij|^2 = |u|^2 - 2 a u.v +
    // a^2 v.v, so one pass over the vectors serves all rounds.
    std::vector<float> uv(n * P), uu(n);
    const std::vector<float> v = partner_offsets(list, d, means);
    project(list, n, d, x, nullptr, means, v, uu.data(), uv.data());
    if (sketches_out) {
        sketch(list, n, d, uu.data(), uv.data(), v, sketches_out);
    }

    // Alternates the cell of each vector and the a that minimises the sum of
    // |x - m_ij|^2, which is sum u.v / sum v.v.
    float al = 0.3f;
    for (int round = 0;; round++) {
        double sum_uv = 0, sum_vv = 0;
        for (size_t r = 0; r < n; r++) {
            out[r] = uint16_t(nearest_cell(L, al, g, &uv[r * P]));
            sum_uv += uv[r * P + out[r]];
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
                std::max(0.0f, uu[r] + al * (al * g[l] - 2 * uv[r * P + l]));
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
             1e-32});
    for (size_t l = 0; l <= L; l++) {
        const double p = l < L ? prior : n > 0 ? sum[L] / n : gap_scale;
        variance[list * (L + 1) + l] = float(std::max(
                floor, (sum[l] + kPriorCount * p) / (count[l] + kPriorCount)));
    }
}

std::vector<float> PairCells::partner_offsets(
        size_t list, size_t d, const float* means) const {
    std::vector<float> v(n_partners * d);
    for (size_t l = 0; l < n_partners; l++) {
        const size_t j = partner[list * n_partners + l];
        difference(means + j * d, means + list * d, d, &v[l * d]);
    }
    return v;
}

void PairCells::project(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const uint32_t* rows,
        const float* means,
        const std::vector<float>& v,
        float* uu,
        float* uv) const {
    const size_t P = n_partners;
    std::vector<float> u(n * d);
    for (size_t r = 0; r < n; r++) {
        const float* xr = x + (rows ? rows[r] : r) * d;
        uu[r] = difference(xr, means + list * d, d, &u[r * d]);
    }
    gmm::sgemm("T", P, n, d, v.data(), d, u.data(), d, 0, uv, P);
}

void PairCells::sketch(
        size_t list,
        size_t n,
        size_t d,
        const float* uu,
        const float* uv,
        const std::vector<float>& v,
        Sketch* out) const {
    const size_t stride = n_partners, P = std::min(stride, kSketchPartners);
    const float* g = &gap[list * stride];
    std::vector<float> gram(P * P); // v_s . v_l
    gmm::sgemm("T", P, P, d, v.data(), d, v.data(), d, 0, gram.data(), P);
    std::vector<float> inverse_length(P);
    for (size_t l = 0; l < P; l++) {
        inverse_length[l] = g[l] > 1e-6f * g[P - 1] ? 1 / std::sqrt(g[l]) : 0;
    }
    Pursuit pursuit(P, gram.data(), inverse_length.data());
    for (size_t r = 0; r < n; r++) {
        const float* uvr = uv + r * stride;
        float weights[Sketch::kTerms];
        const size_t terms = pursuit(uvr, out[r].partner, weights);
        float pp = 0, up = 0, wg = 0;
        for (size_t t = 0; t < Sketch::kTerms; t++) {
            if (t >= terms) {
                out[r].partner[t] = 0;
                out[r].weight[t] = 0;
                continue;
            }
            out[r].weight[t] = int8_t(std::clamp(
                    std::lround(weights[t] * kWeightSteps), -128l, 127l));
        }
        for (size_t t = 0; t < terms; t++) {
            const float wt = out[r].weight[t] / kWeightSteps;
            const size_t s = out[r].partner[t];
            up += wt * uvr[s];
            wg += wt * g[s];
            for (size_t t2 = 0; t2 < terms; t2++) {
                pp += wt * out[r].weight[t2] / kWeightSteps *
                        gram[s * P + out[r].partner[t2]];
            }
        }
        const float error = std::max(uu[r] - 2 * up + pp, 0.0f);
        out[r].constant = pp - wg + kErrorWeight * error;
    }
}

void PairCells::assign(
        size_t n,
        size_t d,
        const float* x,
        const idx_t* homes,
        const float* means,
        uint16_t* cells,
        Sketch* sketches_out) const {
    const size_t L = cells_per_list, P = n_partners;
    // rows by home: what a home's partners have in common is computed once
    std::vector<uint32_t> begin(nlist + 1), rows(n);
    for (size_t r = 0; r < n; r++) {
        cells[r] = 0;
        if (homes[r] >= 0) {
            begin[homes[r] + 1]++;
        }
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    {
        std::vector<uint32_t> next(begin.begin(), begin.end() - 1);
        for (size_t r = 0; r < n; r++) {
            if (homes[r] >= 0) {
                rows[next[homes[r]]++] = uint32_t(r);
            }
        }
    }
    const gmm::SerialBlas serial_blas;
#pragma omp parallel for schedule(dynamic) if (n > 64)
    for (size_t i = 0; i < nlist; i++) {
        const size_t ni = begin[i + 1] - begin[i];
        if (ni == 0) {
            continue;
        }
        const uint32_t* own = &rows[begin[i]];
        std::vector<float> uv(ni * P), uu(ni);
        const std::vector<float> v = partner_offsets(i, d, means);
        project(i, ni, d, x, own, means, v, uu.data(), uv.data());
        for (size_t r = 0; r < ni; r++) {
            cells[own[r]] =
                    uint16_t(nearest_cell(L, a[i], &gap[i * P], &uv[r * P]));
        }
        if (sketches_out) {
            std::vector<Sketch> out(ni);
            sketch(i, ni, d, uu.data(), uv.data(), v, out.data());
            for (size_t r = 0; r < ni; r++) {
                sketches_out[own[r]] = out[r];
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
            &partner[list * n_partners],
            &gap[list * n_partners],
            al,
            (1 - al) * distances[list],
            similarity ? 0 : al * (1 - al),
            L,
            out);
    out[L] = std::max(distances[list], 0.0f);
}

void PairCells::make_table(
        size_t list, const float* distances, float* table) const {
    const int32_t* p = &partner[list * n_partners];
    const float own = distances[list];
    for (size_t l = 0; l < n_partners; l++) {
        table[l] = (distances[p[l]] - own) / kWeightSteps;
    }
}

void PairCells::estimate(
        size_t list,
        size_t begin,
        size_t end,
        float own,
        bool similarity,
        const float* table,
        float* out) const {
    // entries that came in behind our back have no sketch: looked at first
    const size_t known = std::min(end, sketches[list].size());
    const size_t n = known > begin ? known - begin : 0;
    std::fill(out + n, out + (end - begin), 0.0f);
    estimate_entries(
            sketches[list].data() + begin,
            n,
            own,
            similarity,
            norm2 > 0 ? 1 / std::sqrt(norm2) : 0,
            table,
            out);
}

void PairCells::prefetch_sketches(size_t list, size_t begin, size_t end) const {
    const Sketch* s = sketches[list].data();
    for (size_t j = begin; j < end; j += 64 / sizeof(Sketch)) {
        __builtin_prefetch(s + j);
    }
}

void PairCells::clear_entries() {
    sketches.assign(sketches.empty() ? 0 : nlist, {});
    offsets.assign(nlist * (cells_per_list + 1), 0);
    tail.assign(nlist, {});
}

} // namespace faiss_ext
