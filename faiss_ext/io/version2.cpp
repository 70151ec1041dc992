#include "faiss_ext/io/version2.h"

#include <algorithm>
#include <array>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/calibrate.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/maintain.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

constexpr size_t kSketchBytes = 28;

template <class T>
void skip_array(FieldReader& ar, const char* name, size_t n) {
    std::vector<T> unused;
    ar.array(name, unused, n);
}

} // namespace

ProbeOrder read_order(FieldReader& ar) {
    int64_t number;
    ar.scalar(number);
    const int64_t last = ar.version == 2 ? 6 : 4;
    FAISS_THROW_IF_NOT_FMT(
            number >= 0 && number <= last,
            "GMM trailer: probe order %zd, expected from 0 to %zd",
            ssize_t(number),
            ssize_t(last));
    return ProbeOrder(std::min<int64_t>(number, int(ProbeOrder::codes)));
}

void skip_sketched(FieldReader& ar) {
    bool sketched;
    ar.scalar(sketched);
}

void read_cells_of_version2(
        FieldReader& ar,
        PairCells& cells,
        const faiss::InvertedLists& lists,
        size_t nlist) {
    ar.scalar(cells.cells_per_list);
    ar.scalar(cells.fitted_n);
    ar.scalar(cells.norm2);
    if (cells.empty()) {
        return;
    }
    const size_t L = cells.cells_per_list;
    size_t P;
    ar.scalar(cells.nlist);
    ar.scalar(P);
    FAISS_THROW_IF_NOT_FMT(
            cells.nlist == nlist && L <= P && P < nlist,
            "GMM trailer: %zu cells of %zu partners in each of %zu lists, "
            "expected fewer than nlist = %zu in as many lists",
            L,
            P,
            cells.nlist,
            nlist);
    cells.n_partners = L;
    std::vector<int32_t> partner;
    std::vector<float> gap;
    ar.array("cells.partner", partner, nlist * P);
    ar.array("cells.gap", gap, nlist * P);
    for (size_t i = 0; i < nlist; i++) {
        const size_t begin = i * P;
        cells.partner.insert(
                cells.partner.end(), &partner[begin], &partner[begin] + L);
        cells.gap.insert(cells.gap.end(), &gap[begin], &gap[begin] + L);
    }
    ar.array("cells.a", cells.a, nlist);
    skip_array<float>(ar, "cells.variance", nlist * (L + 1));
    ar.array("cells.offsets", cells.offsets, nlist * (L + 1));
    check_offsets(cells, lists);
    cells.fitted_size.resize(nlist);
    for (size_t i = 0; i < nlist; i++) {
        cells.fitted_size[i] = uint32_t(cells.list_size(i));
        skip_array<uint16_t>(
                ar, "cells.tail", lists.list_size(i) - cells.list_size(i));
    }
    bool sketched;
    ar.scalar(sketched);
    for (size_t i = 0; sketched && i < nlist; i++) {
        skip_array<std::array<uint8_t, kSketchBytes>>(
                ar, "cells.sketches", lists.list_size(i));
    }
}

void read_calibration_of_version2(FieldReader& ar, Calibration& c, size_t d) {
    ar.scalar(c.fitted);
    ar.scalar(c.k);
    ar.scalar(c.ntotal);
    ar.scalar(c.nq);
    ar.scalar(c.own_queries);
    FAISS_THROW_IF_NOT_FMT(
            c.nq < (size_t(1) << 48) / d,
            "GMM trailer: calibration.nq = %zu is more than there can be",
            c.nq);
    ar.array("calibration.queries", c.queries, c.own_queries ? 0 : c.nq * d);
    skip_array<float>(ar, "calibration.tau_weights", 2);
    skip_array<float>(ar, "calibration.cell_stop_weights", 5);
    skip_array<float>(ar, "calibration.sketch_stop_weights", 5);
    const size_t n_candidates = ar.count(0, 8);
    for (size_t i = 0; i < n_candidates; i++) {
        read_order(ar);
        bool by_mass;
        ar.scalar(by_mass);
        const size_t n_points = ar.count(0, 16);
        for (size_t p = 0; p < n_points; p++) {
            float point[4];
            ar.raw(point, sizeof(point));
        }
    }
}

void complete_version2(GMMIndexRef index) {
    Calibration& c = index.gmm.calibration;
    const bool calibrated = c.fitted;
    c.fitted = false;
    check_gmm_part(index.ivf, index.gmm); // but for the codes
    make_codes(index);
    if (is_writable(index.ivf)) {
        adopt_strays(index);
    }
    if (calibrated && c.k > 0 && size_t(index.ivf.ntotal) > c.k) {
        if (!c.queries.empty()) {
            check_storable(
                    "calibration.queries", c.nq, index.ivf.d, c.queries.data());
        }
        calibrate_again(index);
    }
}

} // namespace faiss_ext
