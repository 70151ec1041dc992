#include "faiss_ext/io/trailer.h"

#include <cmath>
#include <memory>
#include <string>
#include <type_traits>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFPQ.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/fields.h"

namespace faiss_ext {

namespace {

enum class Kind : uint32_t {
    ivf_gmm = 1,   ///< an IndexIVFGMM
    quantizer = 2, ///< an IndexGMM, alone or under a stock IVF index
};

/// What the stock index says about the shapes of the arrays.
struct Shape {
    size_t nlist;
    size_t d;
    bool is_trained;
    const faiss::InvertedLists* invlists; ///< nullptr: all are empty

    size_t list_size(size_t i) const {
        return invlists ? invlists->list_size(i) : 0;
    }
};

// One function for each struct, for both directions: what is written and what
// is read cannot drift apart. G is const when writing.

template <class Archive, class G>
void visit_mixture(Archive& ar, G& g, const Shape& shape) {
    ar.scalar(g.covariance);
    if constexpr (Archive::reading) {
        const int kind = int(g.covariance);
        FAISS_THROW_IF_NOT_FMT(
                kind >= 0 && kind <= int(gmm::Covariance::tied),
                "GMM trailer: covariance kind %d is unknown",
                kind);
    }
    const bool none = !shape.is_trained;
    ar.array(
            "variances",
            g.variances,
            gmm::num_variances(g.covariance, shape.nlist, shape.d),
            none);
    ar.array("log_weights", g.log_weights, shape.nlist, none);
    ar.text(g.backend);
}

template <class Archive, class G>
void visit_cells(Archive& ar, G& c, const Shape& shape) {
    ar.scalar(c.cells_per_list);
    ar.scalar(c.fitted_n);
    ar.scalar(c.norm2);
    if (c.empty()) {
        return;
    }
    ar.scalar(c.nlist);
    ar.scalar(c.n_partners);
    const size_t nlist = shape.nlist, L = c.cells_per_list;
    const size_t P = c.n_partners;
    if constexpr (Archive::reading) {
        FAISS_THROW_IF_NOT_FMT(
                c.nlist == nlist && L <= P && P < nlist,
                "GMM trailer: %zu cells of %zu partners in each of %zu lists, "
                "expected fewer than nlist = %zu in as many lists",
                L,
                P,
                c.nlist,
                nlist);
    }
    ar.array("cells.partner", c.partner, nlist * P);
    ar.array("cells.gap", c.gap, nlist * P);
    ar.array("cells.a", c.a, nlist);
    ar.array("cells.variance", c.variance, nlist * (L + 1));
    ar.array("cells.offsets", c.offsets, nlist * (L + 1));
    if constexpr (Archive::reading) {
        c.tail.resize(nlist);
    }
    for (size_t i = 0; i < nlist; i++) {
        size_t expected = c.tail[i].size();
        if constexpr (Archive::reading) {
            const uint32_t* offsets = c.list_offsets(i);
            bool ascending = true;
            for (size_t l = 0; l < L; l++) {
                ascending &= offsets[l] <= offsets[l + 1];
            }
            const size_t size = shape.list_size(i);
            FAISS_THROW_IF_NOT_FMT(
                    ascending && offsets[L] <= size,
                    "GMM trailer: the cells of list %zu do not fit its %zu "
                    "entries",
                    i,
                    size);
            expected = size - offsets[L];
        }
        ar.array("cells.tail", c.tail[i], expected);
    }
    bool sketched = !c.sketches.empty();
    ar.scalar(sketched);
    if (!sketched) {
        return;
    }
    if constexpr (Archive::reading) {
        c.sketches.resize(nlist);
    }
    for (size_t i = 0; i < nlist; i++) {
        ar.array("cells.sketches", c.sketches[i], shape.list_size(i));
        if constexpr (Archive::reading) {
            for (const Sketch& sketch : c.sketches[i]) {
                for (uint8_t partner : sketch.partner) {
                    FAISS_THROW_IF_NOT_FMT(
                            partner < P,
                            "GMM trailer: a sketch names partner %d of %zu",
                            int(partner),
                            P);
                }
            }
        }
    }
}

template <class Archive, class G>
void visit_calibration(Archive& ar, G& c, size_t d) {
    ar.scalar(c.fitted);
    ar.scalar(c.k);
    ar.scalar(c.ntotal);
    ar.scalar(c.nq);
    ar.scalar(c.own_queries);
    ar.array("calibration.queries", c.queries, c.own_queries ? 0 : c.nq * d);
    ar.array("calibration.tau_weights", c.tau_weights, c.tau_weights.size());
    ar.array(
            "calibration.cell_stop_weights",
            c.cell_stop_weights,
            c.cell_stop_weights.size());
    ar.array(
            "calibration.sketch_stop_weights",
            c.sketch_stop_weights,
            c.sketch_stop_weights.size());
    const size_t n_candidates = ar.count(c.candidates.size(), 8);
    if constexpr (Archive::reading) {
        c.candidates.resize(n_candidates);
    }
    for (auto& candidate : c.candidates) {
        ar.scalar(candidate.order);
        ar.scalar(candidate.by_mass);
        const size_t n_points = ar.count(candidate.curve.size(), 16);
        if constexpr (Archive::reading) {
            to_string(candidate.order); // throws for what is none
            candidate.curve.resize(n_points);
        }
        for (auto& point : candidate.curve) {
            ar.scalar(point.parameter);
            ar.scalar(point.recall);
            ar.scalar(point.distances);
            ar.scalar(point.cost);
        }
    }
}

/// Search settings of the stock part that FAISS does not write.
template <class Archive, class Index>
void visit_settings(Archive& ar, Index& ivf) {
    ar.scalar(ivf.max_codes);
    ar.scalar(ivf.parallel_mode);
    using PQ = std::conditional_t<
            Archive::reading,
            faiss::IndexIVFPQ,
            const faiss::IndexIVFPQ>;
    if (auto pq = dynamic_cast<PQ*>(&ivf)) {
        ar.scalar(pq->scan_table_threshold);
        ar.scalar(pq->polysemous_ht);
    }
}

template <class Archive, class Index, class G>
void visit_ivf_gmm(Archive& ar, Index& ivf, G& g) {
    const Shape shape{ivf.nlist, size_t(ivf.d), ivf.is_trained, ivf.invlists};
    visit_settings(ar, ivf);
    visit_mixture(ar, g, shape);
    ar.scalar(g.probe_order);
    ar.scalar(g.probe_mass);
    ar.scalar(g.target_recall);
    ar.scalar(g.cells_per_list);
    ar.scalar(g.sketch);
    ar.scalar(g.max_assign);
    ar.scalar(g.assign_ratio);
    ar.scalar(g.assign_threshold);
    ar.scalar(g.calibrate_on_add);
    visit_cells(ar, g.cells, shape);
    // Nothing, or a row of max_assign - 1 lists for each entry.
    const size_t lists = ar.count(g.earlier_lists.size(), 8);
    if constexpr (Archive::reading) {
        FAISS_THROW_IF_NOT_FMT(
                lists == 0 || lists == shape.nlist,
                "GMM trailer: earlier_lists of %zu lists, expected nlist = %zu",
                lists,
                shape.nlist);
        g.earlier_lists.resize(lists);
    }
    for (size_t i = 0; i < lists; i++) {
        size_t expected = 0;
        if (g.max_assign > 1 && g.max_assign <= shape.nlist) {
            expected = shape.list_size(i) * (g.max_assign - 1);
        }
        ar.array("earlier_lists", g.earlier_lists[i], expected);
    }
    visit_calibration(ar, g.calibration, ivf.d);
}

template <class Archive, class G>
void visit_quantizer(Archive& ar, G& q) {
    visit_mixture(ar, q, {q.nlist, size_t(q.d), q.is_trained, nullptr});
    ar.scalar(q.policy.order);
    ar.scalar(q.policy.probe_mass);
    ar.scalar(q.policy.exponent);
}

bool all_in_range(
        const std::vector<int32_t>& values, int64_t low, size_t high) {
    for (int64_t v : values) {
        if (v < low || v >= int64_t(high)) {
            return false;
        }
    }
    return true;
}

/// Values by which memory is addressed, or that nothing else checks.
void check_values(const IVFGMM& g, size_t nlist) {
    to_string(g.probe_order);
    const PairCells& c = g.cells;
    FAISS_THROW_IF_NOT_MSG(
            all_in_range(c.partner, 0, nlist),
            "GMM trailer: cells.partner names a list that is not there");
    for (const auto& tail : c.tail) {
        for (size_t cell : tail) {
            FAISS_THROW_IF_NOT_MSG(
                    cell < c.cells_per_list,
                    "GMM trailer: cells.tail names a cell that is not there");
        }
    }
    for (const auto& lists : g.earlier_lists) {
        FAISS_THROW_IF_NOT_MSG(
                all_in_range(lists, -1, nlist),
                "GMM trailer: earlier_lists names a list that is not there");
    }
    check_finite("GMM trailer: cells.a", 1, c.a.size(), c.a.data());
    check_finite(
            "GMM trailer: cells.variance",
            1,
            c.variance.size(),
            c.variance.data());
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
    gmm::GaussianMixture mixture;
    mixture.covariance = out->covariance;
    mixture.d = flat.d;
    mixture.k = nlist;
    mixture.means.assign(flat.get_xb(), flat.get_xb() + nlist * flat.d);
    mixture.variances = out->variances;
    mixture.log_weights = out->log_weights;
    as_faiss_exception([&] { mixture.validate(); });
    // Not set_mixture: means that are normalised again are not the same bits.
    out->faiss::IndexFlat::add(nlist, flat.get_xb());
    return out;
}

} // namespace

std::vector<uint8_t> serialize_gmm(const faiss::Index* index) {
    index = unwrap(index);
    FieldWriter ar;
    const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(index);
    const auto* quantizer =
            dynamic_cast<const IndexGMM*>(ivf ? ivf->quantizer : index);
    if (auto gmm = dynamic_cast<const IVFGMM*>(index)) {
        ar.scalar(Kind::ivf_gmm);
        visit_ivf_gmm(ar, *ivf, *gmm);
    } else if (quantizer) {
        ar.scalar(Kind::quantizer);
        ar.scalar(quantizer->nlist);
        if (ivf) {
            visit_settings(ar, *ivf);
        }
        visit_quantizer(ar, *quantizer);
    }
    return ar.bytes;
}

void deserialize_gmm(
        faiss::Index** index, const std::vector<uint8_t>& payload) {
    faiss::Index** slot = unwrap(index);
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(*slot);
    FieldReader ar{payload.data(), payload.data() + payload.size()};
    auto finish = [&] {
        FAISS_THROW_IF_NOT_FMT(
                ar.at == ar.end,
                "GMM trailer: %zu bytes too many",
                size_t(ar.end - ar.at));
    };

    Kind kind;
    ar.scalar(kind);
    if (kind == Kind::ivf_gmm) {
        FAISS_THROW_IF_NOT_MSG(
                ivf, "GMM trailer: it is for an IVF index, which this is not");
        std::unique_ptr<faiss::IndexIVF> gmm = take_as_gmm(*ivf);
        FAISS_THROW_IF_NOT_MSG(
                gmm, "GMM trailer: it is not for an IVF index of this type");
        delete *slot; // hollow now, whatever happens below
        *slot = gmm.release();
        ivf = dynamic_cast<faiss::IndexIVF*>(*slot);
        auto& part = dynamic_cast<IVFGMM&>(**slot);
        visit_ivf_gmm(ar, *ivf, part);
        finish();
        check_values(part, ivf->nlist);
        if (ivf->is_trained) {
            auto check = [&] { part.mixture().validate(); };
            as_faiss_exception(check);
        }
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
            nlist > 0 && (!ivf || ivf->nlist == nlist),
            "GMM trailer: nlist = %zu does not fit the index",
            nlist);
    if (ivf) {
        visit_settings(ar, *ivf);
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
