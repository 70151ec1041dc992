#include "faiss_ext/store/maintain.h"

#include <algorithm>
#include <new>

#include <omp.h>

#include <faiss/impl/FaissAssert.h>

#include "ParallelFor.h"
#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/ListFit.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

/// A list is fitted anew when it has grown by this factor, and L is chosen anew
/// when it would be so many times as large.
constexpr size_t kGrowth = 2;
/// A list of fewer entries is not fitted.
constexpr size_t kLeastFitted = 16;
/// Lists of so many entries are fitted anew within an addition however small.
constexpr size_t kRefitEntries = 2048;
/// A calibration of half the vectors can miss by 0.07.
constexpr double kCalibrationGrowth = 1.3;
/// Larger norms change the units of METRIC_INNER_PRODUCT's distances.
constexpr float kNorm2Growth = 1.2f;

int bits_of_codes(GMMIndexRef index) {
    return index.gmm.code_bits == 0 ? CellCodes::default_bits(index.ivf.d)
                                    : index.gmm.code_bits;
}

/// L for an index of so many entries.
size_t choose_cells(GMMIndexRef index, size_t entries) {
    const IVFGMM& gmm = index.gmm;
    const size_t nlist = index.ivf.nlist;
    if (gmm.max_assign > 1 ||
        !CellCodes::fits(index.ivf.d, bits_of_codes(index))) {
        return 1;
    }
    const size_t wanted = gmm.cells_per_list > 0
            ? gmm.cells_per_list
            : std::max(
                      kCellsAtFirst,
                      PairCells::default_cells_per_list(
                              double(entries) / nlist));
    return std::min(wanted, nlist - 1);
}

/// A list all of whose entries are known. It is as it was if this throws.
void refit_list(GMMIndexRef index, size_t list, const float* means) {
    PairCells& cells = index.gmm.cells;
    std::vector<uint32_t> offset(cells.cells_per_list + 1);
    std::vector<uint8_t> spare(index.ivf.code_size);
    ListFit fit(index, list);
    if (cells.fitted_size[list] > 0 && fit.has_the_same_a(cells, means)) {
        cells.fitted_size[list] = uint32_t(cells.list_size(list));
        return;
    }
    fit.fit(cells, means, offset.data());
    // nothing throws any more
    std::copy(offset.begin(), offset.end(), cells.list_offsets(list));
    for (size_t p = 0; p < fit.order.size(); p++) {
        fit.payload.set(cells, list, p, fit.order[p]);
    }
    ListEntries(index, list).permute(fit.order, spare.data());
}

bool list_is_due(const PairCells& cells, size_t list) {
    const size_t size = cells.list_size(list);
    return size >= kLeastFitted && size >= kGrowth * cells.fitted_size[list];
}

bool cells_are_due(GMMIndexRef index, size_t entries) {
    if (!has_vectors(index.ivf)) {
        return false;
    }
    const size_t L = choose_cells(index, entries);
    const PairCells& cells = index.gmm.cells;
    return entries > 0 &&
            (cells.empty() ? L > 1 : L >= kGrowth * cells.cells_per_list);
}

/// Whether all that rebuild_cells() could change is what refit_grown_lists()
/// sees to.
bool cells_are_as_chosen(GMMIndexRef index) {
    const PairCells& cells = index.gmm.cells;
    return !cells.empty() && cells.fitted_n >= kLeastFitted * index.ivf.nlist &&
            cells.cells_per_list ==
            choose_cells(index, index.ivf.invlists->compute_ntotal());
}

bool calibration_is_due(GMMIndexRef index) {
    const Calibration& c = index.gmm.calibration;
    // an assignment may have put vectors into no list
    const size_t n = std::min(
            size_t(index.ivf.ntotal), index.ivf.invlists->compute_ntotal());
    const PairCells& cells = index.gmm.cells;
    const bool new_units = c.norm2 > 0 && cells.norm2 > kNorm2Growth * c.norm2;
    const size_t known =
            cells.fitted_n > 0 ? std::min(c.ntotal, cells.fitted_n) : c.ntotal;
    return index.gmm.calibrate_on_add && n >= kMinCalibrationVectors &&
            (!c.fitted || new_units || n >= size_t(kCalibrationGrowth * known));
}

/// Cells that are made anew must not hide, if what follows fails, that the
/// calibration was due by how many entries the old ones had.
void keep_due(GMMIndexRef index) {
    if (index.gmm.cells.fitted_n > 0) {
        size_t& known = index.gmm.calibration.ntotal;
        known = std::min(known, index.gmm.cells.fitted_n);
    }
}

