#pragma once

#include <faiss/Index.h>
#include <faiss/impl/io.h>

namespace faiss_ext {

/** Writes a stock FAISS index followed by a GMM trailer.
 *
 * Plain faiss::read_index opens the file and finds a working IVF index over
 * the means; read_index below gives back the GMM index, with search results
 * that are the same to the bit. Works for any index around one GMM index
 * (IndexPreTransform, IndexRefine, IndexIDMap) and for stock IVF indexes with
 * an IndexGMM quantizer; an index without a mixture is written as FAISS does.
 */
void write_index(const faiss::Index* index, const char* filename);
void write_index(const faiss::Index* index, faiss::IOWriter* writer);

/** Reads both. Throws FaissException for files that are truncated, corrupted
 * (checksum) or foreign; every length is checked before memory is taken. */
faiss::Index* read_index(const char* filename, int io_flags = 0);
faiss::Index* read_index(faiss::IOReader* reader, int io_flags = 0);

} // namespace faiss_ext
