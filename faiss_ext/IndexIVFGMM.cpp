#include "faiss_ext/IndexIVFGMM.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <unordered_map>

#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/GpuGMMClustering.h"
#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/scan/gmm_search.h"
#include "faiss_ext/store/copies.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// Vectors that are added, assigned and encoded at once; below the 65,536
/// from which on IndexIVF::add_core calls itself again.
constexpr size_t kAddBlock = 32768;
/// A list's tail is folded in when it is longer than this and than a quarter
/// of the list.
constexpr size_t kMinTail = 64;
/// The cells and the calibration are made anew whenever the index has grown
/// by these factors. A calibration of half the vectors can miss by 0.07.
constexpr size_t kGrowth = 2;
constexpr double kCalibrationGrowth = 1.3;
constexpr float kNorm2Growth = 1.2f;

bool needs_new_cells(GMMIndexRef index, size_t ntotal) {
    return index.gmm.max_assign == 1 && index.gmm.cells_per_list != 1 &&
            ntotal >= kGrowth * index.gmm.cells.fitted_n;
}

/// Entries came in: makes cells and calibration anew if it is time to. Larger
/// norms than before change the units of METRIC_INNER_PRODUCT's distances.
void after_growth(GMMIndexRef index, float norm2_before) {
    const bool new_units = norm2_before > 0 &&
            index.gmm.cells.norm2 > kNorm2Growth * norm2_before;
    const size_t ntotal = index.ivf.ntotal;
    if (needs_new_cells(index, ntotal)) {
        rebuild_cells(index);
    }
    const size_t next = new_units
            ? 0
            : size_t(kCalibrationGrowth * index.gmm.calibration.ntotal);
    if (index.gmm.calibrate_on_add &&
        ntotal >= std::max(kMinCalibrationVectors, next)) {
        calibrate_again(index);
    }
}

bool has_id(const faiss::DirectMap& map, idx_t id) {
    return map.type == faiss::DirectMap::Array
            ? id >= 0 && size_t(id) < map.array.size() && map.array[id] >= 0
            : map.hashtable.count(id) > 0;
}

} // namespace

template <class IVF>
void IndexIVFGMM<IVF>::train(idx_t n, const float* x) {
    check_metric(this->metric_type);
    FAISS_THROW_IF_NOT_FMT(
            n >= idx_t(this->nlist),
            "n = %zd, expected at least nlist = %zd",
            size_t(n),
            this->nlist);
    FAISS_THROW_IF_NOT_FMT(
            this->ntotal == 0,
            "ntotal = %zd, expected an empty index: training again would "
            "misplace its vectors",
            size_t(this->ntotal));
    check_storable("x", n, this->d, x);
    GpuGMMClustering clustering(this->d, this->nlist, this->cp);
    clustering.covariance = covariance;
    clustering.verbose |= this->verbose;
    std::unique_ptr<faiss::Index> means = empty_quantizer(*this);
    std::vector<float> directions; // the mixture lives on the unit sphere
    if (this->metric_type == faiss::METRIC_INNER_PRODUCT) {
        directions.assign(x, x + n * this->d);
        faiss::fvec_renorm_L2(this->d, n, directions.data());
    }
    clustering.train(n, directions.empty() ? x : directions.data(), *means);
    directions = {};
    faiss::Index* old = this->quantizer;
    this->quantizer = means.get();
    try {
        // finds the quantizer trained, and trains the codec
        IVF::train(n, x);
    } catch (...) {
        this->quantizer = old;
        throw;
    }
    means.release();
    if (this->own_fields) {
        delete old;
    }
    this->own_fields = true;
    variances = clustering.variances;
    log_weights = clustering.log_weights;
    backend = clustering.backend;
    cells = PairCells();
    calibration = Calibration();
}

template <class IVF>
void IndexIVFGMM<IVF>::add_with_ids(
        idx_t n, const float* x, const idx_t* xids) {
    check_count("n", n);
    std::vector<idx_t> homes(n);
    if (this->is_trained) {
        nearest_lists(*this, n, x, homes.data());
    }
    static_cast<faiss::IndexIVF&>(*this).add_core(n, x, xids, homes.data());
}

