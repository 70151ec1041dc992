#include "faiss_ext/store/find_entries.h"

#include <algorithm>
#include <numeric>

#include <faiss/impl/FaissAssert.h>

#include "ParallelFor.h"
#include "faiss_ext/store/passing.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

/// Ids whose places are looked up at once.
constexpr size_t kLookedUpTogether = 32;
/// Entries that a selector is asked about at once.
constexpr size_t kTogether = 256;

/// Where the map says that an entry with this id is; nothing if it does not.
std::optional<uint64_t> place_of(GMMIndexRef index, idx_t id, bool& adopted) {
    idx_t place = mapped_place(index.ivf.direct_map, id);
    if (place < 0) {
        return {};
    }
    if (adopt_strays(index, faiss::lo_listno(place))) {
        adopted = true;
        place = mapped_place(index.ivf.direct_map, id); // now
    }
    FAISS_THROW_IF_NOT_FMT(
            is_at(index.ivf, place, id),
            "the direct map names entry %zu of list %zu for id %zd, which is "
            "not there",
            size_t(faiss::lo_offset(place)),
            size_t(faiss::lo_listno(place)),
            size_t(id));
    return uint64_t(place);
}

/// Asks for what place_of() will read of each id.
void prefetch_places(GMMIndexRef index, size_t n, const idx_t* ids) {
    if (n < 2) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        prefetch_slot(index.ivf.direct_map, ids[i]);
    }
    for (size_t i = 0; i < n; i++) {
        const idx_t place = mapped_place(index.ivf.direct_map, ids[i]);
        if (place >= 0) {
            ListEntries(index, faiss::lo_listno(place))
                    .prefetch(faiss::lo_offset(place));
        }
    }
}

} // namespace

std::vector<uint64_t> scan_entries(
        GMMIndexRef index, const faiss::IDSelector& sel) {
    adopt_strays(index);
    const faiss::IndexIVF& ivf = index.ivf;
    std::vector<uint64_t> out;
    struct Worker {
        const faiss::IndexIVF& ivf;
        const faiss::IDSelector& sel;
        std::vector<uint64_t> places;
        void operator()(size_t list) {
            const size_t n = ivf.invlists->list_size(list);
            faiss::InvertedLists::ScopedIds ids(ivf.invlists, list);
            uint32_t passing[kTogether];
            for (size_t j = 0; j < n; j += kTogether) {
                const size_t passed = passing_entries(
                        sel, ids.get(), j, std::min(n, j + kTogether), passing);
                for (size_t i = 0; i < passed; i++) {
                    places.push_back(faiss::lo_build(list, passing[i]));
                }
            }
        }
    };
    gmm::parallel_workers(
            ivf.nlist,
            ivf.ntotal > 100000,
            [&] {
                return Worker{ivf, sel, {}};
            },
            [&](const Worker& worker) {
                out.insert(
                        out.end(), worker.places.begin(), worker.places.end());
            });
    return out;
}

std::optional<std::vector<idx_t>> listed_ids(
        const faiss::IDSelector& sel, size_t ntotal) {
    if (auto a = dynamic_cast<const faiss::IDSelectorArray*>(&sel)) {
        if (a->n < ntotal) {
            return std::vector<idx_t>(a->ids, a->ids + a->n);
        }
    } else if (auto b = dynamic_cast<const faiss::IDSelectorBatch*>(&sel)) {
        if (b->set.size() < ntotal) {
            return std::vector<idx_t>(b->set.begin(), b->set.end());
        }
    } else if (auto r = dynamic_cast<const faiss::IDSelectorRange*>(&sel)) {
        // as unsigned numbers: no difference is too large for them
        if (r->imin >= r->imax) {
            return std::vector<idx_t>();
        }
        if (uint64_t(r->imax) - uint64_t(r->imin) < ntotal) {
            std::vector<idx_t> ids(size_t(r->imax - r->imin));
            std::iota(ids.begin(), ids.end(), r->imin);
            return ids;
        }
    }
    return {};
}

bool map_is_complete(GMMIndexRef index) {
    const faiss::DirectMap& map = index.ivf.direct_map;
    return index.gmm.max_assign == 1 &&
            (map.type == faiss::DirectMap::Array ||
             (map.type == faiss::DirectMap::Hashtable &&
              map.hashtable.size() == size_t(index.ivf.ntotal)));
}

std::vector<uint64_t> mapped_entries(
        GMMIndexRef index, size_t n, const idx_t* ids) {
    std::vector<uint64_t> places;
    bool adopted;
    do { // what is adopted on the way moves entries that were looked up before
        adopted = false;
        places.clear();
        for (size_t i = 0; i < n; i++) {
            if (i % kLookedUpTogether == 0) {
                prefetch_places(
                        index, std::min(n - i, kLookedUpTogether), ids + i);
            }
            if (const auto place = place_of(index, ids[i], adopted)) {
                places.push_back(*place);
            }
        }
    } while (adopted);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    return places;
}

} // namespace faiss_ext
