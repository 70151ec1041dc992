#pragma once

#include <faiss/Index.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

namespace faiss_ext {

/// The file that an index's lists are in, or nullptr.
const faiss::OnDiskInvertedLists* lists_on_disk(const faiss::Index* index);

/** Nothing is written that cannot be read. Entries that FAISS's own functions
 * added are taken in, which changes the index. Returns whether there is
 * anything that FAISS does not write.
 *
 * Throws FaissException for an index that cannot be read again. */
bool check_before_writing(const faiss::Index* index);

} // namespace faiss_ext
