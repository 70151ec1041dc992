#include "faiss_ext/impl/convert.h"

#include <algorithm>
#include <typeinfo>
#include <utility>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/ThreadedIndex.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

faiss::Index** inside(faiss::Index* index) {
    if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(index)) {
        return &pre->index;
    }
    if (auto map = dynamic_cast<faiss::IndexIDMap*>(index)) {
        return &map->index;
    }
    if (auto refine = dynamic_cast<faiss::IndexRefine*>(index)) {
        return &refine->base_index;
    }
    return nullptr;
}

faiss::Index** unwrap(faiss::Index** index) {
    while (faiss::Index** inner = inside(*index)) {
        index = inner;
    }
    return index;
}

const faiss::Index* unwrap(const faiss::Index* index) {
    auto* writable = const_cast<faiss::Index*>(index);
    return *unwrap(&writable);
}

std::vector<faiss::Index*> innermost(faiss::Index* index) {
    index = *unwrap(&index);
    auto parts = dynamic_cast<faiss::ThreadedIndex<faiss::Index>*>(index);
    if (!parts) {
        return {index};
    }
    std::vector<faiss::Index*> out;
    for (int i = 0; i < parts->count(); i++) {
        const std::vector<faiss::Index*> some = innermost(parts->at(i));
        out.insert(out.end(), some.begin(), some.end());
    }
    return out;
}

void limit_fast_scan(faiss::Index& index) {
    for (faiss::Index* part : innermost(&index)) {
        if (auto ivf = dynamic_cast<faiss::IndexIVFFastScan*>(part)) {
            ivf->nprobe = std::min(ivf->nprobe, ivf->nlist);
        }
    }
}

IVFGMM& gmm_of(const std::string& what, faiss::Index* index) {
    FAISS_THROW_IF_NOT_FMT(index, "%s: no index", what.c_str());
    auto gmm = dynamic_cast<IVFGMM*>(index);
    FAISS_THROW_IF_NOT_FMT(
            gmm,
            "%s: a %s has no mixture in its lists, expected an index of "
            "GMM<nlist> with Flat, PQ<M>, SQ<bits> or RaBitQ",
            what.c_str(),
            type_name(*index).c_str());
    return *gmm;
}

namespace {

/// What the codec learnt, and how it is used.
void copy_codec(const faiss::IndexIVFFlat&, faiss::IndexIVFFlat&) {}

void copy_codec(const faiss::IndexIVFPQ& from, faiss::IndexIVFPQ& to) {
    to.by_residual = from.by_residual;
    to.pq = from.pq;
    to.do_polysemous_training = from.do_polysemous_training;
    to.polysemous_training = from.polysemous_training;
    to.scan_table_threshold = from.scan_table_threshold;
    to.polysemous_ht = from.polysemous_ht;
    to.use_precomputed_table = from.use_precomputed_table;
}

void copy_codec(
        const faiss::IndexIVFScalarQuantizer& from,
        faiss::IndexIVFScalarQuantizer& to) {
    to.by_residual = from.by_residual;
    to.sq = from.sq;
}

/// What belongs to the lists and not to the codec.
void move_tables(faiss::IndexIVF&, faiss::IndexIVF&) {}

void move_tables(faiss::IndexIVFPQ& from, faiss::IndexIVFPQ& to) {
    if (from.precomputed_table.size() > 0) { // FAISS copies from nullptr else
        to.precomputed_table = std::move(from.precomputed_table);
    }
}

/// But for what is the codec's.
void copy_settings(const faiss::IndexIVF& from, faiss::IndexIVF& to) {
    static_cast<faiss::Index&>(to) = from;
    static_cast<faiss::Level1Quantizer&>(to) = from;
    to.quantizer = nullptr;
    to.own_fields = false;
    to.ntotal = 0;
    to.nprobe = from.nprobe;
    to.max_codes = from.max_codes;
    to.parallel_mode = from.parallel_mode;
}

template <class IVF>
std::unique_ptr<IndexIVFGMM<IVF>> copy_as_gmm(const IVF& from) {
    auto to = std::make_unique<IndexIVFGMM<IVF>>();
    copy_settings(from, *to);
    to->code_size = from.code_size;
    copy_codec(from, *to);
    return to;
}

void take_quantizer(faiss::IndexIVF& from, faiss::IndexIVF& to) {
    to.ntotal = from.ntotal;
    to.quantizer = std::exchange(from.quantizer, nullptr);
    to.own_fields = std::exchange(from.own_fields, false);
}

/// f(stock as what it is) if it is exactly one of the types that have an
/// IndexIVFGMM: a subclass holds more than its base.
template <class Index, class F>
std::unique_ptr<faiss::IndexIVF> with_type(Index& stock, F f) {
    auto try_type = [&]<class IVF>(std::type_identity<IVF>) {
        using Same = std::conditional_t<std::is_const_v<Index>, const IVF, IVF>;
        return typeid(stock) == typeid(IVF)
                ? std::unique_ptr<faiss::IndexIVF>(f(static_cast<Same&>(stock)))
                : nullptr;
    };
    auto out = try_type(std::type_identity<faiss::IndexIVFFlat>());
    if (!out) {
        out = try_type(std::type_identity<faiss::IndexIVFPQ>());
    }
    if (!out) {
        out = try_type(std::type_identity<faiss::IndexIVFScalarQuantizer>());
    }
    return out;
}

} // namespace

std::unique_ptr<faiss::IndexIVF> take_as_gmm(faiss::IndexIVF& stock) {
    return with_type(stock, [](auto& from) {
        auto to = copy_as_gmm(from);
        take_quantizer(from, *to);
        to->invlists = std::exchange(from.invlists, nullptr);
        to->own_invlists = std::exchange(from.own_invlists, false);
        to->direct_map = std::move(from.direct_map);
        move_tables(from, *to);
        return to;
    });
}

std::unique_ptr<faiss::IndexIVF> copy_settings_as_gmm(
        const faiss::IndexIVF& stock) {
    return with_type(stock, [](auto& from) { return copy_as_gmm(from); });
}

std::unique_ptr<IndexIVFRaBitQGMM> take_as_codes_alone(faiss::IndexIVF& stock) {
    bool is_flat = typeid(stock) == typeid(faiss::IndexIVFFlat);
    for (size_t i = 0; is_flat && stock.invlists && i < stock.nlist; i++) {
        is_flat = stock.invlists->list_size(i) == 0;
    }
    if (!is_flat) {
        return nullptr;
    }
    auto to = std::make_unique<IndexIVFRaBitQGMM>();
    copy_settings(stock, *to);
    to->code_size = 0;
    to->invlists = new faiss::ArrayInvertedLists(stock.nlist, 0);
    to->own_invlists = true;
    to->code_bits = 1;
    take_quantizer(stock, *to);
    return to;
}

} // namespace faiss_ext
