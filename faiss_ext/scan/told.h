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
        nearest,    ///< the k nearest of such entries
        neighbours, ///< the same by FAISS's scanners; score: the coarse
                    ///< distance
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

/// What a shard told of one query in one round, in the order of places.
struct ToldEntries {
    const ToldEntry* begin = nullptr;
    const ToldEntry* end = nullptr;
};

/// What one query was told, and what it asks next.
struct Conversation {
    size_t shards = 1;
    /// By rounds, and in each by shards.
    std::vector<ToldEntries> told;
    std::vector<AskedEntries> asked;
    uint32_t query = 0;

    /// What the shards answered to what is asked now: of the next round.
    template <class Ask>
    ToldEntries* answers(Ask&& ask) {
        if (next == told.size()) {
            ask(asked);
            throw MoreToAsk();
        }
        next += shards;
        return &told[next - shards];
    }

private:
    size_t next = 0;
};

/// Of entries that a query was told of, how far they are.
class ToldTable {
public:
    void clear() {
        slots.assign(slots.size(), {});
        n = 0;
    }

    void insert(const ToldEntry& told) {
        if (2 * ++n > slots.size()) {
            std::vector<Slot> before(std::max<size_t>(256, 2 * slots.size()));
            before.swap(slots);
            for (const Slot& slot : before) {
                if (slot.used) {
                    at(slot.list, slot.entry) = slot;
                }
            }
        }
        at(told.list, told.entry) = {
                told.list, told.entry, told.distance, true};
    }

    float operator()(size_t list, size_t entry) const {
        const Slot* found = slots.empty()
                ? nullptr
                : &const_cast<ToldTable*>(this)->at(list, entry);
        FAISS_THROW_IF_NOT_FMT(
                found && found->used,
                "answers: nothing of entry %zu of list %zu",
                entry,
                list);
        return found->distance;
    }

private:
    struct Slot {
        uint32_t list = 0, entry = 0;
        float distance = 0;
        bool used = false;
    };

    /// The entry's, or the free one where it would be.
    Slot& at(size_t list, size_t entry) {
        const size_t mask = slots.size() - 1; // a power of two
        size_t i =
                (list * 0x9e3779b97f4a7c15 + entry * 0xff51afd7ed558ccd) >> 32;
        while (slots[i & mask].used &&
               (slots[i & mask].list != list ||
                slots[i & mask].entry != entry)) {
            i++;
        }
        return slots[i & mask];
    }

    std::vector<Slot> slots;
    size_t n = 0;
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
            told = conversation->answers([&](std::vector<AskedEntries>& out) {
                out.reserve(segments.size());
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
        }
        candidates.clear();
        for (size_t s = begin; s < end; s++) {
            n_codes += segments[s].end - segments[s].begin;
            ToldEntries& of_shard =
                    told[segments[s].list % conversation->shards];
            for (; of_shard.begin < of_shard.end && of_shard.begin->place <= s;
                 of_shard.begin++) {
                const ToldEntry& e = *of_shard.begin;
                if (e.bound < threshold) {
                    candidates.push_back({e.bound, e.list, e.entry});
                    distances->insert(e);
                }
            }
        }
        return candidates.size();
    }

    Conversation* conversation = nullptr;
    ToldTable* distances = nullptr;

private:
    ToldEntries* told = nullptr; ///< by shards
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
        return (*distances)(list, entry);
    }

    /// The k nearest of entries that pass, from each shard, and where they are.
    std::vector<std::pair<idx_t, float>> nearest_of(
            const std::vector<Run>& runs) {
        std::vector<std::pair<idx_t, float>> out;
        if (runs.empty()) {
            return out;
        }
        const ToldEntries* told =
                conversation->answers([&](std::vector<AskedEntries>& asked) {
                    asked.reserve(runs.size());
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
        for (size_t s = 0; s < conversation->shards; s++) {
            for (const ToldEntry* e = told[s].begin; e < told[s].end; e++) {
                out.emplace_back(
                        faiss::lo_build(e->list, e->entry), e->distance);
            }
        }
        return out;
    }

    Conversation* conversation = nullptr;
    ToldTable* distances = nullptr;
};

} // namespace faiss_ext
