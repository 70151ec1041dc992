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
 * Every shard has the means and cells of all lists. A search runs in any one
 * shard (step); where it needs codes or vectors it requests them of the shards
 * that hold them (answer). These say what the search would have seen in the
 * whole index, so that it finds the same: distances to the bit, and ids (with
 * probe orders of whole lists equal distances may change places). It takes two
 * rounds of requests with a target_recall, three with nprobe, one where whole
 * lists are searched, and more with a selector that keeps out what is near,
 * where lists held fewer than k, or where a query of the batch has found too
 * little for its target:
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
 * Memory of a shard: means and cells of all lists, and the codes of its own
 * lists unless they are mapped (IO_FLAG_MMAP); vectors and ids should be on
 * disk (merge_ondisk). Requests have 36 bytes a cell, answers 24 bytes for each
 * entry whose estimate is below a threshold, which the nearest 80 + 2 k entries
 * gave (a search without shards lowers it as it goes). All shards must run on
 * one instruction set.
 */
class ListShard {
public:
    using Bytes = std::vector<uint8_t>;
    /// The answers of each round so far, in each round those of all shards in
    /// the order of their numbers.
    using Answers = std::vector<std::vector<Bytes>>;

    struct Step {
        bool done = false;            ///< whether the search has ended
        std::vector<float> distances; ///< if done, size n * k
        std::vector<idx_t> labels;    ///< if done, size n * k
        std::vector<Bytes> requests;  ///< if not, one for each shard
    };

    /** @param index   a GMM index, alone or in IndexPreTransform: the whole
     *                 index, from a file that all shards read
     *  @param shard   number of this shard, below shards
     *  @param shards  how many there are
     *
     * Throws FaissException for other indexes, for max_assign > 1, and where
     * FAISS's own functions appended entries. */
    ListShard(std::unique_ptr<faiss::Index> index, size_t shard, size_t shards);

    /// Applies the IndexPreTransform to queries, of size n * d before: step()
    /// and answer() take what this returns.
    std::vector<float> transform(size_t n, const float* x) const;

    /** One round of a search.
     *
     * @param x        n queries as transform() returned them
     * @param k        neighbours wanted
     * @param params   as IndexIVFGMM::search takes them, or nullptr
     * @param answers  to the requests of all rounds before; empty at first
     *
     * Throws FaissException for what a search throws for, and for answers to
     * another search. */
    Step step(
            size_t n,
            const float* x,
            size_t k,
            const faiss::SearchParameters* params,
            const Answers& answers) const;

    /** Answers the request of a step to this shard.
     *
     * @param n, x, k, params  those of the step; of params only the selector is
     *                         read
     *
     * Throws FaissException for a request to another shard. */
    Bytes answer(
            size_t n,
            const float* x,
            size_t k,
            const Bytes& request,
            const faiss::SearchParameters* params = nullptr) const;

    /// The GMM index inside.
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
