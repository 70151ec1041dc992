#include "faiss_ext/store/free_room.h"

#include <algorithm>
#include <list>
#include <vector>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

namespace {

using Slot = faiss::OnDiskInvertedLists::Slot;

size_t bytes_of(
        const faiss::OnDiskInvertedLists& lists,
        const faiss::OnDiskOneList& list) {
    return list.capacity * (lists.code_size + sizeof(idx_t));
}

bool comes_before(const Slot& a, const Slot& b) {
    return a.offset < b.offset;
}

/// The first of them that begins before the one before it ends; end() if none.
template <class Slots>
auto first_overlap(const Slots& sorted) {
    return std::adjacent_find(
            sorted.begin(), sorted.end(), [](const Slot& a, const Slot& b) {
                return b.offset < a.offset + a.capacity;
            });
}

} // namespace

void mend_free_room(faiss::OnDiskInvertedLists& lists) {
    std::vector<Slot> taken;
    for (const auto& l : lists.lists) {
        if (l.capacity > 0) {
            taken.emplace_back(l.offset, bytes_of(lists, l));
        }
    }
    std::sort(taken.begin(), taken.end(), comes_before);
    const auto overlap = first_overlap(taken);
    FAISS_THROW_IF_NOT_FMT(
            overlap == taken.end(),
            "\"%s\": the inverted lists at bytes %zu and %zu overlap",
            lists.filename.c_str(),
            overlap->offset,
            (overlap + 1)->offset);
    std::vector<Slot> all = taken;
    all.insert(all.end(), lists.slots.begin(), lists.slots.end());
    std::sort(all.begin(), all.end(), comes_before);
    if (first_overlap(all) == all.end()) {
        lists.slots.sort(comes_before); // as FAISS looks for a place
        return;
    }
    std::list<Slot> free;
    size_t end = 0;
    taken.emplace_back(lists.totsize, 0);
    for (const Slot& t : taken) {
        if (t.offset > end) {
            free.emplace_back(end, t.offset - end);
        }
        end = t.offset + t.capacity;
    }
    lists.slots.swap(free);
}

void mend_free_room_if_full(faiss::InvertedLists* lists) {
    auto disk = dynamic_cast<faiss::OnDiskInvertedLists*>(lists);
    if (!disk) {
        return;
    }
    size_t bytes = 0;
    for (const auto& l : disk->lists) {
        bytes += bytes_of(*disk, l);
    }
    for (const Slot& slot : disk->slots) {
        bytes += slot.capacity;
    }
    if (bytes > disk->totsize) {
        mend_free_room(*disk);
    }
}

} // namespace faiss_ext
