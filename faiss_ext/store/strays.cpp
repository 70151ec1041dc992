#include "faiss_ext/store/strays.h"

#include <algorithm>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/store/edit.h"

namespace faiss_ext {

bool adopt_strays(GMMIndexRef index, size_t list) {
    const size_t known = known_size(index, list);
    const size_t n = index.ivf.invlists->list_size(list);
    if (n < known) {
        throw_shortened(
                list,
                n,
                known,
                has_vectors(index.ivf) && index.gmm.max_assign == 1);
    }
    if (known == n) {
        return false;
    }
    if (!has_vectors(index.ivf)) {
        check_codes_alone(list, n, known);
    }
    // copies: the edit will write where they lie
    std::vector<uint8_t> codes((n - known) * index.ivf.code_size);
    std::vector<idx_t> ids(n - known);
    {
        faiss::InvertedLists::ScopedCodes from(index.ivf.invlists, list);
        faiss::InvertedLists::ScopedIds from_ids(index.ivf.invlists, list);
        std::copy_n(
                from.get() + known * index.ivf.code_size,
                codes.size(),
                codes.data());
        std::copy_n(from_ids.get() + known, ids.size(), ids.data());
    }
    Edit edit(index);
    Arrivals& a = edit.arrivals.emplace_back();
    a.list = list;
    a.n = n - known;
    a.codes = codes.data();
    a.ids = ids.data();
    if (!index.gmm.cells.empty()) {
        std::vector<float> x(a.n * index.ivf.d);
        decode_codes(index.ivf, list, a.n, codes.data(), x.data());
        a.place(index, x.data(), MeansView(index.ivf).data());
    }
    edit.prepare();
    edit.commit();
    return true;
}

void adopt_strays(GMMIndexRef index) {
    if (index.gmm.cells.empty() && index.gmm.max_assign == 1) {
        return;
    }
    for (size_t i = 0; i < index.ivf.nlist; i++) {
        adopt_strays(index, i);
    }
}

} // namespace faiss_ext
