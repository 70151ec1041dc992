#include "faiss_ext/PairCells.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "InnerProducts.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// A list's a is fitted to so many of its vectors, or up to twice as many.
constexpr size_t kFitSample = 256;

/// Every step-th of n rows of uv, about: which ones depends on what they are
/// and not on their order, so that it does not matter how a list came about.
std::vector<uint32_t> sample_of(size_t L, size_t n, const float* uv) {
    const size_t step = std::max<size_t>(1, n / kFitSample);
    std::vector<uint32_t> out;
    out.reserve(2 * n / step);
    for (size_t r = 0; r < n; r++) {
        uint32_t bits;
        std::memcpy(&bits, &uv[r * L], sizeof(bits));
        if ((bits * 0x9e3779b9u >> 16) % step == 0) {
            out.push_back(uint32_t(r));
        }
    }
    if (2 * step * out.size() < n) { // many are equal
        out.resize(n);
        std::iota(out.begin(), out.end(), 0);
    }
    return out;
}

/// For each of n rows of uv (rows[0..n-1]; nullptr: the first n) the cell of
/// the least a^2 v.v - 2 a u.v.
void nearest_cells(
        size_t L,
        float a,
        const float* g,
        size_t n,
        const uint32_t* rows,
        const float* uv,
        uint16_t* out) {
    if (!(a > 0)) { // they are alike
        std::fill(out, out + n, 0);
        return;
    }
    std::vector<float> half(L);
    for (size_t l = 0; l < L; l++) {
        half[l] = 0.5f * a * g[l];
    }
    const CodeKernels& kernels = best_code_kernels();
    for (size_t r = 0; r < n; r++) {
        out[r] = uint16_t(kernels.largest_difference(
                L, uv + (rows ? rows[r] : r) * L, half.data()));
    }
}

constexpr int kFitRounds = 3;
/// Rows far apart are asked for so many before they are read.
constexpr size_t kRowsAhead = 6;
/// Of so many vectors, a matrix product pays.
constexpr size_t kGemmRows = 16;
/// Cells are uint16_t.
constexpr size_t kMaxCells = 65535;

} // namespace

size_t PairCells::default_cells_per_list(double mean_list_size) {
    size_t cells = 1;
    while (cells < 1024 && mean_list_size / (2 * cells) >= 16) {
        cells *= 2;
    }
    return cells;
}

void PairCells::init(
        size_t nlist_in, size_t d, const float* means, size_t cells_in) {
    PairCells fresh;
    fresh.divide(nlist_in, d, means, cells_in);
    *this = std::move(fresh);
}

void PairCells::divide(
        size_t nlist_in, size_t d, const float* means, size_t cells_in) {
    const size_t L = std::min({cells_in, nlist_in - 1, kMaxCells});
    PairCells fresh;
    if (L > 1) {
        if (nlist == nlist_in && n_partners == L && rings_are_closed()) {
            fresh.nlist = nlist;
            fresh.n_partners = n_partners;
            fresh.partner = partner;
            fresh.gap = gap;
        } else {
            fresh.find_partners(nlist_in, d, means, L);
        }
        fresh.cells_per_list = L;
        fresh.a.assign(nlist_in, 0);
        fresh.offsets.assign(nlist_in * (L + 1), 0);
        fresh.fitted_size.assign(nlist_in, 0);
        for (size_t i = 0; i < nlist_in; i++) {
            fresh.fit_list(i, 0, d, nullptr, means, nullptr);
        }
    }
    *this = std::move(fresh);
}

float PairCells::best_a(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const uint32_t* rows,
        const float* means,
        uint16_t* out) const {
    const size_t L = cells_per_list;
    const float* g = gaps(list);
    // With u = x - mu_i and v = mu_j - mu_i: |x - m_ij|^2 = |u|^2 - 2 a u.v +
    // a^2 v.v, so one pass over the vectors serves all rounds.
    std::vector<float> uv(n * L);
    if (n > 0) {
        project(list, n, d, x, rows, means, uv.data());
    }

    // Alternates the cell of each vector and the a that minimises the sum of
    // |x - m_ij|^2, which is sum u.v / sum v.v.
    const std::vector<uint32_t> sample = sample_of(L, n, uv.data());
    float al = 0.3f;
    for (int round = 0; round < kFitRounds; round++) {
        double sum_uv = 0, sum_vv = 0;
        nearest_cells(L, al, g, sample.size(), sample.data(), uv.data(), out);
        for (size_t r = 0; r < sample.size(); r++) {
            sum_uv += uv[sample[r] * L + out[r]];
            sum_vv += g[out[r]];
        }
        if (!(sum_vv > 0)) {
            break;
        }
        al = std::clamp(float(sum_uv / sum_vv), 0.0f, 1.0f);
    }
    nearest_cells(L, al, g, n, nullptr, uv.data(), out);
    return al;
}

