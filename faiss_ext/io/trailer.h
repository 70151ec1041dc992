#pragma once

#include <faiss/Index.h>

#include "faiss_ext/io/fields.h"

namespace faiss_ext {

/** Writes what a GMM index has beyond the stock index in its file; nothing for
 * an index without a mixture. The same bytes each time.
 *
 * @param index  wrapped or not
 * @param at     the place of the first byte in the index's file
 */
void write_gmm(const faiss::Index* index, faiss::IOWriter* writer, size_t at);

/** Turns the stock index that FAISS read into the GMM index that was written.
 *
 * @param index    wrapped or not; stays whole where this throws
 * @param fields   what write_gmm wrote
 *
 * Throws FaissException for an index that is not sound or fields that do not
 * fit it (checks.h): every length is compared with what is left of them and
 * with the index's own nlist, d and list sizes before memory is taken.
 */
void read_gmm(faiss::Index** index, FieldReader fields);

} // namespace faiss_ext
