#include "faiss_ext/ivflib.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <typeinfo>
#include <utility>
#include <vector>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/ThreadedIndex.h>
#include <faiss/impl/io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/GpuGMMClustering.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/io/before_writing.h"
#include "faiss_ext/store/add.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// At most that many vectors, evenly drawn from all lists.
std::vector<float> sample(const faiss::IndexIVF& ivf, size_t most) {
    const size_t d = ivf.d;
    const size_t n = ivf.invlists->compute_ntotal();
    const size_t wanted = std::min(n, most);
    std::vector<float> out, list;
    out.reserve(wanted * d);
    size_t seen = 0;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t size = ivf.invlists->list_size(i);
        decode_list(ivf, i, list);
        for (size_t j = 0; j < size; j++, seen++) {
            // Entry `seen` is taken if the scaled count steps there.
            if ((seen + 1) * wanted / n > seen * wanted / n) {
                out.insert(
                        out.end(),
                        list.begin() + j * d,
                        list.begin() + (j + 1) * d);
            }
        }
    }
    return out;
}

/// All vectors with their ids, in blocks of whole lists.
void add_all(const faiss::IndexIVF& from, faiss::IndexIVF& to) {
    std::vector<float> x, list;
    std::vector<idx_t> ids;
    auto flush = [&] {
        if (!ids.empty()) {
            to.add_with_ids(ids.size(), x.data(), ids.data());
        }
        x.clear();
        ids.clear();
    };
    for (size_t i = 0; i < from.nlist; i++) {
        const size_t size = from.invlists->list_size(i);
        decode_list(from, i, list);
        x.insert(x.end(), list.begin(), list.begin() + size * from.d);
        faiss::InvertedLists::ScopedIds list_ids(from.invlists, i);
        for (size_t j = 0; j < size; j++) {
            ids.push_back(list_ids[j]);
        }
        if (ids.size() >= kAddBlock) {
            flush();
        }
    }
    flush();
}

/// A centroid longer than that is of no k-means of directions.
constexpr float kDirection = 1.01f;

bool are_directions(size_t d, const std::vector<float>& x) {
    for (size_t i = 0; i < x.size(); i += d) {
        if (std::abs(norm_of(d, &x[i]) - 1) > kDirection - 1) {
            return false;
        }
    }
    return true;
}

} // namespace

