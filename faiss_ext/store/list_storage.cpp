#include "faiss_ext/store/list_storage.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <faiss/IndexFlat.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>

#include "cpu/Blas.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

using faiss::InvertedLists;

namespace {

float largest_norm2(size_t n, size_t d, const float* x) {
    float out = 0;
    for (size_t r = 0; r < n; r++) {
        out = std::max(out, faiss::fvec_norm_L2sqr(x + r * d, d));
    }
    return out;
}

/// Whether the map says that this vector is in this list: of a vector with
/// copies, a map that FAISS made (set_direct_map_type) names any of them.
bool names(const faiss::DirectMap& map, idx_t id, size_t list) {
    idx_t at = -1;
    if (map.type == faiss::DirectMap::Hashtable) {
        const auto found = map.hashtable.find(id);
        at = found != map.hashtable.end() ? found->second : -1;
    } else if (id >= 0 && size_t(id) < map.array.size()) {
        at = map.array[id];
    }
    return at >= 0 && size_t(faiss::lo_listno(at)) == list;
}

} // namespace

void decode_list(
        const faiss::IndexIVF& ivf, size_t list, std::vector<float>& out) {
    const size_t n = ivf.invlists->list_size(list);
    out.resize(n * ivf.d);
    if (n > 0 && ivf.code_size == ivf.d * sizeof(float) &&
        dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        InvertedLists::ScopedCodes codes(ivf.invlists, list);
        memcpy(out.data(), codes.get(), n * ivf.code_size);
        return;
    }
    for (size_t j = 0; j < n; j++) {
        ivf.reconstruct_from_offset(list, j, out.data() + j * ivf.d);
    }
}

std::vector<float> quantizer_means(const faiss::IndexIVF& ivf) {
    std::vector<float> means(ivf.nlist * ivf.d);
    ivf.quantizer->reconstruct_n(0, ivf.nlist, means.data());
    return means;
}

bool is_primary(const IVFGMM& gmm, size_t list, size_t offset) {
    return gmm.max_assign == 1 || gmm.earlier_lists.empty() ||
            gmm.earlier_lists[list][offset * (gmm.max_assign - 1)] < 0;
}

void permute_list(
        faiss::IndexIVF& ivf, size_t list, const std::vector<uint32_t>& order) {
    const size_t code_size = ivf.code_size;
    std::vector<uint8_t> codes(order.size() * code_size);
    std::vector<idx_t> ids(order.size());
    {
        InvertedLists::ScopedCodes old_codes(ivf.invlists, list);
        InvertedLists::ScopedIds old_ids(ivf.invlists, list);
        for (size_t j = 0; j < order.size(); j++) {
            memcpy(codes.data() + j * code_size,
                   old_codes.get() + order[j] * code_size,
                   code_size);
            ids[j] = old_ids[order[j]];
        }
    }
    ivf.invlists->resize(list, order.size());
    if (!order.empty()) {
        ivf.invlists->update_entries(
                list, 0, order.size(), ids.data(), codes.data());
    }
}

namespace {

void permute_sketches(
        PairCells& cells, size_t list, const std::vector<uint32_t>& order) {
    if (cells.sketches.empty()) {
        return;
    }
    std::vector<Sketch> permuted(order.size());
    for (size_t j = 0; j < order.size(); j++) {
        permuted[j] = cells.sketches[list][order[j]];
    }
    cells.sketches[list] = std::move(permuted);
}

} // namespace

void update_direct_map(GMMIndexRef index, size_t list, size_t begin) {
    faiss::DirectMap& map = index.ivf.direct_map;
    if (map.no()) {
        return;
    }
    const size_t n = index.ivf.invlists->list_size(list);
    InvertedLists::ScopedIds ids(index.ivf.invlists, list);
    for (size_t j = begin; j < n; j++) {
        if (!is_primary(index.gmm, list, j) && !names(map, ids[j], list)) {
            continue;
        }
        if (map.type == faiss::DirectMap::Array) {
            if (size_t(ids[j]) >= map.array.size()) {
                map.array.resize(ids[j] + 1, -1);
            }
            map.array[ids[j]] = faiss::lo_build(list, j);
        } else {
            map.hashtable[ids[j]] = faiss::lo_build(list, j);
        }
    }
}

