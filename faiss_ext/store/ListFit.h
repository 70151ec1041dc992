#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include <faiss/IndexIVFFlat.h>

#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/store/list_storage.h"
#include "faiss_ext/store/payload.h"

namespace faiss_ext {

/// A list's cells fitted to its vectors.
class ListFit {
public:
    ListFit(GMMIndexRef index, size_t list)
            : index(index), list(list), n(index.ivf.invlists->list_size(list)),
              codes(index.ivf.invlists, list) {}

    /// Whether the list's a is near enough to what it would become, by a sample
    /// of its vectors.
    bool has_the_same_a(const PairCells& cells, const float* means) {
        const size_t size = std::min(n, kFitSample);
        std::vector<uint32_t> rows(size);
        for (size_t r = 0; r < size; r++) {
            rows[r] = uint32_t(r * n / size);
        }
        const uint32_t* of = rows.data();
        if (!as_they_are()) {
            const size_t code_size = index.ivf.code_size;
            std::vector<uint8_t> sample(size * code_size);
            for (size_t r = 0; r < size; r++) {
                std::copy_n(
                        codes.get() + rows[r] * code_size,
                        code_size,
                        &sample[r * code_size]);
            }
            decode(size, sample.data());
            of = nullptr;
        } else {
            decode(n, codes.get());
        }
        float a;
        if (cells.a[list] < kLowA) {
            std::vector<uint16_t> ignored(size);
            a = cells.best_a(
                    list, size, index.ivf.d, x, of, means, ignored.data());
        } else { // one round more comes as near as all from the beginning
            a = cells.next_a(
                    list, size, index.ivf.d, x, of, rows.data(), means);
        }
        return std::abs(a - cells.a[list]) <= kSameA;
    }

    /// Into the cells' a and, through `offset`, the sizes. Those
    /// change only when nothing can fail any more.
    void fit(PairCells& cells, const float* means, uint32_t* offset) {
        const size_t L = cells.cells_per_list;
        std::vector<uint16_t> cell(n);
        decode(n, codes.get());
        order.resize(n);
        const float a = cells.a[list];
        const uint32_t fitted_size = cells.fitted_size[list];
        cells.fit_list(list, n, index.ivf.d, x, means, cell.data());
        try {
            const float* x_norms = is_ip(index.ivf) ? norms.data() : nullptr;
            payload.encode(cells, list, n, x, nullptr, x_norms, cell.data());
        } catch (...) {
            cells.a[list] = a;
            cells.fitted_size[list] = fitted_size;
            throw;
        }
        std::fill(offset, offset + L + 1, 0);
        for (uint16_t l : cell) {
            offset[l + 1]++;
        }
        std::partial_sum(offset, offset + L + 1, offset);
        for (size_t r = 0; r < n; r++) {
            order[offset[cell[r]]++] = uint32_t(r);
        }
        std::copy_backward(offset, offset + L, offset + L + 1);
        offset[0] = 0;
    }

    std::vector<uint32_t> order; ///< entries by cell
    Payload payload;
    float norm2 = 0; ///< METRIC_INNER_PRODUCT: the largest

private:
    /// Of so many of its entries a list's a is estimated,
    static constexpr size_t kFitSample = 256;
    /// and if it is that near to what it was the list stays as it is: the
    /// residuals would be shorter by less than a hundredth.
    static constexpr float kSameA = 0.03f;
    /// Below, cells are so much alike that which one an entry is in says
    /// little: no round leads away from 0.
    static constexpr float kLowA = 0.1f;

    /// Whether vectors can be used where FAISS's list has them.
    bool as_they_are() const {
        return !is_ip(index.ivf) &&
                dynamic_cast<const faiss::IndexIVFFlat*>(&index.ivf);
    }

    /// Makes x those of so many codes; directions for METRIC_INNER_PRODUCT.
    void decode(size_t size, const uint8_t* from) {
        if (as_they_are()) {
            x = reinterpret_cast<const float*>(from);
            return;
        }
        const size_t d = index.ivf.d;
        decoded.resize(size * d);
        decode_codes(index.ivf, list, size, from, decoded.data());
        x = decoded.data();
        if (is_ip(index.ivf)) {
            norms.resize(size);
            norm2 = std::max(
                    norm2,
                    to_directions(size, d, decoded.data(), norms.data()));
        }
    }

    GMMIndexRef index;
    size_t list, n;
    faiss::InvertedLists::ScopedCodes codes;
    const float* x = nullptr;
    std::vector<float> decoded, norms;
};

} // namespace faiss_ext