std::unique_ptr<faiss::IndexIVF> swap_to_gmm(
        const faiss::IndexIVF& index, gmm::Covariance covariance) {
    check_metric(index.metric_type);
    FAISS_THROW_IF_NOT_MSG(
            index.is_trained && index.quantizer &&
                    size_t(index.quantizer->ntotal) == index.nlist,
            "swap_to_gmm: the index is not trained");
    FAISS_THROW_IF_NOT_FMT(
            index.ntotal >= idx_t(index.nlist),
            "swap_to_gmm: ntotal = %" PRId64
            ", expected at least nlist = %zu vectors to fit the mixture to",
            index.ntotal,
            index.nlist);
    std::unique_ptr<faiss::IndexIVF> out = copy_settings_as_gmm(index);
    FAISS_THROW_IF_NOT_FMT(
            out,
            "swap_to_gmm: index is a %s, expected FAISS's own IndexIVFFlat, "
            "IndexIVFPQ or IndexIVFScalarQuantizer",
            type_name(index).c_str());
    auto& part = dynamic_cast<IVFGMM&>(*out);

    FAISS_THROW_IF_NOT_FMT(
            !gmm::has_matrices(covariance),
            "swap_to_gmm: covariance = %s, expected isotropic, diagonal or "
            "tied_spherical",
            gmm::to_string(covariance));
    GpuGMMClustering clustering(index.d, index.nlist, index.cp);
    clustering.covariance = covariance;
    clustering.centroids = quantizer_means(index);
    clustering.hard_niter = 0; // the centroids are k-means' already
    clustering.verbose |= index.verbose;
    std::vector<float> x =
            sample(index, index.nlist * index.cp.max_points_per_centroid);
    // Residuals about means that are much shorter are out of a codec's range.
    std::vector<float> for_codec;
    if (is_ip(index)) {
        const bool beyond =
                longest_row(index.d, clustering.centroids) > kDirection;
        if (beyond) {
            for_codec = x;
        }
        // the mixture lives on the unit sphere
        faiss::fvec_renorm_L2(index.d, x.size() / index.d, x.data());
        // which no file says of centroids
        clustering.spherical |=
                beyond || are_directions(index.d, clustering.centroids);
        if (clustering.frozen_centroids) {
            shrink_into_unit_ball(index.d, clustering.centroids);
        }
    }
    std::unique_ptr<faiss::Index> means = empty_quantizer(index);
    clustering.train(x.size() / index.d, x.data(), *means);

    out->quantizer = means.release();
    out->own_fields = true;
    if (!for_codec.empty()) {
        out->faiss::IndexIVF::train(
                idx_t(for_codec.size() / index.d), for_codec.data());
    }
    part.covariance = covariance;
    part.variances = clustering.variances;
    part.log_weights = clustering.log_weights;
    part.backend = clustering.backend;
    out->replace_invlists(
            new faiss::ArrayInvertedLists(out->nlist, out->code_size), true);
    if (auto pq = dynamic_cast<faiss::IndexIVFPQ*>(out.get())) {
        pq->precompute_table();
    }

    // Cells and calibration once, at the end, and not with each doubling.
    part.cells_per_list = 1;
    part.calibrate_on_add = false;
    add_all(index, *out);
    part.cells_per_list = 0;
    part.calibrate_on_add = true;
    part.optimize();
    out->set_direct_map_type(index.direct_map.type);
    return out;
}

/// Whether a search of both takes the same times.
static bool of_one_kind(const faiss::Index& a, const faiss::Index& b) {
    return typeid(a) == typeid(b) && a.d == b.d &&
            dynamic_cast<const faiss::IndexIVF&>(a).code_size ==
            dynamic_cast<const faiss::IndexIVF&>(b).code_size;
}

void calibrate(faiss::Index* index, size_t nq, const float* xq, size_t k) {
    const std::vector<faiss::Index*> parts = innermost(index);
    FAISS_THROW_IF_NOT_MSG(!parts.empty(), "calibrate: the index has no parts");
    for (faiss::Index* part : parts) {
        gmm_of("calibrate", part);
    }
    check_rows("calibrate: xq", nq, index->d, xq);
    std::vector<float> x(xq, xq + nq * index->d);
    for (faiss::Index** inner; (inner = inside(index)); index = *inner) {
        if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(index)) {
            const float* y = pre->apply_chain(nq, x.data());
            if (y != x.data()) { // it is if the chain is empty
                const std::unique_ptr<const float[]> owner(y);
                x.assign(y, y + nq * (*inner)->d);
            }
        }
    }
    if (auto gmm = dynamic_cast<IVFGMM*>(index)) {
        return gmm->calibrate(nq, x.data(), k);
    }
    auto& whole = dynamic_cast<faiss::ThreadedIndex<faiss::Index>&>(*index);
    const Calibration& first = gmm_of("calibrate", parts[0]).calibration;
    for (int i = 0; i < whole.count(); i++) {
        std::vector<std::pair<Calibration*, Calibration::Costs>> own;
        for (faiss::Index* part : innermost(whole.at(i))) {
            if (i > 0 && of_one_kind(*part, *parts[0])) {
                Calibration& c = gmm_of("calibrate", part).calibration;
                own.emplace_back(&c, c.costs);
                c.costs = first.costs;
            }
        }
        try {
            calibrate(whole.at(i), nq, x.data(), k);
        } catch (...) {
            for (auto& [c, costs] : own) {
                c->costs = costs;
            }
            throw;
        }
    }
}