void init_codes(GMMIndexRef index, PairCells& cells, const float* means) {
    cells.codes.init(
            index.ivf.nlist,
            index.ivf.d,
            bits_of_codes(index),
            means,
            is_ip(index.ivf));
}

} // namespace

void make_codes(GMMIndexRef index) {
    const faiss::IndexIVF& ivf = index.ivf;
    PairCells& cells = index.gmm.cells;
    if (cells.empty()) {
        return;
    }
    const MeansView means(ivf);
    init_codes(index, cells, means.data());
    std::vector<double> squared_error(ivf.nlist);
    gmm::parallel_for(ivf.nlist, [&](size_t i) {
        const size_t n = cells.list_size(i), d = ivf.d;
        std::vector<float> x(n * d), norms;
        {
            faiss::InvertedLists::ScopedCodes codes(ivf.invlists, i);
            decode_codes(ivf, i, n, codes.get(), x.data());
        }
        if (is_ip(ivf)) {
            norms.resize(n);
            to_directions(n, d, x.data(), norms.data());
        }
        std::vector<uint16_t> cell(n);
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const auto [begin, end] = cells.range(i, l);
            std::fill(cell.begin() + begin, cell.begin() + end, uint16_t(l));
        }
        Payload payload;
        payload.encode(
                cells,
                i,
                n,
                x.data(),
                nullptr,
                is_ip(ivf) ? norms.data() : nullptr,
                cell.data());
        squared_error[i] = payload.squared_error;
        cells.codes.resize(i, n);
        for (size_t j = 0; j < n; j++) {
            payload.set(cells, i, j, j);
        }
    });
    size_t entries = 0;
    for (size_t i = 0; i < ivf.nlist; i++) {
        entries += cells.list_size(i);
    }
    cells.codes.set_error(squared_error, entries);
}

void begin_anew(GMMIndexRef index) noexcept {
    index.gmm.earlier_lists.clear();
    bool empty = true;
    for (size_t i = 0; i < index.ivf.nlist && empty; i++) {
        empty = index.ivf.invlists->list_size(i) == 0;
    }
    if (empty && has_vectors(index.ivf)) {
        index.gmm.cells.undivide();
    } else if (empty) {
        index.gmm.cells.clear_entries();
    }
}

void rebuild_cells(GMMIndexRef index) {
    faiss::IndexIVF& ivf = index.ivf;
    IVFGMM& gmm = index.gmm;
    const size_t stored = ivf.invlists->compute_ntotal();
    const MeansView means(ivf);
    PairCells fresh;
    fresh.nlist = gmm.cells.nlist;
    fresh.n_partners = gmm.cells.n_partners;
    fresh.partner = gmm.cells.partner;
    fresh.gap = gmm.cells.gap;
    fresh.divide(ivf.nlist, ivf.d, means.data(), choose_cells(index, stored));
    fresh.fitted_n = stored;
    if (fresh.empty()) {
        gmm.cells.undivide();
        gmm.cells.fitted_n = stored;
        return;
    }
    init_codes(index, fresh, means.data());
    std::vector<std::vector<uint32_t>> orders(ivf.nlist);
    std::vector<float> norm2(ivf.nlist);
    std::vector<double> squared_error(ivf.nlist);
    std::vector<uint8_t> spare(omp_get_max_threads() * ivf.code_size);
    const bool shared_map = ivf.direct_map.type == faiss::DirectMap::Hashtable;
    const auto permute = [&](size_t i, size_t worker) {
        ListEntries(index, i).permute(
                orders[i], &spare[worker * ivf.code_size]);
    };
    // where there were no cells any order will do, so each list gets its own
    // while its vectors are in a cache
    const bool at_once = gmm.cells.empty() && !shared_map;
    gmm::parallel_for_workers(ivf.nlist, [&](size_t i, size_t worker) {
        check_interrupt();
        if (ivf.invlists->list_size(i) == 0) {
            return;
        }
        check_writable(ivf, i);
        ListFit fit(index, i);
        fit.fit(fresh, means.data(), fresh.list_offsets(i));
        norm2[i] = fit.norm2;
        squared_error[i] = fit.payload.squared_error;
        fresh.codes.resize(i, fit.order.size());
        for (size_t p = 0; p < fit.order.size(); p++) {
            fit.payload.set(fresh, i, p, fit.order[p]);
        }
        orders[i] = std::move(fit.order);
        if (at_once) {
            permute(i, worker);
        }
    });
    fresh.norm2 = *std::max_element(norm2.begin(), norm2.end());
    fresh.codes.set_error(squared_error, stored);
    // nothing throws any more
    if (!at_once) {
        gmm::parallel_for_workers(ivf.nlist, permute, !shared_map);
    }
    gmm.cells = std::move(fresh);
}

