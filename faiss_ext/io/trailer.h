#pragma once

#include <cstdint>
#include <vector>

#include <faiss/Index.h>

#include "faiss_ext/io/format.h"

namespace faiss_ext {

/** What a GMM index has beyond the stock index in its file, as bytes; empty
 * for an index without a mixture.
 *
 * @param index  wrapped or not
 */
std::vector<uint8_t> serialize_gmm(const faiss::Index* index);

/** Turns the stock index that FAISS read into the GMM index that was written.
 *
 * @param index    wrapped or not; stays whole where this throws
 * @param payload  what serialize_gmm returned
 * @param version  of the trailer that it is from
 *
 * Throws FaissException for an index that is not sound or a payload that does
 * not fit it (checks.h): every length is compared with what is left of the
 * payload and with the index's own nlist, d and list sizes before memory is
 * taken.
 */
void deserialize_gmm(
        faiss::Index** index,
        const std::vector<uint8_t>& payload,
        uint32_t version = kVersion);

} // namespace faiss_ext
