#pragma once

#include <faiss/Index.h>
#include <faiss/impl/io.h>

namespace faiss_ext {

/** Writes a stock FAISS index followed by a GMM trailer.
 *
 * faiss::read_index opens the file as an IVF index over the means (with
 * max_assign > 1 its results repeat ids, since it takes copies for vectors);
 * faiss_ext::read_index gives back the GMM index, whose search results are the
 * same to the bit. An index of codes alone (IndexIVFRaBitQGMM) is one that
 * faiss::read_index refuses.
 *
 * The index may be a GMM index inside IndexPreTransform, IndexRefine and
 * IndexIDMap, a stock IVF index with an IndexGMM quantizer, or an IndexGMM
 * alone; one without a mixture is written as FAISS does. Several indexes may
 * follow one another in one writer.
 *
 * Whatever happens, the file `filename` is the old one or the new one: the
 * index is written to another file beside it, which is flushed to the device
 * and renamed. A process that is killed leaves that file, ".NAME.PID-N.tmp",
 * which may be deleted. Devices and pipes are written directly.
 *
 * Throws FaissException if writing fails, and before anything is written for an
 * index that could not be read again: one with fields that do not fit what it
 * holds, with entries removed by FAISS's own functions, or with mapped lists
 * (IO_FLAG_MMAP). Entries that FAISS's own functions added are taken in first,
 * as add does, which changes the index.
 */
void write_index(const faiss::Index* index, const char* filename);
void write_index(const faiss::Index* index, faiss::IOWriter* writer);

/** Reads what write_index wrote, in this version or an earlier one, and files
 * of stock FAISS. The caller owns the index.
 *
 * Throws FaissException for a file that is truncated, corrupted (both parts
 * have checksums) or foreign, or whose parts do not fit each other. All of that
 * is checked before FAISS parses its part, and before memory is taken for the
 * trailer. A trailer of a later version is refused; faiss::read_index opens
 * such a file, and swap_to_gmm (ivflib.h) makes a new mixture. From a reader
 * that cannot go back FAISS's part is held in memory until it is parsed.
 *
 * IO_FLAG_MMAP (faiss/index_io.h) maps lists and codes where they lie in the
 * file, and leaves out the checksum of FAISS's part. The file must not be
 * truncated or overwritten in place meanwhile; it may be deleted, or replaced
 * by write_index, which renames. An index with vectors that was read so can be
 * searched, calibrated and given a direct map, but not changed, cloned or
 * written. An IndexIVFRaBitQGMM can, also over the file that it is mapped from:
 * its changes stay in memory until it is written.
 *
 * Lists on disk (OnDiskInvertedLists) are in another file, which the index's
 * file names; with IO_FLAG_MMAP it is opened read-only. Changes of such an
 * index are in the lists' file at once, but in the index's file only when it is
 * written. Until then reading it throws where ids of the lists have changed,
 * since cells and codes are of what was before; with IO_FLAG_MMAP the ids are
 * not looked at.
 */
faiss::Index* read_index(const char* filename, int io_flags = 0);
faiss::Index* read_index(faiss::IOReader* reader, int io_flags = 0);

} // namespace faiss_ext
