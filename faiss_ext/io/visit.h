#pragma once

// The fields of the trailer. One function for each struct, for both directions:
// what is written and what is read cannot drift apart. Archive is FieldWriter
// or FieldReader (fields.h), G is const when writing.

#include <type_traits>

#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/io/ids_on_disk.h"
#include "faiss_ext/io/version2.h"

namespace faiss_ext {

// The numbers of enums in files.
static_assert(int(gmm::Covariance::isotropic) == 0);
static_assert(int(gmm::Covariance::diagonal) == 1);
static_assert(int(gmm::Covariance::tied_spherical) == 2);
static_assert(int(gmm::Covariance::full) == 3);
static_assert(int(gmm::Covariance::tied) == 4);
static_assert(int(ProbeOrder::calibrated) == 0);
static_assert(int(ProbeOrder::distance) == 1);
static_assert(int(ProbeOrder::log_likelihood) == 2);
static_assert(int(ProbeOrder::scale_free) == 3);
static_assert(int(ProbeOrder::codes) == 4);

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
    if (gmm::has_matrices(g.covariance)) {
        if constexpr (requires { g.precisions_cholesky; }) {
            ar.array(
                    "precisions_cholesky",
                    g.precisions_cholesky,
                    gmm::num_factors(g.covariance, shape.nlist, shape.d),
                    none);
        } else {
            FAISS_THROW_FMT(
                    "covariance = %s, expected isotropic, diagonal or "
                    "tied_spherical in an IndexIVFGMM",
                    gmm::to_string(g.covariance));
        }
    }
    ar.array("log_weights", g.log_weights, shape.nlist, none);
    ar.text(g.backend);
}

template <class Archive, class G>
void visit_codes(
        Archive& ar, G& c, const Shape& shape, const IVFGMM& gmm, bool ip) {
    int bits = c.codes.shape.bits;
    ar.scalar(bits);
    if constexpr (Archive::reading) {
        const gmm::GaussianMixture mixture = gmm.mixture();
        c.codes.init(shape.nlist, shape.d, bits, mixture.means.data(), ip);
    }
    ar.scalar(c.codes.error);
    if (ar.version > 3) {
        ar.align();
    }
    for (size_t i = 0; i < shape.nlist; i++) {
        const size_t blocks =
                (c.list_size(i) + kBlockEntries - 1) / kBlockEntries;
        const size_t bytes = blocks * c.codes.shape.block_bytes();
        if (ar.version > 3) {
            ar.blocks(c.codes.blocks[i], bytes);
        } else {
            ar.array("codes.blocks", c.codes.blocks[i], bytes);
        }
    }
}

template <class Archive, class G>
void visit_cells(
        Archive& ar, G& c, const Shape& shape, const IVFGMM& gmm, bool ip) {
    if constexpr (Archive::reading) {
        if (ar.version == 2) {
            read_cells_of_version2(ar, c, *shape.invlists, shape.nlist);
            return;
        }
    }
    ar.scalar(c.cells_per_list);
    ar.scalar(c.fitted_n);
    ar.scalar(c.norm2);
    if (c.empty()) {
        return;
    }
    const size_t nlist = shape.nlist, L = c.cells_per_list;
    if constexpr (Archive::reading) {
        FAISS_THROW_IF_NOT_FMT(
                L < nlist || L == 1,
                "GMM trailer: %zu cells of each list, expected fewer than "
                "nlist = %zu",
                L,
                nlist);
        c.nlist = nlist;
        c.n_partners = L;
    }
    ar.array("cells.partner", c.partner, nlist * L);
    ar.array("cells.gap", c.gap, nlist * L);
    ar.array("cells.a", c.a, nlist);
    ar.array("cells.offsets", c.offsets, nlist * (L + 1));
    ar.array("cells.fitted_size", c.fitted_size, nlist);
    if constexpr (Archive::reading) {
        check_offsets(c, *shape.invlists);
    }
    visit_codes(ar, c, shape, gmm, ip);
}

