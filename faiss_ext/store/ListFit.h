#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include <faiss/IndexIVFFlat.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/store/list_storage.h"
#include "faiss_ext/store/payload.h"

namespace faiss_ext {

/// A list's vectors, and its cells fitted to them.
class ListFit {
public:
    ListFit(GMMIndexRef index, size_t list)
            : index(index), list(list), n(index.ivf.invlists->list_size(list)),
              codes(index.ivf.invlists, list) {
        const faiss::IndexIVF& ivf = index.ivf;
        const size_t d = ivf.d;
        x = reinterpret_cast<const float*>(codes.get());
        if (is_ip(ivf) || !dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
            decoded.resize(n * d);
            decode_codes(ivf, list, n, codes.get(), decoded.data());
            x = decoded.data();
        }
        if (is_ip(ivf)) {
            norms.resize(n);
            for (size_t r = 0; r < n; r++) {
                const float length2 = faiss::fvec_norm_L2sqr(x + r * d, d);
                norm2 = std::max(norm2, length2);
                norms[r] = std::sqrt(length2);
            }
            faiss::fvec_renorm_L2(d, n, decoded.data());
        }
    }

    /// Whether the list's a is near enough to what it would become.
    bool has_the_same_a(const PairCells& cells, const float* means) const {
        std::vector<uint32_t> rows(std::min(n, kFitSample));
        for (size_t r = 0; r < rows.size(); r++) {
            rows[r] = uint32_t(r * n / rows.size());
        }
        std::vector<uint16_t> ignored(rows.size());
        const float a = cells.best_a(
                list,
                rows.size(),
                index.ivf.d,
                x,
                rows.data(),
                means,
                ignored.data());
        return std::abs(a - cells.a[list]) <= kSameA;
    }

    /// Into the cells' a and, through `offset`, the sizes. Those
    /// change only when nothing can fail any more.
    void fit(PairCells& cells, const float* means, uint32_t* offset) {
        const size_t L = cells.cells_per_list;
        std::vector<uint16_t> cell(n);
        order.resize(n);
        payload.fit(
                cells,
                list,
                n,
                index.ivf.d,
                x,
                is_ip(index.ivf) ? norms.data() : nullptr,
                means,
                cell.data());
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

    GMMIndexRef index;
    size_t list, n;
    faiss::InvertedLists::ScopedCodes codes;
    const float* x;
    std::vector<float> decoded, norms;
};

} // namespace faiss_ext
