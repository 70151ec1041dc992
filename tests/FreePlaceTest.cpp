// One entry goes, comes or gets another cell: what moves, and what it is then.
#include "faiss_ext/store/FreePlace.h"

#include <map>
#include <numeric>
#include <random>
#include <set>

#include "IvfTestTools.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

constexpr size_t kD = 8, kLists = 80;

/// An entry, wherever it lies: the mean that its cell is towards, its code.
struct Coded {
    size_t list;
    int32_t partner;
    std::vector<uint8_t> record;
    bool operator==(const Coded&) const = default;
};

struct State {
    std::map<idx_t, Coded> coded;
    std::map<idx_t, idx_t> place;
    bool in_order = true; ///< the offsets
};

State state_of(const faiss::IndexIVF& index, const PairCells& cells) {
    State out;
    for (size_t i = 0; i < index.nlist; i++) {
        EXPECT_EQ(cells.list_size(i), index.invlists->list_size(i));
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const auto [begin, end] = cells.range(i, l);
            out.in_order &= begin <= end;
            for (size_t j = begin; j < end; j++) {
                const idx_t id = index.invlists->get_single_id(i, j);
                Coded& c = out.coded[id];
                c.list = i;
                c.partner = cells.partners(i)[l];
                c.record.resize(cells.codes.shape.entry_bytes());
                cells.codes.get(i, j, c.record.data());
                out.place[id] = idx_t(faiss::lo_build(i, j));
            }
        }
    }
    EXPECT_EQ(out.place.size(), size_t(index.ntotal));
    return out;
}

/// Most entries in a few lists, many lists nearly empty.
Vectors uneven(size_t n, uint32_t seed) {
    Vectors out = uniform(n, kD, seed);
    for (size_t i = 0; i < n; i++) {
        const float scale = i % 3 == 0 ? 1.0f : 0.15f;
        for (size_t j = 0; j < kD; j++) {
            out.x[i * kD + j] *= scale;
        }
    }
    return out;
}

template <class Index>
std::unique_ptr<Index> make(size_t n, size_t cells_per_list) {
    const Vectors x = uneven(n, 5);
    auto index = std::make_unique<Index>(kD, kLists, [] {
        if constexpr (std::is_same_v<Index, IndexIVFRaBitQGMM>) {
            return 4;
        } else {
            return faiss::METRIC_L2;
        }
    }());
    index->cells_per_list = cells_per_list;
    index->calibrate_on_add = false;
    index->train(idx_t(n), x.row(0));
    index->add(idx_t(n), x.row(0));
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    return index;
}

/** One change after the other, each of one entry.
 *
 * @param most  entries that may change their place with one that goes or
 *              comes
 */
template <class Index>
void live(Index& index, size_t most, size_t steps, double grow) {
    const Vectors x = uneven(steps, 6);
    std::mt19937 rng(7);
    State before = state_of(index, index.cells);
    idx_t next_id = before.place.rbegin()->first + 1;
    for (size_t s = 0; s < steps; s++) {
        auto some = before.place.begin();
        std::advance(some, rng() % before.place.size());
        idx_t id = some->first;
        const bool update = rng() % 3 == 0;
        const bool add = !update && rng() % 1000 < 1000 * grow;
        if (update) {
            index.update_vectors(1, &id, x.row(s));
        } else if (add) {
            id = next_id++;
            index.add_with_ids(1, x.row(s), &id);
        } else {
            ASSERT_EQ(index.remove_ids(faiss::IDSelectorArray(1, &id)), 1u);
        }
        const State after = state_of(index, index.cells);
        ASSERT_TRUE(after.in_order);
        size_t moved = 0;
        for (const auto& [other, place] : after.place) {
            ASSERT_EQ(index.direct_map.get(other), place);
            if (other != id) {
                ASSERT_EQ(after.coded.at(other), before.coded.at(other))
                        << "id " << other << ", step " << s;
                moved += place != before.place.at(other);
            }
        }
        ASSERT_EQ(after.place.count(id), update || add ? 1u : 0u);
        ASSERT_LE(moved, update ? 2 * most : most) << "step " << s;
        if (update || add) { // where it would have come to in many
            const Coded& c = after.coded.at(id);
            std::vector<uint16_t> cell(1);
            std::vector<float> means(kLists * kD);
            index.quantizer->reconstruct_n(0, kLists, means.data());
            index.cells.assign(
                    c.list, 1, kD, x.row(s), nullptr, means.data(), &cell[0]);
            ASSERT_EQ(c.partner, index.cells.partners(c.list)[cell[0]]);
        }
        before = after;
    }
}

