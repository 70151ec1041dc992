#include "faiss_ext/io/trailer.h"

#include <memory>

#include <faiss/IndexFlat.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/io/version2.h"
#include "faiss_ext/io/visit.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

using Kind = PayloadKind;

/// What the stock part does not hold where it is a shell: the ids, and how they
/// are mapped.
void write_ids(FieldWriter& ar, const faiss::IndexIVF& ivf) {
    ar.scalar(ivf.direct_map.type);
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t n = ivf.invlists->list_size(i);
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
        ar.scalar(n);
        ar.raw(ids.get(), n * sizeof(idx_t));
    }
}

/// Whether ids are 0 to one less than there are, which an Array wants.
bool is_sequential(const faiss::IndexIVF& ivf) {
    std::vector<bool> seen(ivf.invlists->compute_ntotal());
    for (size_t i = 0; i < ivf.nlist; i++) {
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
        for (size_t j = 0; j < ivf.invlists->list_size(i); j++) {
            if (ids[j] < 0 || size_t(ids[j]) >= seen.size() || seen[ids[j]]) {
                return false;
            }
            seen[ids[j]] = true;
        }
    }
    return true;
}

void read_ids(FieldReader& ar, faiss::IndexIVF& ivf) {
    int64_t map;
    ar.scalar(map);
    FAISS_THROW_IF_NOT_FMT(
            map >= 0 && map <= 2,
            "GMM trailer: a direct map of type %zd is unknown",
            ssize_t(map));
    std::vector<idx_t> ids;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t n = ar.count(0, sizeof(idx_t));
        ids.resize(n);
        ar.raw(ids.data(), n * sizeof(idx_t));
        ivf.invlists->resize(i, n);
        for (size_t j = 0; j < n; j++) {
            ivf.invlists->update_entry(i, j, ids[j], nullptr);
        }
    }
    // one that FAISS refused to make still names its type
    const bool made = map != faiss::DirectMap::Array || is_sequential(ivf);
    ivf.set_direct_map_type(
            made ? static_cast<faiss::DirectMap::Type>(map)
                 : faiss::DirectMap::NoMap);
}

std::unique_ptr<IndexGMM> quantizer_from(
        FieldReader& ar, const faiss::IndexFlat& flat, size_t nlist) {
    auto out = std::make_unique<IndexGMM>(
            flat.d, nlist, gmm::Covariance::isotropic, flat.metric_type);
    out->is_trained = flat.ntotal > 0;
    visit_quantizer(ar, *out);
    out->policy.validate();
    if (!out->is_trained) {
        return out;
    }
    FAISS_THROW_IF_NOT_FMT(
            size_t(flat.ntotal) == nlist,
            "GMM trailer: %zd means, expected nlist = %zu",
            ssize_t(flat.ntotal),
            nlist);
    // Not set_mixture: means that are normalised again are not the same bits.
    out->faiss::IndexFlat::add(nlist, flat.get_xb());
    as_faiss_exception([&] { out->mixture().validate(); });
    return out;
}

} // namespace

void write_gmm(const faiss::Index* index, faiss::IOWriter* writer, size_t at) {
    index = unwrap(index);
    FieldWriter ar{writer, at};
    const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(index);
    const auto* quantizer =
            dynamic_cast<const IndexGMM*>(ivf ? ivf->quantizer : index);
    if (auto gmm = dynamic_cast<const IVFGMM*>(index)) {
        if (has_vectors(*ivf)) {
            ar.scalar(Kind::ivf_gmm);
        } else {
            ar.scalar(Kind::codes);
            write_ids(ar, *ivf);
        }
        visit_ivf_gmm(ar, *ivf, *gmm);
    } else if (quantizer) {
        ar.scalar(Kind::quantizer);
        ar.scalar(quantizer->nlist);
        if (ivf) {
            visit_settings(ar, *ivf);
        }
        visit_quantizer(ar, *quantizer);
    }
}

void read_gmm(faiss::Index** index, FieldReader ar) {
    check_stock_part(**index);
    faiss::Index** slot = unwrap(index);
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(*slot);
    auto finish = [&] {
        FAISS_THROW_IF_NOT_FMT(
                ar.left == 0, "GMM trailer: %zu bytes too many", ar.left);
    };

    Kind kind;
    ar.scalar(kind);
    if (kind == Kind::ivf_gmm || kind == Kind::codes) {
        FAISS_THROW_IF_NOT_MSG(
                ivf, "GMM trailer: it is for an IVF index, which this is not");
        std::unique_ptr<faiss::IndexIVF> gmm = kind == Kind::codes
                ? take_as_codes_alone(*ivf)
                : take_as_gmm(*ivf);
        FAISS_THROW_IF_NOT_MSG(
                gmm, "GMM trailer: it is not for an IVF index of this type");
        delete *slot; // hollow now, whatever happens below
        *slot = gmm.release();
        ivf = dynamic_cast<faiss::IndexIVF*>(*slot);
        auto& part = dynamic_cast<IVFGMM&>(**slot);
        if (kind == Kind::codes) {
            read_ids(ar, *ivf);
        }
        visit_ivf_gmm(ar, *ivf, part);
        finish();
        check_search_settings(*ivf);
        if (kind == Kind::codes) { // the ids were not there before
            check_stock_part(**index);
        }
        if (ar.version == 2) {
            complete_version2({*ivf, part});
        }
        check_gmm_part(*ivf, part);
        return;
    }
    FAISS_THROW_IF_NOT_FMT(
            kind == Kind::quantizer,
            "GMM trailer: kind %d is unknown",
            int(kind));
    auto* flat = dynamic_cast<faiss::IndexFlat*>(ivf ? ivf->quantizer : *slot);
    FAISS_THROW_IF_NOT_MSG(
            flat, "GMM trailer: there is no flat index to hold the means");
    size_t nlist;
    ar.scalar(nlist);
    FAISS_THROW_IF_NOT_FMT(
            nlist > 0 && nlist < (size_t(1) << 31) &&
                    (!ivf || ivf->nlist == nlist),
            "GMM trailer: nlist = %zu does not fit the index",
            nlist);
    if (ivf) {
        visit_settings(ar, *ivf);
        check_search_settings(*ivf);
    }
    std::unique_ptr<IndexGMM> quantizer = quantizer_from(ar, *flat, nlist);
    finish();
    delete flat;
    if (ivf) {
        ivf->quantizer = quantizer.release();
        ivf->quantizer_trains_alone = 1;
    } else {
        *slot = quantizer.release();
    }
}

} // namespace faiss_ext
