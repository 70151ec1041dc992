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
#define FAISS_EXT_ADD_CORE_TAIL_DECL , void* inverted_list_context
#define FAISS_EXT_ADD_CORE_TAIL , inverted_list_context
#else
#define FAISS_EXT_ADD_CORE_TAIL_DECL
#define FAISS_EXT_ADD_CORE_TAIL
#endif

namespace faiss_ext {

/// faiss::Index::idx_t until 1.7.3, faiss::idx_t since.
using idx_t = int64_t;

#if FAISS_EXT_FAISS_VERSION > 10703
using subset_type_t = faiss::InvertedLists::subset_type_t;
#else
using subset_type_t = int;
#endif

inline faiss::InvertedListScanner* make_scanner(
        const faiss::IndexIVF& index,
        bool store_pairs,
        const faiss::IDSelector* sel,
        [[maybe_unused]] const faiss::SearchParametersIVF* params) {
#if FAISS_EXT_FAISS_VERSION > 10703
    return index.get_InvertedListScanner(store_pairs, sel, params);
#else
    return index.get_InvertedListScanner(store_pairs, sel);
#endif
}

} // namespace faiss_ext