template <class Archive, class G>
void visit_calibration(Archive& ar, G& c, size_t d) {
    if constexpr (Archive::reading) {
        if (ar.version == 2) {
            read_calibration_of_version2(ar, c, d);
            return;
        }
    }
    ar.scalar(c.fitted);
    ar.scalar(c.k);
    ar.scalar(c.ntotal);
    ar.scalar(c.nq);
    ar.scalar(c.own_queries);
    ar.scalar(c.norm2);
    if (ar.version > 4) {
        ar.scalar(c.farthest);
    }
    if constexpr (Archive::reading) {
        FAISS_THROW_IF_NOT_FMT(
                c.nq < (size_t(1) << 48) / d,
                "GMM trailer: calibration.nq = %zu is more than there can be",
                c.nq);
    }
    ar.array("calibration.queries", c.queries, c.own_queries ? 0 : c.nq * d);
    ar.scalar(c.costs.query);
    ar.scalar(c.costs.code);
    ar.scalar(c.costs.distance);
    ar.scalar(c.costs.scan);
    const size_t n_curves = ar.count(c.curves.size(), 16);
    if constexpr (Archive::reading) {
        c.curves.resize(n_curves);
    }
    for (auto& curve : c.curves) {
        ar.scalar(curve.k);
        const size_t n_points = ar.count(curve.points.size(), 25);
        if constexpr (Archive::reading) {
            curve.points.resize(n_points);
        }
        for (auto& point : curve.points) {
            ar.scalar(point.by_codes);
            ar.scalar(point.budget);
            ar.scalar(point.bound);
            ar.scalar(point.recall);
            ar.scalar(point.codes);
            ar.scalar(point.distances);
            ar.scalar(point.cost);
            if (ar.version > 6) {
                ar.scalar(point.reach);
            }
        }
    }
}

template <class Archive, class Order>
void visit_order(Archive& ar, Order& order) {
    if constexpr (Archive::reading) {
        order = read_order(ar);
    } else {
        ar.scalar(order);
    }
}

template <class Archive, class Bits>
void visit_code_bits(Archive& ar, Bits& bits) {
    if constexpr (Archive::reading) {
        if (ar.version == 2) {
            skip_sketched(ar);
            return;
        }
    }
    ar.scalar(bits);
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
        if constexpr (Archive::reading) {
            pq->do_polysemous_training = true; // FAISS's default for PQ
            if (ar.version > 2) {
                ar.scalar(pq->do_polysemous_training);
            }
        } else {
            ar.scalar(pq->do_polysemous_training);
        }
    }
}

/// Who maps a file does not want all ids read.
template <class Archive, class Index>
void visit_ids_on_disk(Archive& ar, Index& ivf) {
    std::vector<uint64_t> checksums;
    if constexpr (!Archive::reading) {
        checksums = checksums_of_ids_on_disk(ivf);
    }
    ar.array("checksums of ids", checksums, ivf.nlist, true);
    if constexpr (Archive::reading) {
        if (!ar.mapped) {
            check_ids_on_disk(ivf, checksums);
        }
    }
}

template <class Archive, class Index, class G>
void visit_ivf_gmm(Archive& ar, Index& ivf, G& g) {
    const Shape shape{ivf.nlist, size_t(ivf.d), ivf.is_trained, ivf.invlists};
    visit_settings(ar, ivf);
    visit_mixture(ar, g, shape);
    visit_order(ar, g.probe_order);
    ar.scalar(g.probe_mass);
    ar.scalar(g.target_recall);
    ar.scalar(g.cells_per_list);
    visit_code_bits(ar, g.code_bits);
    ar.scalar(g.max_assign);
    ar.scalar(g.assign_ratio);
    ar.scalar(g.assign_threshold);
    ar.scalar(g.calibrate_on_add);
    visit_cells(ar, g.cells, shape, g, is_ip(ivf));
    // Nothing, or a row of max_assign - 1 lists for each entry.
    const size_t lists = ar.count(g.earlier_lists.size(), 8);
    if constexpr (Archive::reading) {
        FAISS_THROW_IF_NOT_FMT(
                g.max_assign > 0 && g.max_assign < (size_t(1) << 31),
                "GMM trailer: max_assign = %zu, expected from 1 to 2^31",
                g.max_assign);
        FAISS_THROW_IF_NOT_FMT(
                lists == 0 || lists == shape.nlist,
                "GMM trailer: earlier_lists of %zu lists, expected nlist = %zu",
                lists,
                shape.nlist);
        g.earlier_lists.resize(lists);
        g.filled_assign = g.max_assign;
    }
    for (size_t i = 0; i < lists; i++) {
        ar.array(
                "earlier_lists",
                g.earlier_lists[i],
                shape.list_size(i) * (g.max_assign - 1));
    }
    if constexpr (Archive::reading) {
        if (g.max_assign == 1) { // of an index that was emptied
            g.earlier_lists.clear();
        }
    }
    visit_calibration(ar, g.calibration, ivf.d);
    if (ar.version > 5) {
        visit_ids_on_disk(ar, ivf);
    }
}

template <class Archive, class G>
void visit_quantizer(Archive& ar, G& q) {
    visit_mixture(ar, q, {q.nlist, size_t(q.d), q.is_trained, nullptr});
    visit_order(ar, q.policy.order);
    ar.scalar(q.policy.probe_mass);
    ar.scalar(q.policy.exponent);
}

} // namespace faiss_ext
