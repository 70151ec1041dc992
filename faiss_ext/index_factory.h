#pragma once

#include <string>

#include <faiss/Index.h>

namespace faiss_ext {

/** faiss::index_factory with GMM<nlist> where IVF<nlist> stands.
 *
 *     GMM1024,Flat   GMM4096_Diag,PQ16   OPQ16_64,GMM1024,PQ16,RFlat
 *     PCA64,GMM1024,SQ8   GMM1024x32,Flat   GMM256,PQ16np
 *     GMM65536_HNSW32,Flat
 *
 *     gmm  := "GMM" nlist [ "x" cells_per_list ] [ "_Diag" | "_Tied" ]
 *             [ "_HNSW" m ]
 *
 * nlist is 1 to 2^24 and may end in k (1024) or M (1024 * 1024). With _HNSW
 * (m links a node, 32 if left out) the quantizer is an IndexHNSWFlat over the
 * means: a query computes the distances to the nearest means and their
 * partners, and not to all nlist.
 *
 * Flat, PQ and SQ make an IndexIVFGMM, RaBitQ, RaBitQ2 and RaBitQ4 an
 * IndexIVFRaBitQGMM; other codes ("GMM1024,PQ16x4fs") make the stock index that
 * FAISS makes, with an IndexGMM as its quantizer and without cells.
 *
 * IDMap and IDMap2 around a GMM index, or around transforms before one, are
 * left out: an IVF index keeps ids itself, and FAISS's IndexIDMap gives wrong
 * ids once something was removed from an IVF index. For IDMap2, which
 * reconstructs by id, the index gets a direct map. In front of an index that
 * RFlat or Refine ends they stay, around all of it: what refines takes no ids.
 *
 * A string without GMM goes to faiss::index_factory unchanged. Throws
 * FaissException naming the token that is not understood. The caller owns the
 * index.
 *
 * @param d       dimension, above 0
 * @param metric  with GMM: METRIC_L2 or METRIC_INNER_PRODUCT
 */
faiss::Index* index_factory(
        int d,
        const char* description,
        faiss::MetricType metric = faiss::METRIC_L2);

/// The string that index_factory makes such an index from; empty, as in FAISS,
/// where there is none. It leaves out what FAISS's own function leaves out
/// (PQ4+4: PQ4). A PQ that was read from a file of stock FAISS is PQ16np: such
/// files do not say whether it was trained for polysemous codes (PQ16).
std::string reverse_index_factory(const faiss::Index* index);

} // namespace faiss_ext
