#include "faiss_ext/store/strays.h"

#include <algorithm>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/copies.h"
#include "faiss_ext/store/edit.h"

namespace faiss_ext {

namespace {

/// Entries of a list that FAISS's functions appended; throws where they removed
/// some.
size_t strays_of(GMMIndexRef index, size_t list) {
    const size_t known = known_size(index, list);
    const size_t n = index.ivf.invlists->list_size(list);
    check_not_shortened(
            list,
            n,
            known,
            has_vectors(index.ivf) && index.gmm.max_assign == 1);
    return n - known;
}

} // namespace

bool adopt_strays(GMMIndexRef index, size_t list) {
    const size_t strays = strays_of(index, list);
    if (strays == 0) {
        return false;
    }
    const size_t known = known_size(index, list);
    const size_t n = known + strays;
    if (!has_vectors(index.ivf)) {
        check_all_coded(list, n, known);
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
    const faiss::DirectMap& map = index.ivf.direct_map;
    for (size_t r = 0; r < a.n && !map.no(); r++) {
        const idx_t place = mapped_place(map, ids[r]);
        a.named.push_back(
                place < 0 || place == idx_t(faiss::lo_build(list, known + r)));
    }
    if (!index.gmm.cells.empty()) {
        std::vector<float> x(a.n * index.ivf.d);
        decode_codes(index.ivf, list, a.n, codes.data(), x.data());
        check_storable(
                "an entry that FAISS put in", a.n, index.ivf.d, x.data());
        a.place(index, x.data(), MeansView(index.ivf).data());
    }
    edit.prepare();
    edit.commit();
    return true;
}

void adopt_strays(GMMIndexRef index) {
    if (has_copies(index.gmm)) {
        check_max_assign(index.ivf, index.gmm);
    }
    if (index.gmm.cells.empty() && index.gmm.max_assign == 1) {
        return;
    }
    for (size_t i = 0; i < index.ivf.nlist; i++) { // none is changed yet
        strays_of(index, i);
    }
    for (size_t i = 0; i < index.ivf.nlist; i++) {
        adopt_strays(index, i);
    }
}

} // namespace faiss_ext
