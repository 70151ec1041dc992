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
 * With _HNSW (m links a node, 32 if left out) the quantizer is an
 * IndexHNSWFlat over the means: a query computes the distances to the nearest
 * few and to their partners, and not to all nlist.
 *
 * Flat, PQ and SQ make an IndexIVFGMM; other codes ("GMM1024,PQ16x4fs") the
 * stock index that FAISS makes, with an IndexGMM as its quantizer, and no
 * cells. nlist may end in k or M (1024, 1024 * 1024).
 *
 * IDMap and IDMap2 around a GMM index (behind transforms at most) are left out:
 * an IVF index keeps ids itself, and FAISS's IndexIDMap gives wrong ids once
 * something was removed from an IVF index. For IDMap2, which reconstructs by
 * id, the index gets a direct map. nlist is 2^24 at most.
 *
 * What has no GMM in it goes to faiss::index_factory unchanged. Throws
 * FaissException naming the token that is not understood.
 */
faiss::Index* index_factory(
        int d,
        const char* description,
        faiss::MetricType metric = faiss::METRIC_L2);

/// The string that index_factory makes such an index from; empty, as in FAISS,
/// where there is none. Of what FAISS's own leaves out (PQ4+4: PQ4), so does
/// this. Whether a PQ is trained for polysemous codes (PQ16) or not (PQ16np) is
/// not in FAISS's files: what was read from one is PQ16np.
std::string reverse_index_factory(const faiss::Index* index);

} // namespace faiss_ext