/// Half a ring and the others, and a step to where the ring is left.
size_t most_moves(size_t L) {
    const size_t rings = PairCells::n_rings(L);
    return (L + rings - 1) / rings / 2 + 2 + rings;
}

TEST(FreePlace, OneEntryMovesFewOthers) {
    for (size_t L : {33, 79}) {
        SCOPED_TRACE(L);
        auto index = make<IndexIVFFlatGMM>(1500, L);
        ASSERT_EQ(index->cells.cells_per_list, L);
        const std::vector<int32_t> partner = index->cells.partner;
        live(*index, most_moves(L), 200, 0.5);
        EXPECT_NE(index->cells.partner, partner); // rings turned
    }
}

TEST(FreePlace, ListsThatEmptyAndFill) {
    auto index = make<IndexIVFFlatGMM>(500, 70);
    live(*index, most_moves(70), 1000, 0.2);
    EXPECT_LT(index->ntotal, 200);
    live(*index, most_moves(70), 500, 0.9);
}

/** Changes of several entries at a time: all is where it says, and no more
 * than `most` others move for each. */
template <class Index>
void live_together(Index& index, size_t together, size_t steps, size_t most) {
    const Vectors x = uneven(steps * together, 8);
    std::mt19937 rng(9);
    State before = state_of(index, index.cells);
    idx_t next_id = before.place.rbegin()->first + 1;
    for (size_t s = 0; s < steps; s++) {
        size_t longest = 0; // goes first: several of one list
        for (size_t i = 1; i < kLists; i++) {
            if (index.cells.list_size(i) > index.cells.list_size(longest)) {
                longest = i;
            }
        }
        std::vector<idx_t> ids;
        for (const auto& [id, place] : before.place) {
            ids.push_back(id);
        }
        std::shuffle(ids.begin(), ids.end(), rng);
        std::stable_partition(ids.begin(), ids.end(), [&](idx_t id) {
            return faiss::lo_listno(before.place.at(id)) == longest;
        });
        ids.resize(together);
        const int what = int(s % 3); // remove, update, add
        std::fill(                   // no list is fitted anew on the way
                index.cells.fitted_size.begin(),
                index.cells.fitted_size.end(),
                1u << 20);
        if (what == 0) {
            ASSERT_EQ(
                    index.remove_ids(
                            faiss::IDSelectorBatch(together, ids.data())),
                    together);
        } else if (what == 1) {
            index.update_vectors(
                    int(together), ids.data(), x.row(s * together));
        } else {
            std::iota(ids.begin(), ids.end(), next_id);
            next_id += idx_t(together);
            index.add_with_ids(
                    idx_t(together), x.row(s * together), ids.data());
        }
        const State after = state_of(index, index.cells);
        ASSERT_TRUE(after.in_order);
        ASSERT_EQ(index.direct_map.hashtable.size(), after.place.size());
        size_t moved = 0;
        const std::set<idx_t> touched(ids.begin(), ids.end());
        for (const auto& [id, place] : after.place) {
            ASSERT_EQ(index.direct_map.get(id), place);
            if (!touched.count(id)) {
                ASSERT_EQ(after.coded.at(id), before.coded.at(id))
                        << "id " << id << ", step " << s;
                moved += place != before.place.at(id);
            }
        }
        ASSERT_LE(moved, together * (what == 1 ? 2 * most : most))
                << "step " << s;
        for (size_t i = 0; i < together; i++) {
            ASSERT_EQ(after.place.count(ids[i]), what == 0 ? 0u : 1u);
            if (what == 0) {
                continue;
            }
            const Coded& c = after.coded.at(ids[i]);
            uint16_t cell;
            std::vector<float> means(kLists * kD);
            index.quantizer->reconstruct_n(0, kLists, means.data());
            index.cells.assign(
                    c.list,
                    1,
                    kD,
                    x.row(s * together + i),
                    nullptr,
                    means.data(),
                    &cell);
            ASSERT_EQ(c.partner, index.cells.partners(c.list)[cell]);
        }
        before = after;
    }
}

