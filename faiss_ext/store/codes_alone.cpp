#include "faiss_ext/store/codes_alone.h"

#include <algorithm>
#include <cstring>
#include <set>

#include <faiss/impl/FaissAssert.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

namespace {

/// Vectors of a list that its cells are fitted to.
constexpr size_t kFittedEach = 1000;

/// Whether the lists have the same partners, in whichever order: rings turn.
bool same_partners(const PairCells& p, const PairCells& q) {
    if (p.partner == q.partner || p.partner.size() != q.partner.size()) {
        return p.partner == q.partner;
    }
    for (size_t i = 0; i < p.nlist; i++) {
        const size_t L = p.cells_per_list;
        const std::set<int32_t> own(p.partners(i), p.partners(i) + L);
        if (own != std::set<int32_t>(q.partners(i), q.partners(i) + L)) {
            return false;
        }
    }
    return true;
}

} // namespace

PairCells fit_cells_in_training(
        const IVFGMM& gmm,
        const faiss::Index& quantizer,
        size_t nlist,
        size_t n,
        const float* x) {
    const size_t d = quantizer.d;
    const MeansView means(quantizer, nlist);
    const bool ip = quantizer.metric_type == faiss::METRIC_INNER_PRODUCT;
    const size_t wanted = gmm.cells_per_list > 0
            ? gmm.cells_per_list
            : std::max(
                      kCellsAtFirst,
                      PairCells::default_cells_per_list(double(n) / nlist));
    PairCells cells;
    cells.init(nlist, d, means.data(), wanted);
    if (cells.empty()) {
        cells.init_whole(nlist);
    }
    cells.codes.init(nlist, d, gmm.code_bits, means.data(), ip);

    // of all vectors so many, evenly
    const size_t step = n / std::min(n, nlist * kFittedEach);
    const size_t m = n / step;
    std::vector<float> sample;
    if (step > 1) {
        sample.resize(m * d);
        for (size_t i = 0; i < m; i++) {
            std::copy_n(x + i * step * d, d, &sample[i * d]);
        }
        x = sample.data();
    }
    std::vector<idx_t> home(m);
    nearest_lists(quantizer, m, x, home.data());
    std::vector<std::vector<uint32_t>> rows(nlist);
    for (size_t i = 0; i < m; i++) {
        if (home[i] >= 0) {
            rows[home[i]].push_back(uint32_t(i));
        }
    }
    std::vector<double> squared_error(nlist);
    gmm::parallel_for(nlist, [&](size_t list) {
        const size_t size = rows[list].size();
        std::vector<float> own(size * d);
        for (size_t r = 0; r < size; r++) {
            std::copy_n(x + rows[list][r] * d, d, &own[r * d]);
        }
        std::vector<uint16_t> cell(size);
        Payload payload;
        if (cells.cells_per_list > 1) {
            cells.fit_list(
                    list, size, d, own.data(), means.data(), cell.data());
        }
        payload.encode(
                cells, list, size, own.data(), nullptr, nullptr, cell.data());
        squared_error[list] = payload.squared_error;
    });
    cells.codes.set_error(squared_error, m);
    return cells;
}

void check_same_cells(
        const char* call, const PairCells& to, const PairCells& from) {
    FAISS_THROW_IF_NOT_FMT(
            to.codes.shape.bits == from.codes.shape.bits,
            "%s: codes of %d bits, expected %d",
            call,
            from.codes.shape.bits,
            to.codes.shape.bits);
    FAISS_THROW_IF_NOT_FMT(
            to.cells_per_list == from.cells_per_list &&
                    same_partners(to, from) && to.a == from.a &&
                    to.codes.rotated_means == from.codes.rotated_means,
            "%s: the means or cells differ; expected copies of one trained "
            "index",
            call);
}

size_t record_size(const PairCells& cells) {
    return sizeof(int32_t) + cells.codes.shape.entry_bytes();
}

std::unique_ptr<faiss::InvertedLists> copy_records(
        const faiss::IndexIVF& ivf, const PairCells& cells) {
    const size_t size = record_size(cells);
    auto out = std::make_unique<faiss::ArrayInvertedLists>(ivf.nlist, size);
    std::vector<uint8_t> records;
    for (size_t list = 0; list < ivf.nlist; list++) {
        const size_t n = cells.empty() ? 0 : cells.list_size(list);
        check_all_coded(list, ivf.invlists->list_size(list), n);
        if (n == 0) {
            continue;
        }
        records.resize(n * size);
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const auto [begin, end] = cells.range(list, l);
            const int32_t partner = cells.partners(list)[l];
            for (size_t j = begin; j < end; j++) {
                memcpy(&records[j * size], &partner, sizeof(partner));
                cells.codes.get(list, j, &records[j * size + sizeof(partner)]);
            }
        }
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, list);
        out->add_entries(list, n, ids.get(), records.data());
    }
    return out;
}

void place_records(GMMIndexRef index, Arrivals& arrivals) {
    const CodeShape& shape = index.gmm.cells.codes.shape;
    const size_t bytes = shape.entry_bytes();
    const int32_t* partners = index.gmm.cells.partners(arrivals.list);
    arrivals.cell.resize(arrivals.n);
    arrivals.payload.records.resize(arrivals.n * bytes);
    for (size_t r = 0; r < arrivals.n; r++) {
        const uint8_t* from = arrivals.codes + r * record_size(index.gmm.cells);
        uint8_t* record = &arrivals.payload.records[r * bytes];
        int32_t partner;
        memcpy(&partner, from, sizeof(partner));
        memcpy(record, from + sizeof(partner), bytes);
        arrivals.cell[r] = uint16_t(
                std::find(
                        partners,
                        partners + index.gmm.cells.cells_per_list - 1,
                        partner) -
                partners);
        if (index.gmm.cells.codes.similarity) { // A is the norm
            float norm;
            memcpy(&norm, record + shape.groups * 2, sizeof(norm));
            arrivals.norm2 = std::max(arrivals.norm2, norm * norm);
        }
    }
}

void decode_entries(
        const faiss::IndexIVF& ivf,
        const PairCells& cells,
        size_t list,
        size_t begin,
        size_t n,
        float* out) {
    const MeansView means(ivf);
    std::vector<uint8_t> record(cells.codes.shape.entry_bytes());
    for (size_t j = begin; j < begin + n; j++) {
        cells.codes.get(list, j, record.data());
        cells.codes.decode(
                list,
                cells.a[list],
                cells.partners(list)[cells.cell_of(list, j)],
                means.data(),
                record.data(),
                out + (j - begin) * ivf.d);
    }
}

} // namespace faiss_ext
