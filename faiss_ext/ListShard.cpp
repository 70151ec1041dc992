#include "faiss_ext/ListShard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <faiss/IndexPreTransform.h>
#include <faiss/impl/FaissAssert.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/QueryBlock.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/CodeSearcher.h"
#include "faiss_ext/scan/collectors.h"
#include "faiss_ext/scan/told.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

/// Queries that a thread takes at once, as gmm_search does.
constexpr size_t kQueryBlock = 48;

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

/// A block of queries, and what is computed of each for codes.
struct Queries {
    const faiss::IndexIVF& ivf;
    QueryBlock block;
    QueryCoarse coarse;

    Queries(const faiss::IndexIVF& ivf, const SearchPlan& plan)
            : ivf(ivf), coarse(ivf, plan.quantizer_params) {}

    void start(const CellCodes& codes, size_t n, const float* x) {
        block.start(codes, n, x, !coarse.by_graph());
    }
    void choose(size_t i, const float* q) {
        if (coarse.by_graph()) {
            coarse.start_graph(q);
        } else {
            coarse.start(
                    &block.distances[i * ivf.nlist],
                    block.least[i],
                    block.largest[i]);
        }
    }
    float norm(size_t i) const {
        return is_ip(ivf) ? block.norm(i) : 0;
    }
};

/// Runs f(worker, begin, count) over blocks of queries, in each thread with a
/// worker of its own.
template <class Make, class F>
void in_blocks(size_t n, const Make& make, const F& f) {
    const size_t n_blocks = (n + kQueryBlock - 1) / kQueryBlock;
    gmm::parallel_workers(
            n_blocks,
            n_blocks > 1,
            [&] {
                return [&f, n, worker = make()](size_t b) mutable {
                    check_interrupt();
                    const size_t begin = b * kQueryBlock;
                    f(worker, begin, std::min(kQueryBlock, n - begin));
                };
            },
            [](const auto&) {});
}

/// Searches by codes, as far as what was told goes.
template <class Distances>
void search_told(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        std::vector<Conversation>& conversations,
        float* distances,
        idx_t* labels) {
    using Searcher = CodeSearcher<ToldDistances<Distances>, ToldCodes>;
    struct Worker {
        Queries queries;
        Searcher searcher;
        KnnCollector collector;
    };
    in_blocks(
            n,
            [&] {
                return Worker{
                        Queries(ivf, plan),
                        Searcher(ivf, gmm, plan),
                        {is_ip(ivf), k}};
            },
            [&](Worker& w, size_t begin, size_t count) {
                const size_t d = ivf.d;
                w.queries.start(gmm.cells.codes, count, x + begin * d);
                for (size_t i = 0; i < count; i++) {
                    const size_t number = begin + i;
                    const float* q = x + number * d;
                    Conversation& conversation = conversations[number];
                    conversation.begin(uint32_t(number));
                    w.searcher.scan.conversation = &conversation;
                    w.searcher.exact.conversation = &conversation;
                    w.collector.begin(
                            distances + number * k, labels + number * k, true);
                    if (finite(q, d)) {
                        w.queries.choose(i, q);
                        try {
                            w.searcher(
                                    q,
                                    &w.queries.block.rotated[i * d],
                                    w.queries.coarse,
                                    w.queries.norm(i),
                                    k,
                                    w.collector);
                        } catch (const MoreToAsk&) {
                            continue;
                        }
                    }
                    w.collector.end(true, ivf.invlists);
                }
            });
}

/// The same of whole lists.
void search_lists_told(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const SearchPlan& plan,
        size_t n,
        const float* x,
        size_t k,
        std::vector<Conversation>& conversations,
        float* distances,
        idx_t* labels) {
    if (conversations.front().told.empty()) {
        std::vector<float> coarse(n * plan.nprobe);
        std::vector<idx_t> keys(coarse.size());
        probe(ivf, gmm, plan, n, x, coarse.data(), keys.data());
        for (size_t j = 0; j < keys.size(); j++) {
            const size_t i = j / plan.nprobe;
            if (keys[j] >= 0 && finite(x + i * ivf.d, ivf.d)) {
                conversations[i].asked.push_back(
                        {uint32_t(i),
                         uint32_t(j % plan.nprobe),
                         AskedEntries::neighbours,
                         uint32_t(keys[j]),
                         0,
                         0,
                         coarse[j],
                         0,
                         0});
            }
        }
        return;
    }
    for (size_t i = 0; i < n; i++) {
        std::vector<ToldEntry>& told = conversations[i].told.front();
        std::sort(
                told.begin(),
                told.end(),
                [&](const ToldEntry& a, const ToldEntry& b) {
                    if (a.distance != b.distance) {
                        return is_ip(ivf) ? a.distance > b.distance
                                          : a.distance < b.distance;
                    }
                    return a.place != b.place ? a.place < b.place
                                              : a.entry < b.entry;
                });
        for (size_t j = 0; j < k; j++) {
            const bool any = j < told.size();
            distances[i * k + j] = any ? told[j].distance
                    : is_ip(ivf)       ? HeapForIP::neutral()
                                       : HeapForL2::neutral();
            labels[i * k + j] = any
                    ? ivf.invlists->get_single_id(told[j].list, told[j].entry)
                    : -1;
        }
    }
}

/// Of items in the order of their queries, those of each.
template <class Item, class F>
void for_each_query(const std::vector<Item>& items, const F& f) {
    for (size_t begin = 0, end; begin < items.size(); begin = end) {
        end = begin;
        while (end < items.size() && items[end].query == items[begin].query) {
            end++;
        }
        f(&items[begin], &items[begin] + (end - begin));
    }
}