void refit_grown_lists(
        GMMIndexRef index, const std::vector<Arrivals>& arrivals, size_t n) {
    const PairCells& cells = index.gmm.cells;
    if (cells.empty() || !has_vectors(index.ivf)) {
        return;
    }
    std::vector<size_t> due;
    try {
        size_t entries = 0;
        for (const Arrivals& a : arrivals) {
            const size_t size = cells.list_size(a.list);
            if (list_is_due(cells, a.list) &&
                entries + size <= std::max(kRefitEntries, kGrowth * n)) {
                entries += size;
                due.push_back(a.list);
            }
        }
        if (due.empty()) {
            return;
        }
        const MeansView means(index.ivf);
        gmm::parallel_for(
                due.size(),
                [&](size_t i) { refit_list(index, due[i], means.data()); },
                entries > kRefitEntries &&
                        index.ivf.direct_map.type !=
                                faiss::DirectMap::Hashtable);
    } catch (const std::bad_alloc&) {
        // each list is old or new; those that are old stay due
    }
}

bool maintenance_due(GMMIndexRef index) {
    if (!index.ivf.is_trained || !index.ivf.invlists) {
        return false;
    }
    if (cells_are_due(index, index.ivf.invlists->compute_ntotal()) ||
        calibration_is_due(index)) {
        return true;
    }
    const PairCells& cells = index.gmm.cells;
    const bool fitted_anew = has_vectors(index.ivf) && !cells.empty();
    for (size_t i = 0; fitted_anew && i < cells.nlist; i++) {
        if (list_is_due(cells, i)) {
            return true;
        }
    }
    return false;
}

void maintain(GMMIndexRef index) {
    check_trained(index.ivf);
    check_writable(index.ivf);
    adopt_strays(index);
    const PairCells& cells = index.gmm.cells;
    const bool calibration_due = calibration_is_due(index);
    if (calibration_due) {
        keep_due(index);
    }
    if (cells_are_due(index, index.ivf.invlists->compute_ntotal())) {
        rebuild_cells(index);
    } else if (!cells.empty() && has_vectors(index.ivf)) {
        std::vector<size_t> due;
        for (size_t i = 0; i < cells.nlist; i++) {
            if (list_is_due(cells, i)) {
                check_writable(index.ivf, i);
                due.push_back(i);
            }
        }
        const MeansView means(index.ivf);
        gmm::parallel_for(
                due.size(),
                [&](size_t i) {
                    check_interrupt();
                    refit_list(index, due[i], means.data());
                },
                index.ivf.direct_map.type != faiss::DirectMap::Hashtable);
    }
    if (calibration_due || calibration_is_due(index)) {
        calibrate_again(index);
    }
}

Growth::Growth(GMMIndexRef index, const char* call)
        : index(index), call(call), before(index.ivf.ntotal) {
    check_cells_kept(index.ivf, index.gmm);
    if (index.gmm.code_bits != 0) {
        CellCodes::check_bits(index.gmm.code_bits);
    }
}

void Growth::explain(const std::exception& e) const {
    const idx_t added = index.ivf.ntotal - before;
    if (added > 0) {
        const std::string why = without_place(e.what());
        FAISS_THROW_FMT(
                "%s: %zd vectors are in, and then: %s",
                call,
                size_t(added),
                why.c_str());
    }
}

void Growth::finish() {
    const idx_t added = index.ivf.ntotal - before;
    if (added == 0 || 2 * added < index.ivf.ntotal) {
        return;
    }
    const bool calibration_due = calibration_is_due(index);
    if (calibration_due) {
        keep_due(index);
    }
    try {
        if (index.gmm.max_assign == 1 && index.gmm.cells_per_list != 1 &&
            has_vectors(index.ivf) && !cells_are_as_chosen(index)) {
            rebuild_cells(index);
        }
        if (calibration_due || calibration_is_due(index)) {
            calibrate_again(index);
        }
    } catch (const std::exception&) {
        // The vectors are in, and FAISS's wrappers would not count them if this
        // threw. No memory or an interrupt leave it due: maintain() says what
        // it was.
    }
}

} // namespace faiss_ext