template <class IVF>
void IndexIVFGMM<IVF>::add_core(
        idx_t n,
        const float* x,
        const idx_t* xids,
        const idx_t* homes_in FAISS_EXT_ADD_CORE_TAIL_DECL) {
    FAISS_THROW_IF_NOT_MSG(this->is_trained, "the index is not trained");
    FAISS_THROW_IF_NOT_FMT(
            max_assign == 1 || cells.empty(),
            "max_assign = %zd, expected 1 in an index with cells "
            "(cells_per_list = 1 leaves them out)",
            max_assign);
    check_writable(*this);
    check_storable("x", n, this->d, x);
    for (idx_t i = 0; i < n; i++) {
        FAISS_THROW_IF_NOT_FMT(
                homes_in[i] >= -1 && homes_in[i] < idx_t(this->nlist),
                "coarse_idx[%zd] = %zd, expected -1 or a list, of %zd",
                size_t(i),
                size_t(homes_in[i]),
                this->nlist);
    }
    this->direct_map.check_can_add(xids);
    const GMMIndexRef self{*this, *this};
    check_max_assign(*this, *this);
    adopt_strays(self);
    if (this->ntotal == 0) {
        earlier_lists.clear();
    }
    const bool fold = !needs_new_cells(self, this->ntotal + n);
    const float norm2_before = cells.norm2;
    std::vector<uint32_t> old_size(this->nlist);
    const std::vector<float> means = quantizer_means(*this);

    for (idx_t i0 = 0; i0 < n; i0 += kAddBlock) {
        const idx_t nb = std::min<idx_t>(kAddBlock, n - i0);
        const float* xb = x + i0 * this->d;
        const idx_t* homes = homes_in + i0;
        for (size_t i = 0; i < this->nlist; i++) {
            old_size[i] = uint32_t(this->invlists->list_size(i));
        }
        // FAISS would enter places in the direct map that change below.
        faiss::DirectMap map;
        std::swap(map, this->direct_map);
        Assignment all;
        if (max_assign > 1) {
            all = assign_copies(self, nb, xb, homes);
        }
        const idx_t ntotal0 = this->ntotal;
        try {
            IVF::add_core(
                    nb,
                    xb,
                    xids ? xids + i0 : nullptr,
                    max_assign > 1 ? all.homes.data()
                                   : homes FAISS_EXT_ADD_CORE_TAIL);
            if (!all.copied.empty()) {
                std::vector<idx_t> ids(all.copied.size());
                for (size_t r = 0; r < ids.size(); r++) {
                    ids[r] = xids ? xids[i0 + all.copied[r]]
                                  : ntotal0 + all.copied[r];
                }
                IVF::add_core(
                        ids.size(),
                        all.gather(this->d, xb).data(),
                        ids.data(),
                        all.copy_lists.data() FAISS_EXT_ADD_CORE_TAIL);
                this->ntotal = ntotal0 + nb;
            }
        } catch (...) {
            std::swap(map, this->direct_map);
            throw;
        }
        std::swap(map, this->direct_map);
        if (this->direct_map.type == faiss::DirectMap::Array) {
            this->direct_map.array.resize(this->ntotal, -1);
        }

        append_to_tails(self, nb, xb, homes, means);
        if (max_assign > 1) {
            all.enter(self);
        }
        for (size_t i = 0; i < this->nlist; i++) {
            if (this->invlists->list_size(i) == old_size[i]) {
                continue;
            }
            if (max_assign > 1) {
                sort_copies(self, i);
            } else if (
                    !cells.empty() && fold &&
                    cells.tail[i].size() >
                            std::max(
                                    kMinTail,
                                    this->invlists->list_size(i) / 4)) {
                fold_tail(self, i);
            } else {
                update_direct_map(self, i, old_size[i]);
            }
        }
    }

    after_growth(self, norm2_before);
}

template <class IVF>
void IndexIVFGMM<IVF>::reset() {
    IVF::reset();
    cells = PairCells();
    earlier_lists.clear();
    calibration = Calibration();
}