/// What one query asked of cells and of lists' distances.
template <class Distances>
struct Answerer {
    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    CodeScan scan;
    Distances exact;
    std::vector<Segment> segments;

    Answerer(const faiss::IndexIVF& ivf, const IVFGMM& gmm)
            : ivf(ivf), gmm(gmm), scan(gmm.cells.codes), exact(ivf, gmm) {}

    void operator()(
            const AskedEntries* begin,
            const AskedEntries* end,
            std::vector<ToldEntry>& out) {
        const size_t first = out.size();
        for (const AskedEntries* a = begin; a < end; a++) {
            if (a->kind == AskedEntries::distances) {
                const size_t n = gmm.cells.list_size(a->list);
                for (size_t e = 0; e < n; e++) {
                    out.push_back(
                            {a->query, a->place, a->list, uint32_t(e), 0, 0});
                }
                continue;
            }
            segments.assign(
                    1,
                    {gmm.cells.codes.blocks[a->list].data(),
                     a->list,
                     a->begin,
                     a->end,
                     a->score,
                     a->slack});
            const size_t n = scan(segments, 0, 1, a->threshold);
            for (size_t c = 0; c < n; c++) {
                const CodeCandidate& found = scan.candidates[c];
                out.push_back(
                        {a->query,
                         a->place,
                         found.list,
                         found.entry,
                         found.bound,
                         0});
            }
        }
        const size_t ahead = exact.ahead();
        for (size_t i = first; i < out.size() + ahead; i++) {
            if (i < out.size()) {
                exact.prefetch(out[i].list, out[i].entry);
            }
            if (i >= first + ahead) {
                ToldEntry& entry = out[i - ahead];
                entry.distance = exact(entry.list, entry.entry);
            }
        }
    }
};

template <class Distances>
std::vector<ToldEntry> answer_by_codes(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* x,
        const std::vector<AskedEntries>& request) {
    std::vector<std::pair<const AskedEntries*, const AskedEntries*>> of_query;
    for_each_query(request, [&](auto* begin, auto* end) {
        of_query.emplace_back(begin, end);
    });
    const size_t n = of_query.size(), d = ivf.d;
    std::vector<float> asking(n * d);
    for (size_t i = 0; i < n; i++) {
        std::copy_n(x + of_query[i].first->query * d, d, &asking[i * d]);
    }
    struct Worker {
        Queries queries;
        Answerer<Distances> answerer;
    };
    std::vector<std::vector<ToldEntry>> out(n);
    in_blocks(
            n,
            [&] {
                return Worker{Queries(ivf, {}), {ivf, gmm}};
            },
            [&](Worker& w, size_t begin, size_t count) {
                const float* block = &asking[begin * d];
                w.queries.start(gmm.cells.codes, count, block);
                for (size_t i = 0; i < count; i++) {
                    const float* rotated = &w.queries.block.rotated[i * d];
                    w.queries.choose(i, block + i * d);
                    w.answerer.scan.start(rotated);
                    w.answerer.exact.set_query(
                            block + i * d,
                            rotated,
                            w.queries.coarse,
                            w.queries.norm(i));
                    const auto [first, last] = of_query[begin + i];
                    w.answerer(first, last, out[begin + i]);
                }
            });
    std::vector<ToldEntry> all;
    for (const auto& part : out) {
        all.insert(all.end(), part.begin(), part.end());
    }
    return all;
}

/// The k nearest entries of the lists that each query asked for.
std::vector<ToldEntry> answer_by_lists(
        const faiss::IndexIVF& ivf,
        const float* x,
        size_t k,
        const std::vector<AskedEntries>& request) {
    std::vector<ToldEntry> out;
    for_each_query(request, [&](auto* begin, auto* end) {
        const size_t nprobe = end - begin;
        std::vector<idx_t> keys;
        std::vector<float> coarse;
        for (const AskedEntries* a = begin; a < end; a++) {
            keys.push_back(a->list);
            coarse.push_back(a->score);
        }
        std::vector<float> distances(k);
        std::vector<idx_t> pairs(k);
        faiss::SearchParametersIVF params;
        params.nprobe = nprobe;
        ivf.search_preassigned(
                1,
                x + begin->query * size_t(ivf.d),
                k,
                keys.data(),
                coarse.data(),
                distances.data(),
                pairs.data(),
                true,
                &params);
        for (size_t j = 0; j < k && pairs[j] >= 0; j++) {
            const idx_t list = faiss::lo_listno(pairs[j]);
            const size_t place =
                    std::find(keys.begin(), keys.end(), list) - keys.begin();
            out.push_back(
                    {begin->query,
                     begin[place].place,
                     uint32_t(list),
                     uint32_t(faiss::lo_offset(pairs[j])),
                     0,
                     distances[j]});
        }
    });
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
    const auto search = !plan.by_codes ? search_lists_told
            : has_vectors(*inner)      ? search_told<ExactDistances>
                                       : search_told<CodeDistances>;
    search(*inner,
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
    const bool lists = !request.empty() &&
            request.front().kind == AskedEntries::neighbours;
    return to_bytes(
            lists ? answer_by_lists(*inner, x, k, request)
                    : has_vectors(*inner)
                    ? answer_by_codes<ExactDistances>(*inner, *gmm, x, request)
                    : answer_by_codes<CodeDistances>(*inner, *gmm, x, request));
}

} // namespace faiss_ext
