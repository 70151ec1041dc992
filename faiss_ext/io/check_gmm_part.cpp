#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// Counters: far above what there is, and far below
/// what sums and products of them overflow at.
constexpr size_t kMaxCount = size_t(1) << 48;
/// Vectors in no list that even an empty index may count.
constexpr size_t kNowhere = 500;

void check_count_below(const char* what, size_t value, size_t limit) {
    FAISS_THROW_IF_NOT_FMT(
            value < limit, "%s = %zu, expected below %zu", what, value, limit);
}

template <class T>
void check_size(const char* what, const std::vector<T>& values, size_t n) {
    FAISS_THROW_IF_NOT_FMT(
            values.size() == n,
            "%s has %zu entries, expected %zu",
            what,
            values.size(),
            n);
}

template <class Array>
void check_between(
        const char* what, const Array& values, double low, double high) {
    for (const auto& v : values) {
        FAISS_THROW_IF_NOT_FMT(
                double(v) >= low && double(v) <= high,
                "%s holds %g, expected from %g to %g",
                what,
                double(v),
                low,
                high);
    }
}

/// The largest finite float.
constexpr double kMaxFloat = 3.4028234663852886e38;

void check_settings(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    check_count_below("max_codes (0: no cap)", ivf.max_codes, kMaxCount);
    to_string(gmm.probe_order); // throws for what is none
    check_shares(gmm.probe_mass, gmm.target_recall);
    FAISS_THROW_IF_NOT_FMT(
            gmm.assign_ratio >= 0,
            "assign_ratio = %g, expected at least 0",
            gmm.assign_ratio);
    FAISS_THROW_IF_NOT_FMT(
            !std::isnan(gmm.assign_threshold),
            "assign_threshold = %g, expected a number",
            gmm.assign_threshold);
    FAISS_THROW_IF_NOT_MSG(
            gmm.max_assign > 0, "max_assign = 0, expected at least 1");
    check_count_below("max_assign", gmm.max_assign, size_t(1) << 31);
    FAISS_THROW_IF_NOT_FMT(
            gmm.max_assign == 1 || (gmm.cells.empty() && has_vectors(ivf)),
            "max_assign = %zu, expected 1 in an index with cells",
            gmm.max_assign);
}

void check_mixture(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    if (ivf.is_trained) {
        as_faiss_exception([&] { gmm.mixture().validate(); });
        return;
    }
    const size_t n = gmm::num_variances(gmm.covariance, ivf.nlist, ivf.d);
    FAISS_THROW_IF_NOT_FMT(
            (gmm.variances.empty() || gmm.variances.size() == n) &&
                    (gmm.log_weights.empty() ||
                     gmm.log_weights.size() == ivf.nlist),
            "%zu variances and %zu weights in an index that is not trained, "
            "expected none",
            gmm.variances.size(),
            gmm.log_weights.size());
}

void check_codes(const faiss::IndexIVF& ivf, const PairCells& cells) {
    const CellCodes& codes = cells.codes;
    if (codes.empty()) {
        return;
    }
    check_between("codes.error", std::array{codes.error}, 0, kMaxFloat);
    check_size("codes.rotated_means", codes.rotated_means, ivf.nlist * ivf.d);
    check_size("codes.blocks", codes.blocks, ivf.nlist);
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t n_blocks =
                (cells.list_size(i) + kBlockEntries - 1) / kBlockEntries;
        const size_t bytes = n_blocks * codes.shape.block_bytes();
        FAISS_THROW_IF_NOT_FMT(
                codes.blocks[i].size() == bytes,
                "codes.blocks of list %zu has %zu bytes, expected %zu",
                i,
                codes.blocks[i].size(),
                bytes);
        for (size_t b = 0; b < n_blocks; b++) {
            float terms[2 * kBlockEntries];
            memcpy(terms,
                   codes.blocks[i].data() +
                           (b + 1) * codes.shape.block_bytes() - sizeof(terms),
                   sizeof(terms));
            check_between("codes' terms", terms, -kMaxFloat, kMaxFloat);
        }
    }
}

void check_cells(const faiss::IndexIVF& ivf, const PairCells& c) {
    check_between("cells.norm2", std::array{c.norm2}, 0, kMaxFloat);
    check_count_below("cells.fitted_n", c.fitted_n, kMaxCount);
    if (c.empty()) {
        return;
    }
    const size_t nlist = ivf.nlist, L = c.cells_per_list;
    FAISS_THROW_IF_NOT_FMT(
            c.nlist == nlist && L > 0 && L < 65536 && L == c.n_partners &&
                    (L < nlist || L == 1) && (L > 1 || !has_vectors(ivf)),
            "%zu cells in each of %zu lists, expected from 2 (1 with codes "
            "alone) to nlist - 1 in nlist = %zu",
            L,
            c.nlist,
            nlist);
    check_size("cells.partner", c.partner, nlist * L);
    check_between("cells.partner", c.partner, 0, double(nlist) - 1);
    check_size("cells.gap", c.gap, nlist * L);
    check_between("cells.gap", c.gap, 0, kMaxFloat);
    check_size("cells.a", c.a, nlist);
    check_between("cells.a", c.a, 0, 1);
    check_size("cells.offsets", c.offsets, nlist * (L + 1));
    check_size("cells.fitted_size", c.fitted_size, nlist);
    check_offsets(c, *ivf.invlists);
    check_codes(ivf, c);
}

