#include "faiss_ext/ListShard.h"

#include <cstring>
#include <utility>

#include <faiss/IndexPreTransform.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/impl/errors.h"
#include "faiss_ext/scan/told_search.h"
#include "faiss_ext/store/list_storage.h"

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
        const size_t n = inner->invlists->list_size(i);
        const size_t known = cells.list_size(i);
        check_not_shortened(i, n, known, has_vectors(*inner));
        FAISS_THROW_IF_NOT_FMT(
                n == known,
                "index: list %zu has entries that are in no cell; maintain() "
                "it first",
                i);
    }
    for (size_t i = 0; i < cells.codes.blocks.size(); i++) {
        if (i % shards != shard) {
            cells.codes.blocks[i] = CodeBlocks();
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
    check_neighbours(idx_t(k));
    FAISS_THROW_IF_NOT_FMT(
            n == 0 || k <= std::numeric_limits<idx_t>::max() / 16 / n,
            "n = %zu, k = %zu, expected numbers that memory can hold",
            n,
            k);
    const SearchPlan plan = make_plan(*inner, *gmm, params, k);
    Step out;
    out.distances.resize(n * k);
    out.labels.resize(n * k);
    if (n == 0) {
        out.done = true;
        return out;
    }
    std::vector<std::vector<ToldEntry>> told; // by rounds, and by shards
    for (const std::vector<Bytes>& round : answers) {
        FAISS_THROW_IF_NOT_FMT(
                round.size() == shards,
                "answers: a round of %zu, expected shards = %zu",
                round.size(),
                shards);
        for (const Bytes& bytes : round) {
            told.push_back(from_bytes<ToldEntry>(bytes, n));
        }
    }
    std::vector<Conversation> conversations(n);
    for (size_t i = 0; i < n; i++) {
        conversations[i].shards = shards;
        conversations[i].query = uint32_t(i);
        conversations[i].told.resize(told.size());
    }
    for (size_t t = 0; t < told.size(); t++) {
        for (const ToldEntry& e : told[t]) {
            FAISS_THROW_IF_NOT_FMT(
                    has_entry(*inner, e.list, e.entry),
                    "answers: entry %u of list %u, which there is not",
                    e.entry,
                    e.list);
            ToldEntries& of_query = conversations[e.query].told[t];
            if (of_query.end != &e) {
                of_query.begin = &e;
            }
            of_query.end = &e + 1;
        }
    }
    search_told(
            {*inner,
             *gmm,
             plan,
             n,
             x,
             k,
             conversations,
             out.distances.data(),
             out.labels.data()});
    out.requests = requests_of(conversations);
    out.done = true;
    for (const Bytes& request : out.requests) {
        out.done &= request.empty();
    }
    return out;
}

std::vector<ListShard::Bytes> ListShard::requests_of(
        const std::vector<Conversation>& conversations) const {
    std::vector<size_t> bytes(shards, 0);
    for (const Conversation& c : conversations) {
        for (const AskedEntries& asked : c.asked) {
            bytes[asked.list % shards] += sizeof(asked);
        }
    }
    std::vector<Bytes> out(shards);
    for (size_t s = 0; s < shards; s++) {
        out[s].reserve(bytes[s]);
    }
    for (const Conversation& c : conversations) {
        for (const AskedEntries& asked : c.asked) {
            const auto* begin = reinterpret_cast<const uint8_t*>(&asked);
            Bytes& to = out[asked.list % shards];
            to.insert(to.end(), begin, begin + sizeof(asked));
        }
    }
    return out;
}

ListShard::Bytes ListShard::answer(
        size_t n,
        const float* x,
        size_t k,
        const Bytes& bytes,
        const faiss::SearchParameters* params) const {
    check_rows("x", int64_t(n), inner->d, x);
    check_neighbours(idx_t(k));
    const auto request = from_bytes<AskedEntries>(bytes, n);
    const PairCells& cells = gmm->cells;
    for (size_t i = 0; i < request.size(); i++) {
        const AskedEntries& a = request[i];
        if (i > 0 && request[i - 1].query == a.query) {
            const AskedEntries& before = request[i - 1];
            FAISS_THROW_IF_NOT_FMT(
                    a.kind == before.kind &&
                            (a.list != before.list || a.begin >= before.end),
                    "request: of query %u, items of two kinds, or entries of "
                    "list %u that do not ascend",
                    a.query,
                    a.list);
        }
        FAISS_THROW_IF_NOT_FMT(
                a.kind != AskedEntries::cell || a.begin < a.end,
                "request: a cell of list %u without entries",
                a.list);
        const bool whole = a.kind == AskedEntries::neighbours;
        FAISS_THROW_IF_NOT_FMT(
                whole ? has_vectors(*inner)
                      : a.kind <= AskedEntries::nearest && !cells.codes.empty(),
                "request: of kind %u, which this shard cannot answer",
                unsigned(a.kind));
        FAISS_THROW_IF_NOT_FMT(
                a.list < inner->nlist && a.list % shards == shard &&
                        a.begin <= a.end &&
                        a.end <= inner->invlists->list_size(a.list) &&
                        (whole || a.end <= cells.list_size(a.list)),
                "request: entries %u to %u of list %u, which this shard has "
                "not",
                a.begin,
                a.end,
                a.list);
    }
    return to_bytes(answer_asked(
            {*inner, *gmm, params ? params->sel : nullptr, x, k, request}));
}

} // namespace faiss_ext
