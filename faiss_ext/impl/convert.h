#pragma once

#include <memory>
#include <string>
#include <vector>

#include <faiss/IndexIVF.h>

namespace faiss_ext {

struct IVFGMM;
struct IndexIVFRaBitQGMM;

/// The place that holds the index inside an IndexPreTransform, IndexIDMap or
/// IndexRefine, or nullptr.
faiss::Index** inside(faiss::Index* index);
/// The same for the innermost; `index` itself where it is not wrapped.
faiss::Index** unwrap(faiss::Index** index);
const faiss::Index* unwrap(const faiss::Index* index);
/// The innermost indexes: those of all parts of IndexShards and IndexReplicas,
/// however they are nested with the wrappers above; without such, the one.
std::vector<faiss::Index*> innermost(faiss::Index* index);

/// nprobe at most nlist where FAISS's fast scan is inside: it makes tables of
/// as many lists as nprobe says, in a parallel region, and only then looks at
/// how many there are.
void limit_fast_scan(faiss::Index& index);

/// The GMM part of an index, which is one of the innermost; throws, beginning
/// with `what`, where its lists have none.
IVFGMM& gmm_of(const std::string& what, faiss::Index* index);

/** The IndexIVFGMM of a stock index's codec, with all that the stock index
 * held: lists, quantizer, codec and settings move, and `stock` is left fit for
 * nothing but its destructor.
 *
 * Returns nullptr, having done nothing, for types that have no IndexIVFGMM.
 */
std::unique_ptr<faiss::IndexIVF> take_as_gmm(faiss::IndexIVF& stock);

/** The same with the codec and the settings copied, but without quantizer and
 * lists, and ntotal = 0. */
std::unique_ptr<faiss::IndexIVF> copy_settings_as_gmm(
        const faiss::IndexIVF& stock);

/** An IndexIVFRaBitQGMM with quantizer and settings of an IndexIVFFlat and its
 * ntotal, but with empty lists; `stock` is left fit for its destructor alone.
 *
 * Returns nullptr, having done nothing, for other types and where there are
 * entries. */
std::unique_ptr<IndexIVFRaBitQGMM> take_as_codes_alone(faiss::IndexIVF& stock);

} // namespace faiss_ext