TEST(FreePlace, SeveralMoveNoMoreThanEachAlone) {
    for (size_t together : {3, 200}) {
        SCOPED_TRACE(together);
        auto index = make<IndexIVFFlatGMM>(9000, 79);
        live_together(*index, together, 18, most_moves(79));
    }
    auto codes = make<IndexIVFRaBitQGMM>(3000, 79);
    live_together(*codes, 12, 18, most_moves(79));
}

TEST(FreePlace, FewCellsAreInNoRing) {
    auto index = make<IndexIVFFlatGMM>(1500, 20);
    live(*index, 20, 300, 0.5);
}

TEST(FreePlace, CodesAlone) {
    auto index = make<IndexIVFRaBitQGMM>(1500, 70);
    live(*index, most_moves(70), 400, 0.5);
}

/// Copies of one index whose rings turned apart are still copies.
TEST(FreePlace, CodesAloneMergeAfterTheirRingsTurned) {
    auto index = make<IndexIVFRaBitQGMM>(1500, 70);
    auto other = std::unique_ptr<faiss::Index>(clone_index(index.get()));
    auto& ivf = dynamic_cast<IndexIVFRaBitQGMM&>(*other);
    index->set_direct_map_type(faiss::DirectMap::NoMap);
    const State clean = state_of(ivf, ivf.cells);
    live(ivf, most_moves(70), 300, 0.5);
    ASSERT_NE(ivf.cells.partner, index->cells.partner);
    ivf.set_direct_map_type(faiss::DirectMap::NoMap);
    const State coming = state_of(ivf, ivf.cells);
    const idx_t first = index->ntotal;
    index->merge_from(ivf, first);
    const State whole = state_of(*index, index->cells);
    EXPECT_EQ(whole.coded.size(), clean.coded.size() + coming.coded.size());
    for (const auto& [id, coded] : clean.coded) {
        ASSERT_EQ(whole.coded.at(id), coded);
    }
    for (const auto& [id, coded] : coming.coded) {
        ASSERT_EQ(whole.coded.at(id + first), coded);
    }
}

/// As files of version 0.2 have them: the last cell has its own partner.
TEST(FreePlace, RingsThatAreNotClosed) {
    constexpr size_t L = 70;
    auto index = make<IndexIVFFlatGMM>(1500, L);
    PairCells& cells = index->cells;
    const size_t rings = PairCells::n_rings(L);
    for (size_t i = 0; i < kLists; i++) {
        for (size_t r = 0; r < rings; r++) {
            const size_t l = (r + 1) * L / rings - 1;
            const int32_t* own = cells.partners(i);
            int32_t other = 0;
            while (other == int32_t(i) ||
                   std::find(own, own + L, other) != own + L) {
                other++;
            }
            cells.partner[i * L + l] = other;
            std::vector<float> mean(kD), own_mean(kD);
            index->quantizer->reconstruct(other, mean.data());
            index->quantizer->reconstruct(idx_t(i), own_mean.data());
            cells.gap[i * L + l] =
                    faiss::fvec_L2sqr(mean.data(), own_mean.data(), kD);
        }
    }
    live(*index, L, 300, 0.5);
    index->optimize(); // closes them
    for (size_t i = 0; i < kLists; i++) {
        EXPECT_EQ(cells.partners(i)[0], cells.partners(i)[L / rings - 1]);
    }
    live(*index, most_moves(L), 200, 0.5);
}

} // namespace
} // namespace faiss_ext