template <class IVF>
void IndexIVFGMM<IVF>::search(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        const faiss::SearchParameters* params) const {
    check_count("n", n);
    FAISS_THROW_IF_NOT_FMT(k > 0, "k = %zd, expected > 0", size_t(k));
    gmm_search(
            *this,
            *this,
            make_plan(*this, *this, params, k),
            n,
            x,
            k,
            distances,
            labels);
}

template <class IVF>
void IndexIVFGMM<IVF>::search_preassigned(
        idx_t n,
        const float* x,
        idx_t k,
        const idx_t* assign,
        const float* centroid_dis,
        float* distances,
        idx_t* labels,
        bool store_pairs,
        const faiss::IVFSearchParameters* params,
        faiss::IndexIVFStats* stats) const {
    FAISS_THROW_IF_NOT_FMT(
            max_assign == 1,
            "search_preassigned: max_assign = %zu, expected 1: copies would "
            "be found twice",
            max_assign);
    IVF::search_preassigned(
            n,
            x,
            k,
            assign,
            centroid_dis,
            distances,
            labels,
            store_pairs,
            params,
            stats);
}

template <class IVF>
void IndexIVFGMM<IVF>::range_search(
        idx_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result,
        const faiss::SearchParameters* params) const {
    check_count("n", n);
    gmm_range_search(
            *this,
            *this,
            make_plan(*this, *this, params),
            n,
            x,
            radius,
            result);
}

template <class IVF>
void IndexIVFGMM<IVF>::search_and_reconstruct(
        idx_t n,
        const float* x,
        idx_t k,
        float* distances,
        idx_t* labels,
        float* recons,
        const faiss::SearchParameters* params) const {
    check_count("n", n);
    FAISS_THROW_IF_NOT_FMT(k > 0, "k = %zd, expected > 0", size_t(k));
    gmm_search(
            *this,
            *this,
            make_plan(*this, *this, params, k),
            n,
            x,
            k,
            distances,
            labels,
            true);
    for (idx_t i = 0; i < n * k; i++) {
        float* out = recons + i * this->d;
        if (labels[i] < 0) {
            std::fill(out, out + this->d, -1.0f); // as FAISS does
            continue;
        }
        const size_t list = faiss::lo_listno(labels[i]);
        const size_t offset = faiss::lo_offset(labels[i]);
        this->reconstruct_from_offset(list, offset, out);
        labels[i] = this->invlists->get_single_id(list, offset);
    }
}

template <class IVF>
size_t IndexIVFGMM<IVF>::remove_ids(const faiss::IDSelector& sel) {
    FAISS_THROW_IF_NOT_MSG(
            this->direct_map.type != faiss::DirectMap::Array,
            "remove_ids: a direct map of type Array has no room for gaps; "
            "use Hashtable or none");
    check_max_assign(*this, *this);
    adopt_strays({*this, *this});
    size_t removed = 0;
    for (size_t i = 0; i < this->nlist; i++) {
        removed += remove_from_list({*this, *this}, i, sel);
    }
    this->ntotal -= removed;
    return removed;
}

template <class IVF>
void IndexIVFGMM<IVF>::update_vectors(
        int nv, const idx_t* idx, const float* v) {
    FAISS_THROW_IF_NOT_MSG(
            !this->direct_map.no(), "update_vectors needs a direct map");
    check_count("nv", nv);
    check_storable("v", nv, this->d, v);
    std::unordered_map<idx_t, int> last; // row of each id
    for (int i = 0; i < nv; i++) {
        FAISS_THROW_IF_NOT_FMT(
                has_id(this->direct_map, idx[i]),
                "idx[%d] = %zd, expected the id of a vector in the index",
                i,
                size_t(idx[i]));
        last[idx[i]] = i;
    }
    if (last.size() < size_t(nv)) {
        std::vector<idx_t> ids;
        std::vector<float> rows;
        for (const auto& [id, row] : last) {
            ids.push_back(id);
            rows.insert(rows.end(), v + row * this->d, v + (row + 1) * this->d);
        }
        return update_vectors(int(ids.size()), ids.data(), rows.data());
    }
    // Remove and add; the map is made anew since an Array has no gaps.
    const auto type = this->direct_map.type;
    this->direct_map.type = faiss::DirectMap::NoMap;
    const idx_t ntotal = this->ntotal;
    remove_ids(faiss::IDSelectorBatch(nv, idx));
    this->add_with_ids(nv, v, idx);
    this->direct_map.clear();
    this->direct_map.type = type;
    if (type == faiss::DirectMap::Array) {
        this->direct_map.array.resize(ntotal, -1);
    }
    for (size_t i = 0; i < this->nlist; i++) {
        update_direct_map({*this, *this}, i, 0);
    }
}

