#include <algorithm>
#include <cinttypes>
#include <filesystem>
#include <system_error>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/io/check_parts.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// FAISS reads types that it does not know, and throws in threads of its own
/// once it is to use one, where nobody can catch it.
void check_known(const faiss::ScalarQuantizer& sq, bool trained) {
    using SQ = faiss::ScalarQuantizer;
    if (number_of(sq.qtype) <= SQ::QT_6bit ||
        (!trained && FAISS_EXT_FAISS_VERSION > 10703)) {
        return;
    }
    try {
        delete sq.select_quantizer();
    } catch (const faiss::FaissException&) {
        FAISS_THROW_FMT(
                "the scalar quantizer is of type %d, which this FAISS does "
                "not know",
                number_of(sq.qtype));
    }
}

void check_scalar_quantizer(
        const faiss::ScalarQuantizer& sq, size_t d, bool trained) {
    using SQ = faiss::ScalarQuantizer;
    check_equal("d of the scalar quantizer", sq.d, d);
    check_range("type of the scalar quantizer", number_of(sq.qtype), 0, 64);
    if (number_of(sq.qtype) > SQ::QT_6bit) {
        check_known(sq, trained);
        return; // newer than what every FAISS has
    }
    const bool uniform =
            sq.qtype == SQ::QT_8bit_uniform || sq.qtype == SQ::QT_4bit_uniform;
    const bool none = sq.qtype == SQ::QT_fp16 || sq.qtype == SQ::QT_8bit_direct;
    check_equal(
            "code size of the scalar quantizer",
            sq.code_size,
            SQ(d, sq.qtype).code_size);
    if (trained) {
        check_equal(
                "number of trained values of the scalar quantizer",
                sq.trained.size(),
                none              ? 0
                        : uniform ? 2
                                  : 2 * d);
        check_finite(
                "trained values of the scalar quantizer",
                1,
                sq.trained.size(),
                sq.trained.data());
    }
}

void check_product_quantizer(const faiss::ProductQuantizer& pq, size_t d) {
    check_equal("d of the product quantizer", pq.d, d);
    check_range("M of the product quantizer", pq.M, 1, d + 1);
    check_equal("d of the product quantizer modulo M", d % pq.M, 0);
    check_range("nbits of the product quantizer", pq.nbits, 1, 17);
    check_equal("dsub of the product quantizer", pq.dsub, d / pq.M);
    check_equal("ksub of the product quantizer", pq.ksub, 1 << pq.nbits);
    check_equal(
            "code size of the product quantizer",
            pq.code_size,
            (pq.M * pq.nbits + 7) / 8);
    check_equal(
            "number of centroids of the product quantizer",
            pq.centroids.size(),
            pq.ksub * d);
    check_finite(
            "centroids of the product quantizer",
            1,
            pq.centroids.size(),
            pq.centroids.data());
}

void check_codec(const faiss::IndexIVF& ivf) {
    const size_t d = ivf.d;
    if (auto sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&ivf)) {
        check_bool("by_residual", sq->by_residual);
        check_scalar_quantizer(sq->sq, d, ivf.is_trained);
        check_equal("code size", ivf.code_size, sq->sq.code_size);
    } else if (auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        check_bool("by_residual", pq->by_residual);
        check_product_quantizer(pq->pq, d);
        check_equal("code size", ivf.code_size, pq->pq.code_size);
    } else if (dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        check_equal("code size", ivf.code_size, d * sizeof(float));
    } else if (dynamic_cast<const IndexIVFIds*>(&ivf)) {
        check_equal("code size", ivf.code_size, 0);
    }
}

/// FAISS maps what the file says, and looks for lists there.
void check_lists_on_disk(const faiss::OnDiskInvertedLists& lists) {
    if (lists.totsize == 0) { // nothing is mapped
        check_equal(
                "number of entries on disk",
                std::count_if(
                        lists.lists.begin(),
                        lists.lists.end(),
                        [](const auto& l) { return l.capacity > 0; }),
                0);
        return;
    }
    std::error_code error;
    const auto bytes = std::filesystem::file_size(lists.filename, error);
    FAISS_THROW_IF_NOT_FMT(
            lists.filename.empty() || (!error && lists.totsize <= bytes),
            "\"%s\", where the inverted lists are, has %zu bytes, expected %zu",
            lists.filename.c_str(),
            error ? size_t(0) : size_t(bytes),
            lists.totsize);
    const size_t entry = lists.code_size + sizeof(idx_t);
    check_equal("number of lists on disk", lists.lists.size(), lists.nlist);
    for (const auto& l : lists.lists) {
        FAISS_THROW_IF_NOT_FMT(
                l.size <= l.capacity &&
                        (l.capacity == 0 ||
                         (l.offset <= lists.totsize &&
                          l.capacity <= (lists.totsize - l.offset) / entry)),
                "a list of %zu entries (room for %zu) at byte %zu of the %zu "
                "where the inverted lists are",
                l.size,
                l.capacity,
                l.offset,
                lists.totsize);
    }
    for (const auto& slot : lists.slots) {
        FAISS_THROW_IF_NOT_FMT(
                slot.offset <= lists.totsize &&
                        slot.capacity <= lists.totsize - slot.offset,
                "free room of %zu bytes at byte %zu of the %zu where the "
                "inverted lists are",
                slot.capacity,
                slot.offset,
                lists.totsize);
    }
}

