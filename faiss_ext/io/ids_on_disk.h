#pragma once

#include <cstdint>
#include <vector>

#include <faiss/IndexIVF.h>

namespace faiss_ext {

// Lists that have a file of their own change in it at once, cells and codes in
// the index's file only when that is written: which of the two is older shows
// in the lists' ids.

/// A checksum of each list's ids, or nothing where lists are not on disk. Time
/// O(entries), which reads 8 bytes of each.
std::vector<uint64_t> checksums_of_ids_on_disk(const faiss::IndexIVF& ivf);

/// Throws unless the lists have the ids that the checksums, if any, are of.
void check_ids_on_disk(
        const faiss::IndexIVF& ivf, const std::vector<uint64_t>& checksums);

} // namespace faiss_ext