/// The IVF index behind transforms and id maps alone, or nullptr.
static faiss::IndexIVF* ivf_behind(faiss::Index* index) {
    while (faiss::Index** inner = inside(index)) {
        if (dynamic_cast<faiss::IndexRefine*>(index)) {
            return nullptr;
        }
        index = *inner;
    }
    return dynamic_cast<faiss::IndexIVF*>(index);
}

/// Entries get the ids that the map has for theirs. An IndexRefine around
/// reconstructs by itself and adds without ids, which spoils a Hashtable of
/// FAISS's own (DirectMapAdd::ntotal is not set).
static void rename_entries(
        faiss::IndexIVF& ivf, const faiss::IndexIDMap& map, bool refined) {
    const bool mapped = !ivf.direct_map.no() ||
            dynamic_cast<const faiss::IndexIDMap2*>(&map);
    if (ivf.ntotal == 0) {
        if (mapped && !refined) {
            ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
        }
        return;
    }
    check_writable(ivf);
    faiss::InvertedLists& lists = *ivf.invlists;
    for (size_t list = 0; list < ivf.nlist; list++) {
        check_writable(ivf, list);
        faiss::InvertedLists::ScopedIds ids(&lists, list);
        for (size_t j = 0; j < lists.list_size(list); j++) {
            FAISS_THROW_IF_NOT_FMT(
                    ids[j] >= 0 && size_t(ids[j]) < map.id_map.size(),
                    "entry %zu of list %zu is number %zd of an IndexIDMap that "
                    "has %zu",
                    j,
                    list,
                    ssize_t(ids[j]),
                    map.id_map.size());
        }
    }
    ivf.set_direct_map_type(faiss::DirectMap::NoMap);
    std::vector<uint8_t> code(ivf.code_size);
    for (size_t list = 0; list < ivf.nlist; list++) {
        for (size_t j = 0; j < lists.list_size(list); j++) {
            const idx_t id = map.id_map[lists.get_single_id(list, j)];
            {
                faiss::InvertedLists::ScopedCodes old(&lists, list, j);
                std::copy_n(old.get(), code.size(), code.begin());
            }
            lists.update_entry(list, j, id, code.data());
        }
    }
    if (mapped) {
        ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
    }
}

std::unique_ptr<faiss::Index> without_id_maps(
        std::unique_ptr<faiss::Index> index) {
    for (;;) {
        // the innermost first, whose ids those around it know
        faiss::Index* root = index.get();
        faiss::Index** innermost_map = nullptr;
        bool refined = false;
        for (faiss::Index** slot = &root; slot && *slot; slot = inside(*slot)) {
            refined |= dynamic_cast<faiss::IndexRefine*>(*slot) != nullptr;
            if (dynamic_cast<faiss::IndexIDMap*>(*slot) && ivf_behind(*slot)) {
                innermost_map = slot;
            }
        }
        if (!innermost_map) {
            return index;
        }
        auto map = dynamic_cast<faiss::IndexIDMap*>(*innermost_map);
        FAISS_THROW_IF_NOT_MSG(
                map->own_fields,
                "without_id_maps: expected an IndexIDMap that owns its index");
        rename_entries(*ivf_behind(map), *map, refined);
        faiss::Index* const inner = map->index;
        map->own_fields = false;
        if (innermost_map == &root) {
            index.reset(inner); // deletes the map
        } else {
            *innermost_map = inner;
            delete map;
        }
    }
}

/// Of OPQ a file has the matrix alone, which cannot be trained.
static void keep_opq(const faiss::Index* index, faiss::Index& copy) {
    faiss::Index* to = &copy;
    for (auto from = const_cast<faiss::Index*>(index);;) {
        auto pre = dynamic_cast<const faiss::IndexPreTransform*>(from);
        auto other = dynamic_cast<faiss::IndexPreTransform*>(to);
        for (size_t i = 0; pre && other && i < pre->chain.size(); i++) {
            if (auto opq = dynamic_cast<faiss::OPQMatrix*>(pre->chain[i])) {
                auto same = std::make_unique<faiss::OPQMatrix>(*opq);
                delete other->chain[i];
                other->chain[i] = same.release();
            }
        }
        faiss::Index **inner = inside(from), **other_inner = inside(to);
        if (!inner || !other_inner) {
            return;
        }
        from = *inner;
        to = *other_inner;
    }
}

