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
 *
 * The file of that name is the old one or the new one, whatever happens: the
 * index is written beside it, flushed to the device, and renamed
 * (io/AtomicFileWriter.h). A process that is killed leaves ".NAME.PID-N.tmp"
 * there, which may be deleted. Devices and pipes are written directly.
 *
 * What could not be read again is refused before anything is written: fields
 * that were changed to what the index does not hold, entries removed by
 * FAISS's own functions, lists that are mapped (IO_FLAG_MMAP). Entries that
 * FAISS's own functions added are taken in first, as add does, which changes
 * the index.
 *
 * Throws FaissException for that, and for whatever of writing fails.
 */
void write_index(const faiss::Index* index, const char* filename);
void write_index(const faiss::Index* index, faiss::IOWriter* writer);

/** Reads both.
 *
 * Throws FaissException for what is truncated, corrupted (checksums of both
 * parts) or foreign, and for parts that do not fit each other (io/checks.h). A
 * file without a trailer is read as FAISS does if its header is what FAISS
 * writes. The whole is checked before FAISS parses it, its lengths and types
 * (io/stock_layout.h), too; with IO_FLAG_MMAP its checksum is not, and
 * codes stay where they lie in a file (codes/CodeBlocks.h), which must not be
 * truncated or overwritten in place meanwhile: write_index replaces it by a
 * rename, which does no harm, and so does deleting it. An index with vectors
 * that was read so can be searched, calibrated and given a direct map, and
 * neither changed, cloned nor written. An IndexIVFRaBitQGMM can, also over the
 * file that it is mapped from: its changes stay in memory until it is written.
 * From readers that cannot go back FAISS's part is held in memory until it is
 * parsed. Lists on disk are in another file, which the index names and FAISS
 * opens: read-only with IO_FLAG_MMAP, too. What an index with such lists
 * changes is in their file at once, and in its own once it is written: until
 * then cells and codes there are of what was before, and reading it throws
 * where ids have changed; with IO_FLAG_MMAP, which does not read them, it does
 * not. Every length of the trailer is checked before memory is taken. Trailers
 * of all versions so far are read (io/format.h). One of a later version is
 * refused; faiss::read_index opens the file, and swap_to_gmm (ivflib.h) makes a
 * new mixture.
 */
faiss::Index* read_index(const char* filename, int io_flags = 0);
faiss::Index* read_index(faiss::IOReader* reader, int io_flags = 0);

} // namespace faiss_ext
