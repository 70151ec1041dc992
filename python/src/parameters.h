#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "bindings.h"

namespace faiss_ext_python {

/// What one call says; what is left out is the index's own.
struct SearchParameters {
    std::optional<size_t> nprobe, max_codes;
    std::optional<faiss_ext::ProbeOrder> probe_order;
    std::optional<float> probe_mass, target_recall;
    std::shared_ptr<Selector> sel;
};

/// FAISS's parameters for an index and all that is inside it.
struct Parameters {
    std::deque<std::unique_ptr<faiss::SearchParameters>> owned;

    template <class P>
    P* own(std::unique_ptr<P> p) {
        P* out = p.get();
        owned.push_back(std::move(p));
        return out;
    }

    faiss::SearchParameters* make(
            const faiss::Index& index, const SearchParameters& p);
};

} // namespace faiss_ext_python
