#include <algorithm>

#include "faiss_ext/coarse/in_blocks.h"
#include "faiss_ext/scan/CodeDistances.h"
#include "faiss_ext/scan/ExactDistances.h"
#include "faiss_ext/scan/RunScanner.h"
#include "faiss_ext/scan/collectors.h"
#include "faiss_ext/scan/told_search.h"
#include "faiss_ext/store/list_storage.h"
#include "faiss_ext/store/passing.h"

namespace faiss_ext {

namespace {

/// What one query asked.
struct AskedOfQuery {
    const AskedEntries* begin;
    const AskedEntries* end;
};

std::vector<AskedOfQuery> by_query(const std::vector<AskedEntries>& request) {
    std::vector<AskedOfQuery> out;
    for (const AskedEntries& a : request) {
        if (out.empty() || out.back().begin->query != a.query) {
            out.push_back({&a, &a});
        }
        out.back().end = &a + 1;
    }
    return out;
}

/// What one query asked of cells, or of lists' nearest entries.
template <class Distances>
struct Answerer {
    const AskedShard& asked;
    CodeScan scan;
    Distances exact;
    NearestCollector collector;
    std::vector<Segment> segments;
    std::vector<float> distances;
    std::vector<idx_t> locations;

    explicit Answerer(const AskedShard& asked)
            : asked(asked), scan(asked.gmm.cells.codes),
              exact(asked.ivf, asked.gmm), collector(asked.k),
              distances(asked.k), locations(asked.k) {}

    bool passes(size_t list, size_t entry) const {
        return !asked.sel ||
                asked.sel->is_member(
                        asked.ivf.invlists->get_single_id(list, entry));
    }

    void cells(const AskedOfQuery& query, std::vector<ToldEntry>& out) {
        const CellCodes& codes = asked.gmm.cells.codes;
        segments.clear();
        for (const AskedEntries* a = query.begin; a < query.end; a++) {
            segments.push_back(
                    {codes.blocks[a->list].data(),
                     a->list,
                     a->begin,
                     a->end,
                     a->score,
                     a->slack});
        }
        const size_t n =
                scan(segments, 0, segments.size(), query.begin->threshold);
        const AskedEntries* a = query.begin;
        for (size_t c = 0; c < n; c++) {
            const CodeCandidate& found = scan.candidates[c];
            while (a->list != found.list || found.entry < a->begin ||
                   found.entry >= a->end) {
                a++;
            }
            out.push_back(
                    {a->query,
                     a->place,
                     found.list,
                     found.entry,
                     found.bound,
                     0});
        }
        // Distances of what does not pass are not asked for.
        const size_t ahead = asked.sel ? 0 : exact.ahead();
        for (size_t i = 0; i < out.size() + ahead; i++) {
            if (i < out.size() && ahead > 0) {
                exact.prefetch(out[i].list, out[i].entry);
            }
            if (i >= ahead) {
                ToldEntry& entry = out[i - ahead];
                if (passes(entry.list, entry.entry)) {
                    entry.distance = exact(entry.list, entry.entry);
                }
            }
        }
    }

