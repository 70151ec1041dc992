#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <faiss/impl/IDSelector.h>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Every entry that is selected, as places (list, entry), found by looking at
/// all. Adopts untracked entries.
std::vector<uint64_t> scan_entries(
        GMMIndexRef index, const faiss::IDSelector& sel);

/// The ids that a selector lists, if it does and they are fewer than ntotal.
std::optional<std::vector<idx_t>> listed_ids(
        const faiss::IDSelector& sel, size_t ntotal);

/// Whether the direct map names all entries: no copies, no id twice.
bool map_is_complete(GMMIndexRef index);

/// The entries of these ids, each once, by the direct map. Adopts untracked
/// entries of their lists.
std::vector<uint64_t> mapped_entries(
        GMMIndexRef index, size_t n, const idx_t* ids);

} // namespace faiss_ext
