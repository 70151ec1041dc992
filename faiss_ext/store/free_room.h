#pragma once

#include <faiss/invlists/OnDiskInvertedLists.h>

namespace faiss_ext {

/** Has lists on disk take for free what none of them occupies of their file,
 * if they take more than that for free.
 *
 * FAISS's merge_from leaves the whole file free that it has filled: a list that
 * grows is put over others then, or FAISS's assertions end the process. A file
 * may say the same.
 *
 * Throws FaissException if lists overlap each other. Time O(nlist log nlist).
 */
void mend_free_room(faiss::OnDiskInvertedLists& lists);

/// The same of any lists before they change, in time O(nlist): where lists and
/// free room are more than their file.
void mend_free_room_if_full(faiss::InvertedLists* lists);

} // namespace faiss_ext
