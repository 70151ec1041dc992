#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/scan/CodeScan.h"
#include "faiss_ext/scan/RunScanner.h"

/// What a search looks at where others hold codes and vectors: what they have
/// told of them. As long as that is not all, the search asks and breaks off;
/// begun anew with the answers it takes the same way, since these are what it
/// would have seen.
namespace faiss_ext {

/// A cell whose codes a query wants to know, or a list whose k nearest entries.
struct AskedEntries {
    enum Kind : uint32_t {
        cell,       ///< bound and distance of entries below the threshold
        nearest,    ///< of so many first entries of a list
        neighbours, ///< by FAISS's scanners; score: the coarse distance
    };
    uint32_t query;
    uint32_t place; ///< among those that were asked for together
    Kind kind;
    uint32_t list, begin, end;
    float score, slack; ///< see Segment
    float threshold;
};

/// One entry that a query was told of.
struct ToldEntry {
    uint32_t query;
    uint32_t place; ///< of what was asked
    uint32_t list, entry;
    float bound; ///< see CodeCandidate
    float distance;
};

/// Thrown where the search cannot go on.
struct MoreToAsk {};

/// What one query was told, and what it asks next.
struct Conversation {
    /// By rounds, each in the order of places and entries.
    std::vector<std::vector<ToldEntry>> told;
    std::vector<ToldEntry> by_entry; ///< all
    std::vector<AskedEntries> asked;
    uint32_t query = 0;
    size_t round = 0;

    /// Sorts what is new in told.
    void begin(uint32_t number) {
        query = number;
        round = 0;
        asked.clear();
        by_entry.clear();
        for (std::vector<ToldEntry>& entries : told) {
            std::sort(
                    entries.begin(),
                    entries.end(),
                    [](const ToldEntry& a, const ToldEntry& b) {
                        return a.place != b.place ? a.place < b.place
                                                  : a.entry < b.entry;
                    });
            by_entry.insert(by_entry.end(), entries.begin(), entries.end());
        }
        std::sort(by_entry.begin(), by_entry.end(), before);
    }

    static bool before(const ToldEntry& a, const ToldEntry& b) {
        return a.list != b.list ? a.list < b.list : a.entry < b.entry;
    }

    /// The answers to what is asked now: of the next round.
    template <class Ask>
    const std::vector<ToldEntry>& answers(Ask&& ask) {
        if (round == told.size()) {
            ask(asked);
            throw MoreToAsk();
        }
        return told[round++];
    }
};

/// CodeScan of what was told.
class ToldCodes : public CodeScan {
public:
    using CodeScan::CodeScan;

    size_t operator()(
            const std::vector<Segment>& segments,
            size_t begin,
            size_t end,
            float threshold) {
        if (segments.empty()) {
            return 0;
        }
        if (begin == 0) {
            const auto& told =
                    conversation->answers([&](std::vector<AskedEntries>& out) {
                        for (size_t s = 0; s < segments.size(); s++) {
                            const Segment& g = segments[s];
                            out.push_back(
                                    {conversation->query,
                                     uint32_t(s),
                                     AskedEntries::cell,
                                     g.list,
                                     g.begin,
                                     g.end,
                                     g.score,
                                     g.slack,
                                     threshold});
                        }
                    });
            at = told.data();
            last = at + told.size();
        }
        for (size_t s = begin; s < end; s++) {
            n_codes += segments[s].end - segments[s].begin;
        }
        candidates.clear();
        for (; at < last && at->place < end; at++) {
            if (at->bound < threshold) {
                candidates.push_back({at->bound, at->list, at->entry});
            }
        }
        return candidates.size();
    }

    Conversation* conversation = nullptr;

private:
    const ToldEntry *at = nullptr, *last = nullptr;
};

/// ExactDistances or CodeDistances of what was told.
template <class Distances>
class ToldDistances {
public:
    static constexpr bool of_codes = Distances::of_codes;

    template <class GMM>
    ToldDistances(const faiss::IndexIVF&, const GMM&) {}

    template <class Coarse>
    void set_query(const float*, const float*, Coarse&, float) {}

    size_t ahead() const {
        return 0;
    }
    void prefetch(size_t, size_t) {}

    float operator()(size_t list, size_t entry) const {
        const auto& all = conversation->by_entry;
        const ToldEntry key{0, 0, uint32_t(list), uint32_t(entry), 0, 0};
        const auto found = std::lower_bound(
                all.begin(), all.end(), key, Conversation::before);
        FAISS_THROW_IF_NOT_FMT(
                found != all.end() && !Conversation::before(key, *found),
                "answers: nothing of entry %zu of list %zu",
                entry,
                list);
        return found->distance;
    }

    /// The k nearest of entries, from each shard, and where they are.
    std::vector<std::pair<idx_t, float>> nearest_of(
            const std::vector<Run>& runs) {
        std::vector<std::pair<idx_t, float>> out;
        if (runs.empty()) {
            return out;
        }
        const auto& told =
                conversation->answers([&](std::vector<AskedEntries>& asked) {
                    for (size_t i = 0; i < runs.size(); i++) {
                        asked.push_back(
                                {conversation->query,
                                 uint32_t(i),
                                 AskedEntries::nearest,
                                 runs[i].list,
                                 runs[i].begin,
                                 runs[i].end,
                                 0,
                                 0,
                                 0});
                    }
                });
        for (const ToldEntry& e : told) {
            out.emplace_back(faiss::lo_build(e.list, e.entry), e.distance);
        }
        return out;
    }

    Conversation* conversation = nullptr;
};

} // namespace faiss_ext
