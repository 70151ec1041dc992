#pragma once

#include <cstdint>

#include <faiss/impl/io.h>

#include "faiss_ext/io/streams.h"

namespace faiss_ext {

/** Walks through FAISS's part of a file before FAISS does, which believes what
 * it reads: it takes memory by lengths, divides by what a product quantizer
 * says, and calls itself as deep as indexes are nested.
 *
 * Throws FaissException for lengths that the file does not have, quantizers
 * that do not fit the index, and nesting that no index needs. What the parts
 * say of each other is compared afterwards (checks.h). Time O(nlist).
 *
 * @param reader  at the first byte; anywhere afterwards
 * @param length  of the part
 * @param strict  types that no IndexIVFGMM is made of are refused, but for what
 *                refines; otherwise the walk ends there
 */
void check_layout(
        faiss::IOReader* reader,
        const Seekable& place,
        uint64_t length,
        bool strict);

} // namespace faiss_ext
