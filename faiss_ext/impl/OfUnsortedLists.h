#pragma once

#include <optional>

#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/IDSelector.h>

namespace faiss_ext {

/// FAISS bisects a list for a range of ids that are said to be sorted; ours are
/// in the order of cells.
class OfUnsortedLists {
public:
    explicit OfUnsortedLists(const faiss::IVFSearchParameters* given)
            : params(given) {
        const auto* range = given
                ? dynamic_cast<const faiss::IDSelectorRange*>(given->sel)
                : nullptr;
        if (!range || !range->assume_sorted) {
            return;
        }
        unsorted.emplace(range->imin, range->imax);
        if (const auto* of_pq =
                    dynamic_cast<const faiss::IVFPQSearchParameters*>(given)) {
            pq = *of_pq;
            pq.sel = &*unsorted;
            params = &pq;
        } else {
            ivf = *given;
            ivf.sel = &*unsorted;
            params = &ivf;
        }
    }
    OfUnsortedLists(const OfUnsortedLists&) = delete;

    const faiss::IVFSearchParameters* params;

private:
    std::optional<faiss::IDSelectorRange> unsorted;
    faiss::IVFSearchParameters ivf;
    faiss::IVFPQSearchParameters pq;
};

} // namespace faiss_ext
