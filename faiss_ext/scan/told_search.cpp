#include "faiss_ext/scan/told_search.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "faiss_ext/coarse/in_blocks.h"
#include "faiss_ext/rank/probe.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/CodeSearcher.h"
#include "faiss_ext/scan/collectors.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

template <class Distances>
void search_by_codes(const ToldSearch& search) {
    using Searcher = CodeSearcher<ToldDistances<Distances>, ToldCodes>;
    struct Worker {
        Queries queries;
        Searcher searcher;
        NearestCollector collector;
        ToldTable table;
    };
    const faiss::IndexIVF& ivf = search.ivf;
    const size_t d = ivf.d, k = search.k;
    in_blocks(
            search.n,
            [&] {
                return Worker{
                        Queries(ivf, search.plan.quantizer_params),
                        Searcher(ivf, search.gmm, search.plan),
                        NearestCollector(k),
                        {}};
            },
            [&](Worker& w, size_t begin, size_t count) {
                w.queries.start(
                        search.gmm.cells.codes, count, search.x + begin * d);
                w.searcher.scan.distances = &w.table;
                w.searcher.exact.distances = &w.table;
                for (size_t i = 0; i < count; i++) {
                    const size_t number = begin + i;
                    const float* q = search.x + number * d;
                    Conversation& conversation = search.conversations[number];
                    w.searcher.scan.conversation = &conversation;
                    w.searcher.exact.conversation = &conversation;
                    w.table.clear();
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
                            search.distances + number * k,
                            search.labels + number * k);
                }
            });
}

/// Asks for the lists of a row of `lists` that a query probes, as far as
/// max_codes goes.
void ask_for_lists(
        const ToldSearch& search,
        size_t query,
        const ProbedLists& lists,
        size_t row) {
    const SearchPlan& plan = search.plan;
    Conversation& conversation = search.conversations[query];
    const size_t begin = lists.begins[row];
    size_t left = plan.max_codes > 0 ? plan.max_codes : size_t(-1);
    for (size_t p = begin; p < lists.begins[row + 1] && left > 0; p++) {
        const idx_t list = lists.keys[p];
        if (list < 0) {
            continue;
        }
        const size_t size = search.ivf.invlists->list_size(list);
        size_t end = std::min(size, left);
        if (plan.max_codes > 0 && plan.sel) {
            faiss::InvertedLists::ScopedIds ids(search.ivf.invlists, list);
            size_t passed = 0;
            for (end = 0; end < size && passed < left; end++) {
                passed += plan.sel->is_member(ids[end]);
            }
            left -= passed;
        } else {
            left -= plan.max_codes > 0 ? end : 0;
        }
        conversation.asked.push_back(
                {conversation.query,
                 uint32_t(p - begin),
                 AskedEntries::neighbours,
                 uint32_t(list),
                 0,
                 uint32_t(end),
                 lists.coarse[p],
                 0,
                 0});
    }
}

/// What all shards told in that round.
std::vector<ToldEntry> told_in(const Conversation& conversation, size_t round) {
    std::vector<ToldEntry> out;
    for (size_t s = 0; s < conversation.shards; s++) {
        const ToldEntries& of =
                conversation.told[round * conversation.shards + s];
        out.insert(out.end(), of.begin, of.end);
    }
    return out;
}

/// The distance of a neighbour that there is not.
float farthest(bool ip) {
    return ip ? faiss::CMin<float, idx_t>::neutral()
              : faiss::CMax<float, idx_t>::neutral();
}

/// The order of results: by distance, then by where they are.
auto nearer(bool ip) {
    return [ip](const ToldEntry& a, const ToldEntry& b) {
        if (a.distance != b.distance) {
            return ip ? a.distance > b.distance : a.distance < b.distance;
        }
        return a.place != b.place ? a.place < b.place : a.entry < b.entry;
    };
}

/// How many lists the query wants, which was told that of so many.
///
/// @param beyond  ProbedLists::beyond
size_t lists_wanted(
        const ToldSearch& search,
        const float* q,
        size_t lists,
        float beyond,
        std::vector<ToldEntry>& told) {
    const bool few = told.size() < search.k, ip = is_ip(search.ivf);
    float distance = farthest(ip);
    if (!few) {
        const auto kth = told.begin() + (search.k - 1);
        std::nth_element(told.begin(), kth, told.end(), nearer(ip));
        distance = kth->distance;
    }
    const bool within = beyond < search.plan.reach *
                    in_coarse_units(search.ivf, search.gmm, q, distance);
    return search.plan.lists_wanted(lists, few, within);
}

/// Of what shards found in whole lists the k nearest.
void take_nearest(
        const ToldSearch& search,
        std::vector<ToldEntry> told,
        float* distances,
        idx_t* labels) {
    const bool ip = is_ip(search.ivf);
    std::sort(told.begin(), told.end(), nearer(ip));
    for (size_t j = 0; j < search.k; j++) {
        const bool any = j < told.size();
        distances[j] = any ? told[j].distance : farthest(ip);
        labels[j] = any ? search.ivf.invlists->get_single_id(
                                  told[j].list, told[j].entry)
                        : -1;
    }
}

void search_by_lists(const ToldSearch& search) {
    const size_t n = search.n, k = search.k, d = search.ivf.d;
    const Conversation& any = search.conversations.front();
    const size_t rounds = any.told.size() / any.shards;
    const ProbedLists first =
            probe_lists(search.ivf, search.gmm, search.plan, n, search.x);
    for (size_t i = 0; i < n; i++) {
        const float* q = search.x + i * d;
        const bool asks = finite(q, d);
        if (rounds == 0) {
            if (asks) {
                ask_for_lists(search, i, first, i);
            }
            continue;
        }
        std::vector<ToldEntry> told = told_in(search.conversations[i], 0);
        SearchPlan further = search.plan;
        // those unlike the calibration's have had all
        further.nprobe = first.begins[i + 1] - first.begins[i];
        float beyond = first.beyond[i];
        ProbedLists lists;
        size_t round = 0;
        for (size_t wanted; asks && round < rounds &&
             further.nprobe < search.ivf.nlist &&
             (wanted = lists_wanted(search, q, further.nprobe, beyond, told)) >
                     further.nprobe;) {
            further.nprobe = std::min(wanted, search.ivf.nlist);
            lists = probe_lists(search.ivf, search.gmm, further, 1, q);
            beyond = lists.beyond[0];
            round++;
            if (round < rounds) {
                told = told_in(search.conversations[i], round);
            }
        }
        if (round == rounds) {
            ask_for_lists(search, i, lists, 0);
            continue;
        }
        take_nearest(
                search,
                std::move(told),
                search.distances + i * k,
                search.labels + i * k);
    }
}

} // namespace

void search_told(const ToldSearch& search) {
    if (!search.plan.by_codes) {
        search_by_lists(search);
    } else if (has_vectors(search.ivf)) {
        search_by_codes<ExactDistances>(search);
    } else {
        search_by_codes<CodeDistances>(search);
    }
}

} // namespace faiss_ext