void check_lists(const faiss::IndexIVF& ivf) {
    FAISS_THROW_IF_NOT_MSG(ivf.invlists, "the index has no inverted lists");
    check_equal("number of inverted lists", ivf.invlists->nlist, ivf.nlist);
    if (ivf.invlists->code_size != faiss::InvertedLists::INVALID_CODE_SIZE) {
        check_equal(
                "code size of the inverted lists",
                ivf.invlists->code_size,
                ivf.code_size);
    }
    if (auto disk =
                dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf.invlists)) {
        check_lists_on_disk(*disk);
    }
    FAISS_THROW_IF_NOT_FMT(
            ivf.is_trained || ivf.invlists->compute_ntotal() == 0,
            "the index is not trained, and its lists hold %zu entries",
            ivf.invlists->compute_ntotal());
}

void check_direct_map(const faiss::IndexIVF& ivf) {
    const faiss::DirectMap& map = ivf.direct_map;
    auto check_place = [&](idx_t id, idx_t at) {
        FAISS_THROW_IF_NOT_FMT(
                is_at(ivf, at, id),
                "the index does not fit together: id %" PRId64
                " is not where the direct map says (%" PRId64 ")",
                int64_t(id),
                int64_t(at));
    };
    check_range("type of the direct map", number_of(map.type), 0, 3);
    if (map.type == faiss::DirectMap::Array) {
        check_equal("size of the direct map", map.array.size(), ivf.ntotal);
        for (size_t id = 0; id < map.array.size(); id++) {
            if (map.array[id] != -1) {
                check_place(id, map.array[id]);
            }
        }
    } else if (map.type == faiss::DirectMap::Hashtable) {
        for (const auto& [id, at] : map.hashtable) {
            check_place(id, at);
        }
    }
}

void check_ivf(const faiss::IndexIVF& ivf) {
    check_range("nlist", ivf.nlist, 1, INT64_C(1) << 31);
    check_search_settings(ivf);
    check_quantizer(ivf);
    check_codec(ivf);
    check_lists(ivf);
    check_direct_map(ivf);
}

void check_transform(const faiss::VectorTransform& transform, bool trained) {
    check_range("input dimension", transform.d_in, 1, INT64_C(1) << 24);
    check_range("output dimension", transform.d_out, 1, INT64_C(1) << 24);
    check_bool("training of a transform", transform.is_trained);
    if (!trained) {
        return;
    }
    check_equal("training of a transform", transform.is_trained, true);
    const size_t in = transform.d_in, out = transform.d_out;
    if (auto t = dynamic_cast<const faiss::LinearTransform*>(&transform)) {
        check_bool("have_bias", t->have_bias);
        check_equal("size of a transform's matrix", t->A.size(), in * out);
        check_finite("A", 1, t->A.size(), t->A.data());
        if (t->have_bias) {
            check_equal("size of a transform's bias", t->b.size(), out);
            check_finite("b", 1, t->b.size(), t->b.data());
        }
    }
    if (auto t = dynamic_cast<const faiss::RemapDimensionsTransform*>(
                &transform)) {
        check_equal("size of a transform's map", t->map.size(), out);
        for (int from : t->map) {
            check_range("dimension in a transform's map", from, -1, in);
        }
    }
    if (auto t = dynamic_cast<const faiss::CenteringTransform*>(&transform)) {
        check_equal("size of a transform's mean", t->mean.size(), in);
    }
    if (dynamic_cast<const faiss::NormalizationTransform*>(&transform) ||
        dynamic_cast<const faiss::CenteringTransform*>(&transform)) {
        check_equal("output dimension", out, in);
    }
}

/// Throws unless all ids that a search can return are below a limit: what is
/// around the index looks them up without a question.
void check_ids(const faiss::Index& index, idx_t limit) {
    if (auto map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
        for (idx_t id : map->id_map) {
            check_range("id in the IDMap", id, 0, limit);
        }
    } else if (
            auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
        check_ids(*pre->index, limit);
    } else if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
        check_ids(*refine->base_index, limit);
    } else if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
        for (size_t i = 0; i < ivf->nlist; i++) {
            const size_t n = ivf->invlists->list_size(i);
            if (n == 0) {
                continue;
            }
            faiss::InvertedLists::ScopedIds ids(ivf->invlists, i);
            for (size_t j = 0; j < n; j++) {
                check_range("id in a list under a wrapper", ids[j], 0, limit);
            }
        }
    }
}

