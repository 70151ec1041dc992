#include "faiss_ext/scan/told_search.h"

#include <algorithm>
#include <utility>

#include "ParallelFor.h"
#include "faiss_ext/coarse/Queries.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/CodeSearcher.h"
#include "faiss_ext/scan/collectors.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

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
void search_by_codes(
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
        NearestCollector collector;
    };
    in_blocks(
            n,
            [&] {
                return Worker{
                        Queries(ivf, plan.quantizer_params),
                        Searcher(ivf, gmm, plan),
                        NearestCollector(k)};
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
                    w.collector.begin();
                    if (finite(q, d)) {
                        w.queries.choose(i, q);
                        try {
                            w.searcher(
                                    q,
                                    w.queries.rotated(i),
                                    w.queries.coarse,
                                    w.queries.norm(i),
                                    k,
                                    w.collector);
                        } catch (const MoreToAsk&) {
                            continue;
                        }
                    }
                    w.collector.end(
                            is_ip(ivf),
                            ivf.invlists,
                            distances + number * k,
                            labels + number * k);
                }
            });
}

/// The same of whole lists.
void search_by_lists(
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
                    : is_ip(ivf)       ? faiss::CMin<float, idx_t>::neutral()
                                       : faiss::CMax<float, idx_t>::neutral();
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

/// What one query asked of cells, or of lists' nearest entries.
template <class Distances>
struct Answerer {
    CodeScan scan;
    Distances exact;
    NearestCollector collector;
    std::vector<Segment> segments;
    std::vector<float> distances;
    std::vector<idx_t> locations;

    Answerer(const faiss::IndexIVF& ivf, const IVFGMM& gmm, size_t k)
            : scan(gmm.cells.codes), exact(ivf, gmm), collector(k),
              distances(k), locations(k) {}

    void cells(
            const CellCodes& codes,
            const AskedEntries* begin,
            const AskedEntries* end,
            std::vector<ToldEntry>& out) {
        for (const AskedEntries* a = begin; a < end; a++) {
            segments.assign(
                    1,
                    {codes.blocks[a->list].data(),
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
        for (size_t i = 0; i < out.size() + ahead; i++) {
            if (i < out.size()) {
                exact.prefetch(out[i].list, out[i].entry);
            }
            if (i >= ahead) {
                ToldEntry& entry = out[i - ahead];
                entry.distance = exact(entry.list, entry.entry);
            }
        }
    }

    void lists(
            const AskedEntries* begin,
            const AskedEntries* end,
            std::vector<ToldEntry>& out) {
        std::vector<float> some;
        collector.begin();
        for (const AskedEntries* a = begin; a < end; a++) {
            some.resize(a->end - a->begin);
            exact.all(a->list, a->begin, some.size(), some.data());
            for (size_t i = 0; i < some.size(); i++) {
                collector.offer(
                        some[i], faiss::lo_build(a->list, a->begin + i));
            }
        }
        collector.end(false, nullptr, distances.data(), locations.data());
        for (size_t i = 0; i < locations.size() && locations[i] >= 0; i++) {
            const auto list = uint32_t(faiss::lo_listno(locations[i]));
            const AskedEntries* a = begin;
            while (a->list != list) {
                a++;
            }
            out.push_back(
                    {a->query,
                     a->place,
                     list,
                     uint32_t(faiss::lo_offset(locations[i])),
                     0,
                     distances[i]});
        }
    }
};

template <class Distances>
std::vector<ToldEntry> answer_by_codes(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* x,
        size_t k,
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
                return Worker{Queries(ivf, nullptr), {ivf, gmm, k}};
            },
            [&](Worker& w, size_t begin, size_t count) {
                const float* block = &asking[begin * d];
                w.queries.start(gmm.cells.codes, count, block);
                for (size_t i = 0; i < count; i++) {
                    const float* rotated = w.queries.rotated(i);
                    w.queries.choose(i, block + i * d);
                    w.answerer.scan.start(rotated);
                    w.answerer.exact.set_query(
                            block + i * d,
                            rotated,
                            w.queries.coarse,
                            w.queries.norm(i));
                    const auto [first, last] = of_query[begin + i];
                    if (first->kind == AskedEntries::cell) {
                        w.answerer.cells(
                                gmm.cells.codes, first, last, out[begin + i]);
                    } else {
                        w.answerer.lists(first, last, out[begin + i]);
                    }
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
    const auto search = !plan.by_codes ? search_by_lists
            : has_vectors(ivf)         ? search_by_codes<ExactDistances>
                                       : search_by_codes<CodeDistances>;
    search(ivf, gmm, plan, n, x, k, conversations, distances, labels);
}

std::vector<ToldEntry> answer_asked(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const float* x,
        size_t k,
        const std::vector<AskedEntries>& request) {
    if (!request.empty() && request.front().kind == AskedEntries::neighbours) {
        return answer_by_lists(ivf, x, k, request);
    }
    return has_vectors(ivf)
            ? answer_by_codes<ExactDistances>(ivf, gmm, x, k, request)
            : answer_by_codes<CodeDistances>(ivf, gmm, x, k, request);
}

} // namespace faiss_ext
