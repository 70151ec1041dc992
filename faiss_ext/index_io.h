#pragma once

#include <faiss/Index.h>
#include <faiss/impl/io.h>

namespace faiss_ext {

/** Writes a stock FAISS index followed by a GMM trailer.
 *
 * Plain faiss::read_index opens the file and finds a working IVF index over
 * the means (with max_assign > 1 its results repeat ids: the copies are plain
 * vectors to it); read_index below gives back the GMM index, with search
 * results that are the same to the bit. Works for any index around one GMM
 * index (IndexPreTransform, IndexRefine, IndexIDMap), for stock IVF indexes
 * with an IndexGMM quantizer, and for an IndexGMM alone; an index without a
 * mixture is written as FAISS does. Several may follow one another in one
 * writer.
 */
void write_index(const faiss::Index* index, const char* filename);
void write_index(const faiss::Index* index, faiss::IOWriter* writer);

/** Reads both.
 *
 * Throws FaissException for what is truncated, corrupted (checksums of both
 * parts) or foreign. From files and faiss::VectorIOReader the whole is checked
 * before FAISS parses it; with IO_FLAG_MMAP only the trailer is. From readers
 * that cannot go back FAISS's part is parsed as it comes, and checked then.
 * Every length of the trailer is checked before memory is taken. A trailer of
 * another version is refused; faiss::read_index opens the file, and swap_to_gmm
 * (ivflib.h) makes a new mixture.
 */
faiss::Index* read_index(const char* filename, int io_flags = 0);
faiss::Index* read_index(faiss::IOReader* reader, int io_flags = 0);

} // namespace faiss_ext
