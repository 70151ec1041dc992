#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <typeinfo>

#include <faiss/impl/IDSelector.h>
#include <faiss/invlists/InvertedLists.h>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/// Whether passing_entries() takes no call for each entry.
inline bool asks_quickly(const faiss::IDSelector& sel) {
    return typeid(sel) == typeid(faiss::IDSelectorRange) ||
            typeid(sel) == typeid(faiss::IDSelectorBitmap);
}

/** Writes which of entries [begin, end) of a list pass, ascending, and returns
 * how many. Without a branch, which would be guessed wrongly every other time
 * where half of them pass, and without a call for each where the selector is
 * one of FAISS's simple ones.
 *
 * @param ids      of the list
 * @param passing  output, room for all
 */
inline size_t passing_entries(
        const faiss::IDSelector& sel,
        const idx_t* ids,
        size_t begin,
        size_t end,
        uint32_t* passing) {
    const auto collect = [&](auto&& is_member) {
        size_t n = 0;
        for (size_t entry = begin; entry < end; entry++) {
            passing[n] = uint32_t(entry);
            n += is_member(ids[entry]);
        }
        return n;
    };
    if (typeid(sel) == typeid(faiss::IDSelectorRange)) {
        const auto& range = static_cast<const faiss::IDSelectorRange&>(sel);
        const idx_t first = range.imin, last = range.imax;
        return collect([=](idx_t id) { return (id >= first) & (id < last); });
    }
    if (typeid(sel) == typeid(faiss::IDSelectorBitmap)) {
        const auto& bits = static_cast<const faiss::IDSelectorBitmap&>(sel);
        const uint8_t* const bitmap = bits.bitmap;
        const uint64_t bytes = bits.n;
        return collect([=](idx_t id) {
            const uint64_t i = uint64_t(id);
            return i / 8 < bytes && (bitmap[i / 8] >> i % 8 & 1);
        });
    }
    return collect([&](idx_t id) { return sel.is_member(id); });
}

/// Entries that for_passing() hands out at a time, at most.
constexpr size_t kMostTogether = 128;

/** Hands out which of entries [begin, end) of a list pass, many at a time where
 * few of them do: take(entries, n). They may be changed.
 *
 * @param sel  or nullptr: all pass
 */
template <class Take>
void for_passing(
        const faiss::IDSelector* sel,
        const faiss::InvertedLists& lists,
        size_t list,
        size_t begin,
        size_t end,
        Take&& take) {
    constexpr size_t kAsked = kMostTogether / 2;
    faiss::InvertedLists::ScopedIds ids(&lists, list);
    uint32_t passing[kMostTogether];
    size_t n = 0;
    for (size_t from = begin; from < end; from += kAsked) {
        const size_t to = std::min(end, from + kAsked);
        if (sel) {
            n += passing_entries(*sel, ids.get(), from, to, passing + n);
        } else {
            std::iota(passing + n, passing + n + (to - from), uint32_t(from));
            n += to - from;
        }
        if (n > kMostTogether - kAsked || to == end) {
            take(passing, n);
            n = 0;
        }
    }
}

} // namespace faiss_ext