void check_refine(const faiss::IndexRefine& refine) {
    FAISS_THROW_IF_NOT_MSG(
            refine.refine_index, "the IndexRefine has no index to refine by");
    const faiss::Index& by = *refine.refine_index;
    check_header(by);
    check_equal("d of the refining index", by.d, refine.d);
    check_equal("ntotal of the refining index", by.ntotal, refine.ntotal);
    check_equal(
            "metric of the refining index", by.metric_type, refine.metric_type);
    FAISS_THROW_IF_NOT_FMT(
            refine.k_factor >= 1 && refine.k_factor < 1e9f,
            "k_factor = %g, expected from 1 to 1e9",
            refine.k_factor);
    if (auto flat = dynamic_cast<const faiss::IndexFlat*>(&by)) {
        check_flat("vectors to refine by", *flat, by.d, by.ntotal);
    } else if (
            auto sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(&by)) {
        check_scalar_quantizer(sq->sq, by.d, by.is_trained);
        check_equal("code size", sq->code_size, sq->sq.code_size);
    } else if (auto pq = dynamic_cast<const faiss::IndexPQ*>(&by)) {
        check_product_quantizer(pq->pq, by.d);
        check_equal("code size", pq->code_size, pq->pq.code_size);
    }
    if (auto coded = dynamic_cast<const faiss::IndexFlatCodes*>(&by)) {
        const size_t bytes = coded->codes.size();
        check_range("code size to refine by", coded->code_size, 1, 1 << 24);
        check_equal("codes to refine by", bytes % coded->code_size, 0);
        check_equal("codes to refine by", bytes / coded->code_size, by.ntotal);
    }
    check_ids(*refine.base_index, refine.ntotal);
}

} // namespace

void check_search_settings(const faiss::IndexIVF& ivf) {
    check_range(
            "parallel_mode",
            ivf.parallel_mode & ~ivf.PARALLEL_MODE_NO_HEAP_INIT,
            0,
            4);
    auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf);
    FAISS_THROW_IF_NOT_FMT(
            !pq || pq->polysemous_ht == 0 || pq->pq.nbits == 8,
            "polysemous_ht = %d, expected 0 for codes of other than 8 bits",
            pq->polysemous_ht);
}

void check_scalar_quantizers_known(const faiss::Index& index) {
    const faiss::Index* within[2] = {};
    if (faiss::Index** slot = inside(const_cast<faiss::Index*>(&index))) {
        within[0] = *slot;
        if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
            within[1] = refine->refine_index;
        }
    } else if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
        within[0] = ivf->quantizer;
    } else if (auto hnsw = dynamic_cast<const faiss::IndexHNSW*>(&index)) {
        within[0] = hnsw->storage;
    } else if (auto nsg = dynamic_cast<const faiss::IndexNSG*>(&index)) {
        within[0] = nsg->storage;
    }
    for (const faiss::Index* part : within) {
        if (part) {
            check_scalar_quantizers_known(*part);
        }
    }
    if (auto sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(&index)) {
        check_known(sq->sq, sq->is_trained);
    } else if (
            auto lists = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(
                    &index)) {
        check_known(lists->sq, lists->is_trained);
    }
}

void check_stock_part(const faiss::Index& index) {
    check_header(index);
    auto* writable = const_cast<faiss::Index*>(&index);
    if (faiss::Index** slot = inside(writable)) {
        const faiss::Index* inner = *slot;
        FAISS_THROW_IF_NOT_MSG(inner, "a wrapper holds no index");
        check_stock_part(*inner);
        check_equal("ntotal of a wrapper", index.ntotal, inner->ntotal);
        check_equal(
                "metric of a wrapper", index.metric_type, inner->metric_type);
        check_equal(
                "training of what a wrapper holds",
                !index.is_trained || inner->is_trained,
                true);
        int d = index.d;
        if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
            for (const faiss::VectorTransform* transform : pre->chain) {
                FAISS_THROW_IF_NOT_MSG(transform, "a transform is missing");
                check_equal("input dimension", transform->d_in, d);
                check_transform(*transform, index.is_trained);
                d = transform->d_out;
            }
        }
        check_equal("d of what a wrapper holds", inner->d, d);
        if (auto map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
            check_equal("size of the IDMap", map->id_map.size(), index.ntotal);
            check_ids(*inner, index.ntotal);
        }
        if (auto refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
            check_refine(*refine);
        }
    } else if (auto ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
        check_ivf(*ivf);
    } else if (auto flat = dynamic_cast<const faiss::IndexFlat*>(&index)) {
        check_flat("means", *flat, index.d, index.ntotal);
    }
}

} // namespace faiss_ext