template <class IVF>
void IndexIVFGMM<IVF>::check_compatible_for_merge(
        const faiss::Index& other) const {
    IVF::check_compatible_for_merge(other);
    auto that = dynamic_cast<const IndexIVFGMM*>(&other);
    FAISS_THROW_IF_NOT_MSG(
            that && that != this,
            "merge_from: expected another index of the same GMM type");
    FAISS_THROW_IF_NOT_FMT(
            that->max_assign == max_assign,
            "merge_from: max_assign = %zd, expected %zd",
            that->max_assign,
            max_assign);
    FAISS_THROW_IF_NOT_MSG(
            quantizer_means(*this) == quantizer_means(*that),
            "merge_from: the means differ");
}

template <class IVF>
void IndexIVFGMM<IVF>::merge_from(faiss::Index& other_index, idx_t add_id) {
    check_compatible_for_merge(other_index);
    auto& other = dynamic_cast<IndexIVFGMM&>(other_index);
    check_writable(*this);
    check_writable(other);
    adopt_strays({*this, *this});
    adopt_strays({other, other});
    std::vector<size_t> old_size(this->nlist);
    for (size_t i = 0; i < this->nlist; i++) {
        old_size[i] = this->invlists->list_size(i);
    }
    const float norm2_before = cells.norm2;
    IVF::merge_from(other_index, add_id);
    append_foreign({*this, *this}, old_size, other.earlier_lists);
    other.cells.clear_entries();
    other.earlier_lists.clear();
    after_growth({*this, *this}, norm2_before);
}

template <class IVF>
void IndexIVFGMM<IVF>::copy_subset_to(
        faiss::IndexIVF& other,
        subset_type_t subset_type,
        idx_t a1,
        idx_t a2) const {
    FAISS_THROW_IF_NOT_FMT(
            max_assign == 1,
            "copy_subset_to: max_assign = %zd, expected 1: copies would "
            "become vectors of their own",
            max_assign);
    std::vector<size_t> old_size(other.nlist);
    for (size_t i = 0; i < other.nlist; i++) {
        old_size[i] = other.invlists->list_size(i);
    }
    IVF::copy_subset_to(other, subset_type, a1, a2);
    if (auto gmm = dynamic_cast<IVFGMM*>(&other)) {
        const float norm2_before = gmm->cells.norm2;
        append_foreign({other, *gmm}, old_size, {});
        after_growth({other, *gmm}, norm2_before);
    }
}

template <class IVF>
void IndexIVFGMM<IVF>::calibrate(size_t nq, const float* xq, size_t k) {
    calibration = calibrate_index({*this, *this}, nq, xq, k);
    if (this->verbose) {
        printf("%s", calibration.report().c_str());
    }
}

template <class IVF>
void IndexIVFGMM<IVF>::optimize() {
    FAISS_THROW_IF_NOT_MSG(this->is_trained, "the index is not trained");
    if (max_assign == 1) {
        check_writable(*this);
        rebuild_cells({*this, *this});
    }
    if (size_t(this->ntotal) >= kMinCalibrationVectors) {
        calibrate_again({*this, *this});
    }
}

template <class IVF>
gmm::GaussianMixture IndexIVFGMM<IVF>::mixture() const {
    FAISS_THROW_IF_NOT_MSG(this->is_trained, "the index is not trained");
    gmm::GaussianMixture m;
    m.covariance = covariance;
    m.d = this->d;
    m.k = this->nlist;
    m.means = quantizer_means(*this);
    m.variances = variances;
    m.log_weights = log_weights;
    return m;
}

template struct IndexIVFGMM<faiss::IndexIVFFlat>;
template struct IndexIVFGMM<faiss::IndexIVFPQ>;
template struct IndexIVFGMM<faiss::IndexIVFScalarQuantizer>;

} // namespace faiss_ext