static IndexGMM* mixture_of(faiss::Index* part) {
    auto ivf = dynamic_cast<faiss::IndexIVF*>(part);
    return dynamic_cast<IndexGMM*>(ivf ? ivf->quantizer : part);
}

static faiss::ProductQuantizer* codec_of(faiss::Index* part) {
    if (auto ivf = dynamic_cast<faiss::IndexIVFPQ*>(part)) {
        return &ivf->pq;
    }
    auto fast = dynamic_cast<faiss::IndexIVFPQFastScan*>(part);
    return fast ? &fast->pq : nullptr;
}

std::unique_ptr<faiss::Index> clone_index(const faiss::Index* index) {
    FAISS_THROW_IF_NOT_MSG(index, "clone_index: no index");
    const auto parts = innermost(const_cast<faiss::Index*>(index));
    int io_flags = 0;
    for (const faiss::Index* part : parts) {
        const faiss::OnDiskInvertedLists* lists = lists_on_disk(part);
        FAISS_THROW_IF_NOT_FMT(
                !lists || lists->read_only,
                "clone_index: the index's lists are in \"%s\", which a copy "
                "would write to as well; expected lists in memory, or an index "
                "read with IO_FLAG_READ_ONLY",
                lists->filename.c_str());
        io_flags |= lists ? faiss::IO_FLAG_READ_ONLY : 0;
    }
    faiss::VectorIOWriter writer;
    faiss_ext::write_index(index, &writer);
    faiss::VectorIOReader reader;
    reader.data = std::move(writer.data);
    std::unique_ptr<faiss::Index> copy(faiss_ext::read_index(
            static_cast<faiss::IOReader*>(&reader), io_flags));
    keep_opq(index, *copy);
    // How to train is in no file, nor are some settings of searches.
    const auto copies = innermost(copy.get());
    for (size_t i = 0; i < parts.size(); i++) {
        auto from = dynamic_cast<const faiss::IndexIVF*>(parts[i]);
        if (auto to = dynamic_cast<faiss::IndexIVF*>(copies[i]); from && to) {
            to->cp = from->cp;
            to->verbose = from->verbose;
            to->max_codes = from->max_codes;
            to->parallel_mode = from->parallel_mode;
        }
        auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(parts[i]);
        if (auto to = dynamic_cast<faiss::IndexIVFPQ*>(copies[i]); pq && to) {
            to->do_polysemous_training = pq->do_polysemous_training;
            to->polysemous_training = pq->polysemous_training;
            to->scan_table_threshold = pq->scan_table_threshold;
            to->polysemous_ht = pq->polysemous_ht;
        }
        const IndexGMM* mixture = mixture_of(parts[i]);
        if (IndexGMM* to = mixture_of(copies[i]); mixture && to) {
            to->cp = mixture->cp;
            to->verbose = mixture->verbose;
        }
        const faiss::ProductQuantizer* codec = codec_of(parts[i]);
        if (faiss::ProductQuantizer* to = codec_of(copies[i]); codec && to) {
            to->cp = codec->cp;
        }
    }
    return copy;
}

IVFGMM* extract_gmm(faiss::Index* index) {
    return index ? dynamic_cast<IVFGMM*>(*unwrap(&index)) : nullptr;
}

const IVFGMM* extract_gmm(const faiss::Index* index) {
    return index ? dynamic_cast<const IVFGMM*>(unwrap(index)) : nullptr;
}

std::vector<IVFGMM*> extract_gmms(faiss::Index* index) {
    std::vector<IVFGMM*> out;
    for (faiss::Index* part :
         index ? innermost(index) : std::vector<faiss::Index*>()) {
        if (IVFGMM* gmm = dynamic_cast<IVFGMM*>(part)) {
            out.push_back(gmm);
        }
    }
    return out;
}

} // namespace faiss_ext