    void lists(const AskedOfQuery& query, std::vector<ToldEntry>& out) {
        std::vector<float> some;
        collector.begin();
        for (const AskedEntries* a = query.begin; a < query.end; a++) {
            if (asked.sel) {
                some.resize(kMostTogether);
                for_passing(
                        asked.sel,
                        *asked.ivf.invlists,
                        a->list,
                        a->begin,
                        a->end,
                        [&](const uint32_t* entries, size_t n) {
                            exact.some(a->list, entries, n, n, some.data());
                            for (size_t i = 0; i < n; i++) {
                                collector.offer(
                                        some[i],
                                        faiss::lo_build(a->list, entries[i]));
                            }
                        });
                continue;
            }
            some.resize(a->end - a->begin);
            exact.all(a->list, a->begin, some.size(), some.data());
            for (size_t i = 0; i < some.size(); i++) {
                collector.offer(
                        some[i], faiss::lo_build(a->list, a->begin + i));
            }
        }
        collector.end(false, nullptr, distances.data(), locations.data());
        for (size_t i = 0; i < locations.size() && locations[i] >= 0; i++) {
            out.push_back(
                    {query.begin->query,
                     0,
                     uint32_t(faiss::lo_listno(locations[i])),
                     uint32_t(faiss::lo_offset(locations[i])),
                     0,
                     distances[i]});
        }
    }
};

template <class Distances>
void answer_by_codes(
        const AskedShard& asked,
        const std::vector<AskedOfQuery>& queries,
        std::vector<std::vector<ToldEntry>>& out) {
    const size_t n = queries.size(), d = asked.ivf.d;
    std::vector<float> asking(n * d);
    for (size_t i = 0; i < n; i++) {
        std::copy_n(asked.x + queries[i].begin->query * d, d, &asking[i * d]);
    }
    struct Worker {
        Queries queries;
        Answerer<Distances> answerer;
    };
    in_blocks(
            n,
            [&] {
                return Worker{
                        Queries(asked.ivf, nullptr),
                        Answerer<Distances>(asked)};
            },
            [&](Worker& w, size_t begin, size_t count) {
                const float* block = &asking[begin * d];
                w.queries.start(
                        asked.gmm.cells.codes,
                        count,
                        block,
                        Distances::of_codes);
                for (size_t i = 0; i < count; i++) {
                    const float* rotated = w.queries.rotated(i);
                    if (Distances::of_codes) {
                        w.queries.choose(i, block + i * d);
                    }
                    w.answerer.exact.set_query(
                            block + i * d,
                            rotated,
                            w.queries.coarse,
                            w.queries.norm(i));
                    const AskedOfQuery& query = queries[begin + i];
                    if (query.begin->kind == AskedEntries::cell) {
                        w.answerer.scan.start(rotated);
                        w.answerer.cells(query, out[begin + i]);
                    } else {
                        w.answerer.lists(query, out[begin + i]);
                    }
                }
            });
}

/// What one query asked of whole lists, by FAISS's scanners.
struct ListAnswerer {
    RunScanner scanner;
    HeapCollector collector;
    std::vector<float> distances;
    std::vector<idx_t> locations;

    ListAnswerer(const AskedShard& asked, const SearchPlan& plan)
            : scanner(asked.ivf, plan, true),
              collector{is_ip(asked.ivf), asked.k}, distances(asked.k),
              locations(asked.k) {}

    void operator()(
            const float* q,
            const AskedOfQuery& query,
            std::vector<ToldEntry>& out) {
        scanner.set_query(q);
        collector.begin(distances.data(), locations.data());
        for (const AskedEntries* a = query.begin; a < query.end; a++) {
            const Run run{a->list, a->begin, a->end};
            scanner.scan_runs(
                    &run, 1, [&](size_t) { return a->score; }, collector);
        }
        collector.end();
        for (size_t j = 0; j < locations.size() && locations[j] >= 0; j++) {
            const auto list = uint32_t(faiss::lo_listno(locations[j]));
            const AskedEntries* a = query.begin;
            while (a->list != list) {
                a++;
            }
            out.push_back(
                    {a->query,
                     a->place,
                     list,
                     uint32_t(faiss::lo_offset(locations[j])),
                     0,
                     distances[j]});
        }
    }
};

void answer_by_lists(
        const AskedShard& asked,
        const std::vector<AskedOfQuery>& queries,
        std::vector<std::vector<ToldEntry>>& out) {
    SearchPlan plan;
    plan.sel = asked.sel;
    in_blocks(
            queries.size(),
            [&] { return ListAnswerer(asked, plan); },
            [&](ListAnswerer& answer, size_t begin, size_t count) {
                for (size_t i = begin; i < begin + count; i++) {
                    const size_t number = queries[i].begin->query;
                    answer(asked.x + number * asked.ivf.d, queries[i], out[i]);
                }
            });
}

} // namespace

std::vector<ToldEntry> answer_asked(const AskedShard& asked) {
    const std::vector<AskedOfQuery> queries = by_query(asked.request);
    std::vector<std::vector<ToldEntry>> out(queries.size());
    if (queries.empty()) {
        return {};
    }
    if (queries.front().begin->kind == AskedEntries::neighbours) {
        answer_by_lists(asked, queries, out);
    } else if (has_vectors(asked.ivf)) {
        answer_by_codes<ExactDistances>(asked, queries, out);
    } else {
        answer_by_codes<CodeDistances>(asked, queries, out);
    }
    std::vector<ToldEntry> all;
    for (const auto& part : out) {
        all.insert(all.end(), part.begin(), part.end());
    }
    return all;
}

} // namespace faiss_ext