float PairCells::next_a(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const uint32_t* rows,
        const uint32_t* entries,
        const float* means) const {
    const CodeKernels& kernels = best_code_kernels();
    const uint32_t* const offset = list_offsets(list);
    const float *const own = means + list * d, *const g = gaps(list);
    double sum_uv = 0, sum_vv = 0;
    for (size_t r = 0, l = 0; r < n; r++) {
        while (offset[l + 1] <= entries[r]) {
            l++;
        }
        if (rows && r + kRowsAhead < n) {
            prefetch_bytes(x + rows[r + kRowsAhead] * d, d * sizeof(float));
        }
        const float* xr = x + (rows ? rows[r] : r) * d;
        const float* other = means + partners(list)[l] * d;
        // |u - v|^2 = |u|^2 - 2 u.v + v.v
        sum_uv += 0.5 *
                (double(kernels.squared_distance(xr, own, d)) + g[l] -
                 kernels.squared_distance(xr, other, d));
        sum_vv += g[l];
    }
    return sum_vv > 0 ? std::clamp(float(sum_uv / sum_vv), 0.0f, 1.0f)
                      : a[list];
}

void PairCells::fit_list(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const float* means,
        uint16_t* out) {
    a[list] = best_a(list, n, d, x, nullptr, means, out);
    fitted_size[list] = uint32_t(n);
}

std::vector<float> PairCells::partner_offsets(
        size_t list, size_t d, const float* means) const {
    std::vector<float> v(n_partners * d);
    for (size_t l = 0; l < n_partners; l++) {
        const size_t j = partners(list)[l];
        subtract(1, d, means + j * d, means + list * d, &v[l * d]);
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
        float* uv) const {
    const size_t L = cells_per_list;
    const std::vector<float> v = partner_offsets(list, d, means);
    std::vector<float> u(n * d);
    for (size_t r = 0; r < n; r++) {
        if (rows && r + kRowsAhead < n) {
            prefetch_bytes(x + rows[r + kRowsAhead] * d, d * sizeof(float));
        }
        const float* xr = x + (rows ? rows[r] : r) * d;
        subtract(1, d, xr, means + list * d, &u[r * d]);
    }
    gmm::inner_products(gmm::PackedMeans(L, d, v.data()), n, u.data(), uv, L);
}

void PairCells::assign(
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const uint32_t* rows,
        const float* means,
        uint16_t* cells) const {
    const size_t L = cells_per_list;
    const float* g = gaps(list);
    if (n < kGemmRows) {
        // |x - m_l|^2 = (1 - a) |u|^2 + a (|x - mu_jl|^2 - (1 - a) v.v)
        const CodeKernels& kernels = best_code_kernels();
        const float weight = 1 - a[list];
        for (size_t r = 0; r < n; r++) {
            const float* xr = x + (rows ? rows[r] : r) * d;
            float least = HUGE_VALF;
            cells[r] = 0;
            for (size_t l = 0; l < L && a[list] > 0; l++) {
                const float* other = means + partners(list)[l] * d;
                const float s =
                        kernels.squared_distance(xr, other, d) - weight * g[l];
                if (s < least) {
                    least = s;
                    cells[r] = uint16_t(l);
                }
            }
        }
        return;
    }
    std::vector<float> uv(n * L);
    project(list, n, d, x, rows, means, uv.data());
    nearest_cells(L, a[list], g, n, nullptr, uv.data(), cells);
}

void PairCells::init_whole(size_t nlist_in) {
    PairCells fresh;
    fresh.nlist = nlist_in;
    fresh.cells_per_list = fresh.n_partners = 1;
    fresh.partner.resize(nlist_in);
    std::iota(fresh.partner.begin(), fresh.partner.end(), 0);
    fresh.gap.assign(nlist_in, 0);
    fresh.a.assign(nlist_in, 0);
    fresh.offsets.assign(2 * nlist_in, 0);
    fresh.fitted_size.assign(nlist_in, 0);
    *this = std::move(fresh);
}

void PairCells::clear_entries() {
    std::fill(offsets.begin(), offsets.end(), 0);
    codes.clear_entries();
    norm2 = 0;
}

void PairCells::undivide() noexcept {
    PairCells fresh;
    fresh.nlist = nlist;
    fresh.n_partners = n_partners;
    fresh.partner = std::move(partner);
    fresh.gap = std::move(gap);
    fresh.fitted_n = fitted_n;
    *this = std::move(fresh);
}

} // namespace faiss_ext