/// Returns the entries that are vectors and not copies.
size_t check_copies(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    const auto& earlier = gmm.earlier_lists;
    const size_t entries = ivf.invlists->compute_ntotal();
    size_t copies = 0;
    if (earlier.empty()) {
        FAISS_THROW_IF_NOT_FMT(
                gmm.max_assign == 1 || entries == 0,
                "max_assign = %zu, expected 1, which the index was filled with",
                gmm.max_assign);
        return entries;
    }
    check_size("earlier_lists", earlier, ivf.nlist);
    const size_t width = gmm.max_assign - 1;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t size = ivf.invlists->list_size(i);
        FAISS_THROW_IF_NOT_FMT(
                earlier[i].size() == size * width,
                "earlier_lists of list %zu has %zu entries, expected %zu for "
                "each of %zu, by max_assign = %zu",
                i,
                earlier[i].size(),
                width,
                size,
                gmm.max_assign);
        check_between("earlier_lists", earlier[i], -1, double(ivf.nlist) - 1);
        for (size_t j = 0; j < earlier[i].size(); j += width) {
            copies += earlier[i][j] >= 0;
        }
    }
    return entries - copies;
}

void check_calibration(const Calibration& c, size_t d) {
    check_count_below("calibration.k", c.k, Calibration::kMaxK);
    check_count_below("calibration.ntotal", c.ntotal, kMaxCount);
    check_count_below("calibration.nq", c.nq, kMaxCount / d);
    check_size("calibration.queries", c.queries, c.own_queries ? 0 : c.nq * d);
    FAISS_THROW_IF_NOT_MSG(
            !c.fitted || c.k > 0, "calibration.k = 0, expected at least 1");
    if (!c.queries.empty()) {
        check_storable("calibration.queries", c.nq, d, c.queries.data());
    }
    check_between(
            "calibration.costs",
            std::array{
                    c.costs.query,
                    c.costs.code,
                    c.costs.distance,
                    c.costs.scan},
            0,
            kMaxFloat);
    check_between(
            "calibration.norm2 and farthest",
            std::array{c.norm2, c.farthest},
            0,
            kMaxFloat);
    size_t before = 0;
    for (const auto& curve : c.curves) {
        FAISS_THROW_IF_NOT_FMT(
                curve.k > before && curve.k < Calibration::kMaxK &&
                        !curve.points.empty(),
                "calibration: a curve of k = %zu with %zu points, expected k "
                "increasing and at least one point",
                curve.k,
                curve.points.size());
        before = curve.k;
        for (const auto& p : curve.points) {
            check_between("calibration.recall", std::array{p.recall}, 0, 1.001);
            check_between(
                    "calibration's points",
                    std::array{
                            p.budget,
                            p.bound,
                            p.codes,
                            p.distances,
                            p.cost,
                            p.reach},
                    0,
                    kMaxFloat);
        }
    }
    FAISS_THROW_IF_NOT_MSG(
            !c.fitted || !c.curves.empty(),
            "calibration: fitted without curves");
}

/// Where there is nothing else, every entry has a code.
void check_codes_alone(const faiss::IndexIVF& ivf, const PairCells& c) {
    FAISS_THROW_IF_NOT_FMT(
            (c.empty() && !ivf.is_trained) || !c.codes.empty(),
            "codes of %d bits, expected some in an index of codes alone",
            c.codes.shape.bits);
    for (size_t i = 0; !c.empty() && i < ivf.nlist; i++) {
        FAISS_THROW_IF_NOT_FMT(
                c.list_size(i) == ivf.invlists->list_size(i),
                "list %zu has codes of %zu entries, expected %zu",
                i,
                c.list_size(i),
                ivf.invlists->list_size(i));
    }
}

} // namespace

void check_offsets(const PairCells& c, const faiss::InvertedLists& lists) {
    for (size_t i = 0; i < c.nlist; i++) {
        const uint32_t* o = c.list_offsets(i);
        const size_t L = c.cells_per_list, size = lists.list_size(i);
        FAISS_THROW_IF_NOT_FMT(
                o[0] == 0 && std::is_sorted(o, o + L + 1) && o[L] <= size,
                "the cells of list %zu hold %zu entries, expected at most its "
                "%zu (entries that FAISS's own functions removed? optimize() "
                "makes the cells anew)",
                i,
                size_t(o[L]),
                size);
    }
}

void check_gmm_part(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    check_settings(ivf, gmm);
    check_mixture(ivf, gmm);
    check_cells(ivf, gmm.cells);
    if (!has_vectors(ivf)) {
        check_codes_alone(ivf, gmm.cells);
    }
    const size_t vectors = check_copies(ivf, gmm);
    // More only where an assignment put some into no list; and not most, since
    // calibration draws as many as ntotal seems to allow.
    FAISS_THROW_IF_NOT_FMT(
            vectors <= size_t(ivf.ntotal) &&
                    size_t(ivf.ntotal) <= 2 * vectors + kNowhere,
            "ntotal = %zu, expected the %zu that the lists hold, or little "
            "more",
            size_t(ivf.ntotal),
            vectors);
    check_calibration(gmm.calibration, ivf.d);
}

} // namespace faiss_ext
