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
 * a query reads only the vectors that it compares. Parts are mapped. Memory
 * O(codes of all entries + largest list). Cells and calibration are made anew
 * for all vectors, as by an addition.
 *
 * @param index      trained and empty: a GMM index or an IVF index of FAISS's
 *                   own, alone or in IndexPreTransform. It is filled and refers
 *                   to the file `ivfdata`; write_index stores the rest
 * @param parts      paths of index files that hold entries
 * @param ivfdata    path of the lists' file; an old one is replaced by the new
 *                   one when that is complete
 * @param shift_ids  adds to a part's ids the number of entries in parts before;
 *                   needed where each part numbered its own from 0: equal ids
 *                   of two parts are not looked for, and a search finds one
 *
 * Throws FaissException for a part of another training, for parts without any
 * entry, for an index with entries, a direct map, copies of vectors
 * (max_assign > 1) or codes alone (RaBitQ), and where the disk is full; index
 * and file are as they were then. An interrupt after all entries are in leaves
 * cells or calibration due (IVFGMM::maintain()).
 */
void merge_ondisk(
        faiss::Index* index,
        const std::vector<std::string>& parts,
        const std::string& ivfdata,
        bool shift_ids = false);

} // namespace faiss_ext
