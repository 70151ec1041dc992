#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

struct Conversation;

/** One of several processes that search one index together, each with the codes
 * of some lists in memory: list i belongs to shard i % shards.
 *
 * There is one plan of a search, that of the whole index, whose means and
 * cells each shard has: the search itself runs in any one of them (step), and
 * where it would look at codes or vectors it asks the shards (answer). What
 * they say is what it would have seen, so that it finds what the whole index
 * finds: the same distances, to the bit, and the same ids (with probe orders of
 * whole lists equal distances may change places). Two rounds of questions with
 * a target_recall, three with nprobe, one where whole lists are searched, and
 * more with a selector that keeps out what is near, or where lists held fewer
 * than k:
 *
 *     Answers answers;
 *     ListShard::Step step;
 *     while (!(step = any.step(n, x, k, params, answers)).done) {
 *         answers.emplace_back();
 *         for (shard s) {
 *             answers.back().push_back(
 *                     s.answer(n, x, k, step.requests[s], params));
 *         }
 *     }
 *
 * Memory of a shard: means and cells of all lists, codes of its own, none
 * where these are mapped (IO_FLAG_MMAP); vectors and ids should be on disk
 * (merge_ondisk). Requests have 36 bytes a cell,
 * answers 24 bytes an entry below the threshold: one that the nearest 80 + 2 k
 * entries gave, where an index alone lowers it as it goes. All shards must run
 * on one instruction set.
 */
class ListShard {
public:
    using Bytes = std::vector<uint8_t>;
    /// Of each round, of each shard.
    using Answers = std::vector<std::vector<Bytes>>;

    struct Step {
        bool done = false;
        std::vector<float> distances; ///< if done, size n * k
        std::vector<idx_t> labels;    ///< if done, size n * k
        std::vector<Bytes> requests;  ///< if not, one for each shard
    };

    /** @param index  a GMM index, alone or in IndexPreTransform: the whole one,
     *                from a file that all shards read
     *  @param shard  below shards
     *
     * Throws FaissException for other indexes, for max_assign > 1, and where
     * FAISS's own functions appended entries. */
    ListShard(std::unique_ptr<faiss::Index> index, size_t shard, size_t shards);

    /// The queries as the IVF index sees them, which the functions below take.
    std::vector<float> transform(size_t n, const float* x) const;

    /** One round of a search.
     *
     * @param params  as IndexIVFGMM::search takes them, or nullptr
     *
     * Throws FaissException for what a search throws for, and for answers to
     * another one. */
    Step step(
            size_t n,
            const float* x,
            size_t k,
            const faiss::SearchParameters* params,
            const Answers& answers) const;

    /** What this shard has of what a step asked for.
     *
     * @param params  the step's, whose selector is needed here, too
     *
     * Throws FaissException for requests that are not this shard's. */
    Bytes answer(
            size_t n,
            const float* x,
            size_t k,
            const Bytes& request,
            const faiss::SearchParameters* params = nullptr) const;

    const faiss::IndexIVF& ivf() const {
        return *inner;
    }

private:
    std::vector<Bytes> requests_of(
            const std::vector<Conversation>& conversations) const;

    std::unique_ptr<faiss::Index> index;
    size_t shard, shards;
    faiss::IndexIVF* inner;
    IVFGMM* gmm;
};

} // namespace faiss_ext