void fold_tail(GMMIndexRef index, size_t list) {
    PairCells& cells = index.gmm.cells;
    const size_t L = cells.cells_per_list;
    std::vector<uint16_t>& tail = cells.tail[list];
    if (tail.empty()) {
        return;
    }
    uint32_t* offset = cells.offsets.data() + list * (L + 1);
    const size_t begin = offset[L];
    std::vector<uint16_t> cell(begin + tail.size());
    for (size_t l = 0; l < L; l++) {
        std::fill(
                cell.begin() + offset[l],
                cell.begin() + offset[l + 1],
                uint16_t(l));
    }
    std::copy(tail.begin(), tail.end(), cell.begin() + begin);

    std::vector<uint32_t> order(cell.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t p, uint32_t q) {
        return cell[p] < cell[q];
    });
    permute_list(index.ivf, list, order);
    permute_sketches(cells, list, order);
    std::fill(offset, offset + L + 1, 0);
    for (uint16_t l : cell) {
        offset[l + 1]++;
    }
    std::partial_sum(offset, offset + L + 1, offset);
    tail.clear();
    update_direct_map(index, list, 0);
}

void sort_copies(GMMIndexRef index, size_t list) {
    const size_t width = index.gmm.max_assign - 1;
    std::vector<int32_t>& earlier = index.gmm.earlier_lists[list];
    std::vector<uint32_t> order(earlier.size() / width);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t p, uint32_t q) {
        return std::lexicographical_compare(
                &earlier[p * width],
                &earlier[p * width] + width,
                &earlier[q * width],
                &earlier[q * width] + width);
    });
    permute_list(index.ivf, list, order);
    std::vector<int32_t> sorted(earlier.size());
    for (size_t j = 0; j < order.size(); j++) {
        std::copy_n(&earlier[order[j] * width], width, &sorted[j * width]);
    }
    earlier = std::move(sorted);
    update_direct_map(index, list, 0);
}

size_t remove_from_list(
        GMMIndexRef index, size_t list, const faiss::IDSelector& sel) {
    const size_t n = index.ivf.invlists->list_size(list);
    std::vector<uint32_t> kept;
    std::vector<idx_t> removed;
    {
        InvertedLists::ScopedIds ids(index.ivf.invlists, list);
        for (size_t j = 0; j < n; j++) {
            if (!sel.is_member(ids[j])) {
                kept.push_back(uint32_t(j));
            } else if (is_primary(index.gmm, list, j)) {
                removed.push_back(ids[j]);
            }
        }
    }
    if (kept.size() == n) {
        return 0;
    }
    permute_list(index.ivf, list, kept);

    PairCells& cells = index.gmm.cells;
    if (!cells.empty()) {
        permute_sketches(cells, list, kept);
        const size_t L = cells.cells_per_list;
        uint32_t* offset = cells.offsets.data() + list * (L + 1);
        std::vector<uint16_t>& tail = cells.tail[list];
        const auto tail_kept =
                std::lower_bound(kept.begin(), kept.end(), offset[L]);
        std::vector<uint16_t> new_tail;
        for (auto it = tail_kept; it != kept.end(); ++it) {
            new_tail.push_back(tail[*it - offset[L]]);
        }
        tail = std::move(new_tail);
        for (size_t l = 0; l <= L; l++) {
            offset[l] = uint32_t(
                    std::lower_bound(kept.begin(), kept.end(), offset[l]) -
                    kept.begin());
        }
    }
    if (!index.gmm.earlier_lists.empty()) {
        const size_t width = index.gmm.max_assign - 1;
        std::vector<int32_t>& earlier = index.gmm.earlier_lists[list];
        for (size_t j = 0; j < kept.size(); j++) {
            std::copy_n(&earlier[kept[j] * width], width, &earlier[j * width]);
        }
        earlier.resize(kept.size() * width);
    }
    if (index.ivf.direct_map.type == faiss::DirectMap::Hashtable) {
        for (idx_t id : removed) {
            index.ivf.direct_map.hashtable.erase(id);
        }
    }
    update_direct_map(index, list, 0);
    return removed.size();
}

