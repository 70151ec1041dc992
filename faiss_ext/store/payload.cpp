#include "faiss_ext/store/payload.h"

namespace faiss_ext {

void Payload::encode(
        const PairCells& cells,
        size_t list,
        size_t n,
        const float* x,
        const uint32_t* rows,
        const float* norms,
        const uint16_t* cell) {
    const CellCodes& codes = cells.codes;
    records.resize(n * codes.shape.entry_bytes());
    squared_error = codes.encode(
            list,
            cells.a[list],
            cells.partners(list),
            n,
            x,
            rows,
            norms,
            cell,
            records.data());
}

void Payload::assign(
        const PairCells& cells,
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const uint32_t* rows,
        const float* norms,
        const float* means,
        uint16_t* out) {
    cells.assign(list, n, d, x, rows, means, out);
    encode(cells, list, n, x, rows, norms, out);
}

void Payload::fit(
        PairCells& cells,
        size_t list,
        size_t n,
        size_t d,
        const float* x,
        const float* norms,
        const float* means,
        uint16_t* out) {
    const float a = cells.a[list];
    const uint32_t fitted_size = cells.fitted_size[list];
    cells.fit_list(list, n, d, x, means, out);
    try {
        encode(cells, list, n, x, nullptr, norms, out);
    } catch (...) {
        cells.a[list] = a;
        cells.fitted_size[list] = fitted_size;
        throw;
    }
}

void Payload::set(
        PairCells& cells,
        size_t list,
        size_t entry,
        const uint8_t* records,
        size_t row) noexcept {
    cells.codes.set(
            list, entry, records + row * cells.codes.shape.entry_bytes());
}

} // namespace faiss_ext
