#pragma once

#include <string>
#include <vector>

#include <faiss/Index.h>

namespace faiss_ext {

/** Makes one index, whose lists are in a file (faiss::OnDiskInvertedLists),
 * out of parts that were built from copies of one trained index: train once
 * and write the index; for each part read it, add and write; then merge.
 *
 * The files are those of faiss.contrib.ondisk.merge_ondisk, and FAISS reads the
 * index. Vectors and ids are on disk; cells and codes stay in memory, so that
 * a query reads those vectors only that it compares. Parts are mapped. Memory
 * O(entry codes + largest list). Cells and calibration are made anew, for all
 * vectors, as an addition of them would.
 *
 * @param index        trained and empty, a GMM index or an IVF index of
 *                     FAISS's own, alone or in IndexPreTransform; it is filled
 *                     and refers to the file. write_index stores it
 * @param parts        index files with entries; read one after the other
 * @param ivfdata      the file of the lists; replaced once it is whole
 * @param shift_ids    adds to a part's ids the number of entries before it
 *
 * Throws FaissException for a part of another training, parts without any
 * entry, an index that has entries, a direct map, copies of vectors
 * (max_assign > 1) or codes alone (RaBitQ), and where the
 * disk is full: the index is as it was then, and so is the file. An interrupt
 * once all are in, while cells or calibration are made, leaves these due
 * (IVFGMM::maintain()).
 */
void merge_ondisk(
        faiss::Index* index,
        const std::vector<std::string>& parts,
        const std::string& ivfdata,
        bool shift_ids = false);

} // namespace faiss_ext