namespace {

/// With METRIC_INNER_PRODUCT a sketch is that of the vector's direction, and
/// its constant the vector's norm.
void set_norms(size_t n, size_t d, const float* x, Sketch* sketches) {
    for (size_t r = 0; r < n; r++) {
        sketches[r].constant = std::sqrt(faiss::fvec_norm_L2sqr(x + r * d, d));
    }
}

} // namespace

void append_to_tails(
        GMMIndexRef index,
        size_t n,
        const float* x,
        const idx_t* homes,
        const std::vector<float>& means) {
    PairCells& cells = index.gmm.cells;
    if (cells.empty()) {
        return;
    }
    const size_t d = index.ivf.d;
    const bool sketched = !cells.sketches.empty();
    std::vector<uint16_t> cell(n);
    std::vector<Sketch> sketches(sketched ? n : 0);
    std::vector<float> directions;
    if (is_ip(index.ivf)) {
        cells.norm2 = std::max(cells.norm2, largest_norm2(n, d, x));
        directions.assign(x, x + n * d);
        faiss::fvec_renorm_L2(d, n, directions.data());
    }
    cells.assign(
            n,
            d,
            directions.empty() ? x : directions.data(),
            homes,
            means.data(),
            cell.data(),
            sketched ? sketches.data() : nullptr);
    if (is_ip(index.ivf) && sketched) {
        set_norms(n, d, x, sketches.data());
    }
    for (size_t r = 0; r < n; r++) {
        if (homes[r] >= 0) {
            cells.tail[homes[r]].push_back(cell[r]);
            if (sketched) {
                cells.sketches[homes[r]].push_back(sketches[r]);
            }
        }
    }
}

void rebuild_cells(GMMIndexRef index) {
    IVFGMM& gmm = index.gmm;
    faiss::IndexIVF& ivf = index.ivf;
    size_t stored = 0;
    for (size_t i = 0; i < ivf.nlist; i++) {
        stored += ivf.invlists->list_size(i);
    }
    const size_t L = gmm.max_assign > 1 ? 1
            : gmm.cells_per_list > 0
            ? gmm.cells_per_list
            : PairCells::default_cells_per_list(double(stored) / ivf.nlist);
    const std::vector<float> means = quantizer_means(ivf);
    gmm.cells.init(ivf.nlist, ivf.d, means.data(), L);
    gmm.cells.fitted_n = stored;
    if (gmm.cells.empty()) {
        return;
    }
    if (gmm.sketch) {
        gmm.cells.sketches.resize(ivf.nlist);
    }
    float norm2 = 0;
    const gmm::SerialBlas serial_blas;
#pragma omp parallel for schedule(dynamic) reduction(max : norm2)
    for (size_t i = 0; i < ivf.nlist; i++) {
        std::vector<float> x;
        decode_list(ivf, i, x);
        std::vector<uint16_t>& tail = gmm.cells.tail[i];
        tail.resize(x.size() / ivf.d);
        Sketch* sketches = nullptr;
        if (gmm.sketch) {
            gmm.cells.sketches[i].resize(tail.size());
            sketches = gmm.cells.sketches[i].data();
        }
        std::vector<float> directions;
        if (is_ip(ivf)) {
            norm2 = std::max(
                    norm2, largest_norm2(tail.size(), ivf.d, x.data()));
            directions = x;
            faiss::fvec_renorm_L2(ivf.d, tail.size(), directions.data());
        }
        gmm.cells.fit_list(
                i,
                tail.size(),
                ivf.d,
                directions.empty() ? x.data() : directions.data(),
                means.data(),
                tail.data(),
                sketches);
        if (is_ip(ivf) && sketches) {
            set_norms(tail.size(), ivf.d, x.data(), sketches);
        }
    }
    gmm.cells.norm2 = norm2;
#pragma omp parallel for schedule(dynamic) if (ivf.direct_map.no())
    for (size_t i = 0; i < ivf.nlist; i++) {
        fold_tail(index, i);
    }
}

} // namespace faiss_ext
