#include "faiss_ext/IndexIVFGMM.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/impl/OfUnsortedLists.h"
#include "faiss_ext/impl/check_calls.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/scan/gmm_search.h"
#include "faiss_ext/store/add.h"
#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/free_room.h"
#include "faiss_ext/store/list_storage.h"
#include "faiss_ext/store/maintain.h"
#include "faiss_ext/store/strays.h"
#include "faiss_ext/store/take_entries.h"

namespace faiss_ext {

namespace {

/// What a call of FAISS's appended to an index's lists goes if it failed.
struct UndoGrowth {
    faiss::IndexIVF& index;
    const idx_t ntotal;
    std::vector<size_t> sizes;
    bool done = false;

    explicit UndoGrowth(faiss::IndexIVF& index)
            : index(index), ntotal(index.ntotal), sizes(index.nlist) {
        for (size_t i = 0; i < sizes.size(); i++) {
            sizes[i] = index.invlists->list_size(i);
        }
    }
    ~UndoGrowth() {
        for (size_t i = 0; i < sizes.size() && !done; i++) {
            shorten_list(*index.invlists, i, sizes[i]);
        }
        index.ntotal = done ? index.ntotal : ntotal;
    }
};

} // namespace

template <class IVF>
void IndexIVFGMM<IVF>::add_with_ids(
        idx_t n, const float* x, const idx_t* xids) {
    add_vectors({*this, *this}, n, x, xids, nullptr);
}

template <class IVF>
void IndexIVFGMM<IVF>::add_core(
        idx_t n,
        const float* x,
        const idx_t* xids,
        const idx_t* homes FAISS_EXT_ADD_CORE_TAIL_DECL) {
    FAISS_THROW_IF_NOT_MSG(
            homes || n == 0, "coarse_idx = nullptr, expected n lists");
    add_vectors({*this, *this}, n, x, xids, homes);
}

template <class IVF>
void IndexIVFGMM<IVF>::reset() {
    check_writable(*this);
    mend_free_room_if_full(this->invlists);
    IVF::reset();
    cells.undivide();
    cells.fitted_n = 0;
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
    check_search(*this, n, x, k, distances, labels);
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
    check_preassigned(
            *this,
            *this,
            "search_preassigned",
            n,
            x,
            assign,
            centroid_dis,
            params);
    check_answers(n, k, distances, labels);
    IVF::search_preassigned(
            n,
            x,
            k,
            assign,
            centroid_dis,
            distances,
            labels,
            store_pairs,
            OfUnsortedLists(params).params,
            stats);
}

template <class IVF>
void IndexIVFGMM<IVF>::range_search_preassigned(
        idx_t n,
        const float* x,
        float radius,
        const idx_t* assign,
        const float* centroid_dis,
        faiss::RangeSearchResult* result,
        bool store_pairs,
        const faiss::IVFSearchParameters* params,
        faiss::IndexIVFStats* stats) const {
    check_preassigned(
            *this,
            *this,
            "range_search_preassigned",
            n,
            x,
            assign,
            centroid_dis,
            params);
    check_result(n, result);
    IVF::range_search_preassigned(
            n,
            x,
            radius,
            assign,
            centroid_dis,
            result,
            store_pairs,
            OfUnsortedLists(params).params,
            stats);
}

template <class IVF>
void IndexIVFGMM<IVF>::range_search(
        idx_t n,
        const float* x,
        float radius,
        faiss::RangeSearchResult* result,
        const faiss::SearchParameters* params) const {
    check_rows("x", n, this->d, x);
    check_result(n, result);
    gmm_range_search(
            *this,
            *this,
            make_plan(*this, *this, params, 0),
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
    check_search(*this, n, x, k, distances, labels);
    check_rows("recons", n * k, this->d, recons);
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
            memset(out, -1, this->d * sizeof(float)); // NaNs, as FAISS does
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
    return faiss_ext::remove_ids({*this, *this}, sel);
}

template <class IVF>
void IndexIVFGMM<IVF>::update_vectors(
        int nv, const idx_t* idx, const float* v) {
    FAISS_THROW_IF_NOT_MSG(
            !this->direct_map.no(), "update_vectors needs a direct map");
    check_count("nv", nv);
    check_rows("v", nv, this->d, v);
    check_ids("idx", nv, 1, idx);
    check_storable("v", nv, this->d, v);
    for (int i = 0; i < nv; i++) {
        FAISS_THROW_IF_NOT_FMT(
                mapped_place(this->direct_map, idx[i]) >= 0,
                "idx[%d] = %zd, expected the id of a vector in the index",
                i,
                size_t(idx[i]));
    }
    faiss_ext::update_vectors({*this, *this}, nv, idx, v);
}

template <class IVF>
void IndexIVFGMM<IVF>::reconstruct(idx_t key, float* recons) const {
    FAISS_THROW_IF_NOT_MSG(
            !this->direct_map.no(),
            "reconstruct: the index has no direct map; "
            "set_direct_map_type(Hashtable) makes one");
    FAISS_THROW_IF_NOT_FMT(
            mapped_place(this->direct_map, key) >= 0,
            "reconstruct: key = %zd, expected the id of a vector in the index",
            ssize_t(key));
    check_trained(*this);
    check_rows("recons", 1, this->d, recons);
    IVF::reconstruct(key, recons);
}

template <class IVF>
void IndexIVFGMM<IVF>::reconstruct_n(idx_t i0, idx_t ni, float* recons) const {
    FAISS_THROW_IF_NOT_FMT(
            i0 >= 0 && ni >= 0 &&
                    ni <= this->ntotal - std::min(i0, this->ntotal),
            "reconstruct_n: i0 = %zd, ni = %zd, expected a range of ntotal = "
            "%zd vectors",
            ssize_t(i0),
            ssize_t(ni),
            ssize_t(this->ntotal));
    check_rows("recons", ni, this->d, recons);
    if (ni > 0) {
        check_trained(*this); // there are lists
        IVF::reconstruct_n(i0, ni, recons);
    }
}

/// In the calling thread, which FAISS's scalar quantizers share with others for
/// each vector.
template <class IVF>
void IndexIVFGMM<IVF>::reconstruct_from_offset(
        int64_t list_no, int64_t offset, float* recons) const {
    faiss::InvertedLists::ScopedCodes code(this->invlists, list_no, offset);
    decode_codes(*this, list_no, 1, code.get(), recons);
}

template <class IVF>
void IndexIVFGMM<IVF>::assign(
        idx_t n, const float* x, idx_t* labels, idx_t k) const {
    check_rows("x", n, this->d, x);
    check_labels(n, k, labels);
    IVF::assign(n, x, labels, k);
}

template <class IVF>
void IndexIVFGMM<IVF>::sa_encode(
        idx_t n, const float* x, uint8_t* bytes) const {
    check_trained(*this);
    check_finite("x", n, this->d, x); // others are of no list
    check_bytes("bytes", n, this->sa_code_size(), bytes);
    IVF::sa_encode(n, x, bytes);
}

template <class IVF>
void IndexIVFGMM<IVF>::sa_decode(
        idx_t n, const uint8_t* bytes, float* x) const {
    check_trained(*this);
    check_bytes("bytes", n, this->sa_code_size(), bytes);
    check_rows("x", n, this->d, x);
    check_lists_of_codes(*this, n, bytes);
    IVF::sa_decode(n, bytes, x);
}

template <class IVF>
void IndexIVFGMM<IVF>::check_compatible_for_merge(
        const faiss::Index& other) const {
    auto that = dynamic_cast<const IndexIVFGMM*>(&other);
    FAISS_THROW_IF_NOT_MSG(
            !that || (this->is_trained && that->is_trained),
            "merge_from: expected two trained indexes");
    FAISS_THROW_IF_NOT_FMT(
            that && that != this,
            "merge_from: other is %s, expected another %s",
            that ? "this index itself" : type_name(other).c_str(),
            type_name(*this).c_str());
    check_trained(*this);
    check_trained(*that);
    check_same_encoding("merge_from", *that, *this);
    IVF::check_compatible_for_merge(other);
    FAISS_THROW_IF_NOT_FMT(
            that->max_assign == max_assign,
            "merge_from: max_assign = %zd, expected %zd",
            that->max_assign,
            max_assign);
}

template <class IVF>
void IndexIVFGMM<IVF>::merge_from(faiss::Index& other_index, idx_t add_id) {
    check_interrupt();
    check_compatible_for_merge(other_index);
    auto& other = dynamic_cast<IndexIVFGMM&>(other_index);
    check_writable(other);
    adopt_strays({other, other});
    Growth growth({*this, *this}, "merge_from");
    take_entries(
            {*this, *this},
            *other.invlists,
            other.ntotal,
            add_id,
            other.earlier_lists);
    other.reset();
    growth.finish();
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
    if (!has_subset(*this, other, int(subset_type), a1, a2)) {
        return;
    }
    // FAISS ends the process where ntotal is not what lists hold, as after an
    // addition of vectors to none (add_core).
    IVF from;
    from.nlist = this->nlist;
    from.code_size = this->code_size;
    from.invlists = this->invlists;
    from.own_invlists = false;
    from.ntotal = idx_t(this->invlists->compute_ntotal());
    auto gmm = dynamic_cast<IVFGMM*>(&other);
    if (!gmm) {
        UndoGrowth undo(other);
        from.copy_subset_to(other, subset_type, a1, a2);
        other.ntotal = idx_t(other.invlists->compute_ntotal());
        undo.done = true;
        return;
    }
    FAISS_THROW_IF_NOT_MSG(
            other.direct_map.no(),
            "copy_subset_to: expected an index without a direct map");
    IVF subset; // FAISS knows what a subset is
    subset.nlist = other.nlist;
    subset.code_size = other.code_size;
    subset.invlists =
            new faiss::ArrayInvertedLists(other.nlist, other.code_size);
    subset.own_invlists = true;
    from.copy_subset_to(subset, subset_type, a1, a2);
    add_subset({other, *gmm}, *subset.invlists);
}

template <class IVF>
void IndexIVFGMM<IVF>::calibrate(size_t nq, const float* xq, size_t k) {
    check_trained(*this);
    if (is_writable(*this)) {
        adopt_strays({*this, *this});
    }
    Calibration fresh = calibrate_index({*this, *this}, nq, xq, k);
    fresh.norm2 = cells.norm2;
    calibration = std::move(fresh);
    cells.fitted_n = this->ntotal;
    if (this->verbose) {
        printf("%s", calibration.report().c_str());
    }
}

template <class IVF>
void IndexIVFGMM<IVF>::optimize() {
    check_trained(*this);
    // Where FAISS's own functions removed entries, the cells say nothing.
    const GMMIndexRef self{*this, *this};
    bool shrunk = false;
    for (size_t i = 0; i < this->nlist; i++) {
        shrunk |= known_size(self, i) > this->invlists->list_size(i);
    }
    if (!shrunk || max_assign > 1) {
        adopt_strays(self);
    }
    if (max_assign == 1) {
        check_writable(*this);
        rebuild_cells(self);
    }
    if (size_t(this->ntotal) >= kMinCalibrationVectors) {
        calibrate_again({*this, *this});
    }
}

template <class IVF>
bool IndexIVFGMM<IVF>::maintenance_due() const {
    auto& self = const_cast<IndexIVFGMM&>(*this); // which is only looked at
    return faiss_ext::maintenance_due({self, self});
}

template <class IVF>
void IndexIVFGMM<IVF>::maintain() {
    faiss_ext::maintain({*this, *this});
}

template <class IVF>
gmm::GaussianMixture IndexIVFGMM<IVF>::mixture() const {
    check_trained(*this);
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
template struct IndexIVFGMM<IndexIVFIds>;

} // namespace faiss_ext
