#pragma once

/// The differences between FAISS versions 1.7.3 and 1.15, all in one place.

#include <cstddef>
#include <cstdint>

#include <faiss/IndexIVF.h>

#define FAISS_EXT_FAISS_VERSION                                \
    (FAISS_VERSION_MAJOR * 10000 + FAISS_VERSION_MINOR * 100 + \
     FAISS_VERSION_PATCH)

#if FAISS_EXT_FAISS_VERSION > 10703
/// What add_core takes behind the assignment.
#define FAISS_EXT_ADD_CORE_TAIL_DECL \
    , [[maybe_unused]] void* inverted_list_context
#define FAISS_EXT_ADD_CORE_TAIL , inverted_list_context
/// What get_InvertedListScanner takes behind the selector.
#define FAISS_EXT_SCANNER_TAIL_DECL \
    , [[maybe_unused]] const faiss::IVFSearchParameters* params
#else
#define FAISS_EXT_SCANNER_TAIL_DECL
#define FAISS_EXT_ADD_CORE_TAIL_DECL
#define FAISS_EXT_ADD_CORE_TAIL
#endif

/// What versions in between got, or install, is asked for itself.
#if __has_include(<faiss/impl/ClusteringInitialization.h>)
#define FAISS_EXT_HAS_INIT_METHOD
#endif
#if __has_include(<faiss/factory_tools.h>)
#define FAISS_EXT_HAS_FACTORY_TOOLS
#endif

namespace faiss_ext {

/// faiss::Index::idx_t until 1.7.3, faiss::idx_t since.
using idx_t = int64_t;

#if FAISS_EXT_FAISS_VERSION > 10703
using subset_type_t = faiss::InvertedLists::subset_type_t;
#else
using subset_type_t = int;
#endif

inline faiss::InvertedListScanner* make_scanner(const faiss::IndexIVF& index) {
#if FAISS_EXT_FAISS_VERSION > 10703
    return index.get_InvertedListScanner(false, nullptr, nullptr);
#else
    return index.get_InvertedListScanner(false, nullptr);
#endif
}

/// The least gain for which training goes on, 0 in versions without it.
template <class Parameters>
double early_stop_threshold(const Parameters& cp) {
    if constexpr (requires { cp.early_stop_threshold; }) {
        return cp.early_stop_threshold;
    } else {
        return 0;
    }
}

} // namespace faiss_ext
