#include "faiss_ext/ListShard.h"

#include <cstring>
#include <utility>

#include <faiss/IndexPreTransform.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/scan/told_search.h"

namespace faiss_ext {

namespace {

template <class T>
ListShard::Bytes to_bytes(const std::vector<T>& items) {
    ListShard::Bytes out(items.size() * sizeof(T));
    if (!out.empty()) {
        memcpy(out.data(), items.data(), out.size());
    }
    return out;
}

template <class T>
std::vector<T> from_bytes(const ListShard::Bytes& bytes, size_t n) {
    FAISS_THROW_IF_NOT_FMT(
            bytes.size() % sizeof(T) == 0,
            "a message of %zu bytes, expected a multiple of %zu",
            bytes.size(),
            sizeof(T));
    std::vector<T> out(bytes.size() / sizeof(T));
    if (!out.empty()) {
        memcpy(out.data(), bytes.data(), bytes.size());
    }
    for (const T& item : out) {
        FAISS_THROW_IF_NOT_FMT(
                item.query < n,
                "a message about query %u, expected fewer than n = %zu",
                item.query,
                n);
    }
    return out;
}

} // namespace

ListShard::ListShard(
        std::unique_ptr<faiss::Index> index_in, size_t shard, size_t shards)
        : index(std::move(index_in)), shard(shard), shards(shards) {
    FAISS_THROW_IF_NOT_FMT(
            shard < shards,
            "shard = %zu, expected less than shards = %zu",
            shard,
            shards);
    auto pre = dynamic_cast<faiss::IndexPreTransform*>(index.get());
    faiss::Index* bare = pre ? pre->index : index.get();
    gmm = dynamic_cast<IVFGMM*>(bare);
    inner = dynamic_cast<faiss::IndexIVF*>(bare);
    FAISS_THROW_IF_NOT_MSG(
            gmm && inner,
            "index: expected a GMM index, alone or in an IndexPreTransform");
    FAISS_THROW_IF_NOT_FMT(
            gmm->max_assign == 1,
            "index: max_assign = %zu, expected 1",
            gmm->max_assign);
    PairCells& cells = gmm->cells;
    for (size_t i = 0; !cells.empty() && i < inner->nlist; i++) {
        FAISS_THROW_IF_NOT_FMT(
                inner->invlists->list_size(i) == cells.list_size(i),
                "index: list %zu has entries that are in no cell; maintain() "
                "it first",
                i);
    }
    for (size_t i = 0; i < cells.codes.blocks.size(); i++) {
        if (i % shards != shard) {
            AlignedBytes().swap(cells.codes.blocks[i]);
        }
    }
}

std::vector<float> ListShard::transform(size_t n, const float* x) const {
    check_rows("x", int64_t(n), index->d, x);
    auto pre = dynamic_cast<const faiss::IndexPreTransform*>(index.get());
    const float* y = pre ? pre->apply_chain(idx_t(n), x) : x;
    const std::unique_ptr<const float[]> owner(y != x ? y : nullptr);
    return {y, y + n * inner->d};
}

ListShard::Step ListShard::step(
        size_t n,
        const float* x,
        size_t k,
        const faiss::SearchParameters* params,
        const Answers& answers) const {
    check_rows("x", int64_t(n), inner->d, x);
    FAISS_THROW_IF_NOT_MSG(k > 0, "k = 0, expected at least 1");
    const SearchPlan plan = make_plan(*inner, *gmm, params, k);
    FAISS_THROW_IF_NOT_MSG(
            plan.max_codes == 0 && !plan.sel,
            "params: max_codes and sel, expected neither");
    Step out;
    out.distances.resize(n * k);
    out.labels.resize(n * k);
    if (n == 0) {
        out.done = true;
        return out;
    }
    std::vector<Conversation> conversations(n);
    for (Conversation& c : conversations) {
        c.told.resize(answers.size());
    }
    for (size_t round = 0; round < answers.size(); round++) {
        for (const Bytes& bytes : answers[round]) {
            for (const ToldEntry& entry : from_bytes<ToldEntry>(bytes, n)) {
                FAISS_THROW_IF_NOT_FMT(
                        entry.list < inner->nlist &&
                                entry.entry <
                                        inner->invlists->list_size(entry.list),
                        "answers: entry %u of list %u, which there is not",
                        entry.entry,
                        entry.list);
                conversations[entry.query].told[round].push_back(entry);
            }
        }
    }
    search_told(
            *inner,
            *gmm,
            plan,
            n,
            x,
            k,
            conversations,
            out.distances.data(),
            out.labels.data());
    std::vector<std::vector<AskedEntries>> requests(shards);
    out.done = true;
    for (const Conversation& c : conversations) {
        out.done &= c.asked.empty();
        for (const AskedEntries& asked : c.asked) {
            requests[asked.list % shards].push_back(asked);
        }
    }
    for (const auto& request : requests) {
        out.requests.push_back(to_bytes(request));
    }
    return out;
}

ListShard::Bytes ListShard::answer(
        size_t n, const float* x, size_t k, const Bytes& bytes) const {
    check_rows("x", int64_t(n), inner->d, x);
    const auto request = from_bytes<AskedEntries>(bytes, n);
    for (const AskedEntries& a : request) {
        FAISS_THROW_IF_NOT_FMT(
                a.list < inner->nlist && a.list % shards == shard &&
                        a.begin <= a.end &&
                        a.end <= inner->invlists->list_size(a.list),
                "request: entries %u to %u of list %u, which this shard has "
                "not",
                a.begin,
                a.end,
                a.list);
    }
    return to_bytes(answer_asked(*inner, *gmm, x, k, request));
}

} // namespace faiss_ext
