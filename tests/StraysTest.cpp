// Lists that FAISS's own functions made shorter behind an index's back: each
// call says so, or finds what is left.
#include "faiss_ext/store/strays.h"

#include <functional>
#include <set>

#include <faiss/IVFlib.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/invlists/InvertedLists.h>

#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/ListShard.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/list_storage.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr size_t kN = 1500, kLists = 16;

const Vectors& base() {
    static const Vectors data = sift_base(kN);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(20);
    return data;
}

/// One index by its three names.
struct Changed {
    std::unique_ptr<faiss::Index> index;
    faiss::IndexIVF* ivf;
    IVFGMM* gmm;
};

Changed parts_of(std::unique_ptr<faiss::Index> index) {
    auto ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
    auto gmm = dynamic_cast<IVFGMM*>(index.get());
    return {std::move(index), ivf, gmm};
}

Changed make(const char* description, size_t max_assign = 1) {
    std::unique_ptr<faiss::Index> index(
            index_factory(base().d, description, faiss::METRIC_L2));
    train_quickly(index.get());
    index->train(kN, base().x.data());
    auto gmm = dynamic_cast<IVFGMM*>(index.get());
    gmm->max_assign = max_assign;
    index->add(kN, base().x.data());
    return parts_of(std::move(index));
}

/// What FAISS's functions do to lists.
struct Way {
    const char* name;
    std::function<void(faiss::IndexIVF&)> change;
};

std::vector<Way> ways() {
    const auto empty_lists = [](size_t n, const faiss::IndexIVF& ivf) {
        return new faiss::ArrayInvertedLists(n, ivf.code_size);
    };
    return {
            {"remove_ids",
             [](faiss::IndexIVF& ivf) {
                 ivf.IndexIVF::remove_ids(faiss::IDSelectorRange(300, 1400));
             }},
            {"reset", [](faiss::IndexIVF& ivf) { ivf.IndexIVF::reset(); }},
            {"replace_invlists",
             [=](faiss::IndexIVF& ivf) {
                 ivf.replace_invlists(empty_lists(kLists, ivf), true);
             }},
            {"set_invlist_range",
             [=](faiss::IndexIVF& ivf) {
                 const std::unique_ptr<faiss::ArrayInvertedLists> lists(
                         empty_lists(4, ivf));
                 faiss::ivflib::set_invlist_range(&ivf, 0, 4, lists.get());
             }},
            {"lists and ntotal by hand",
             [](faiss::IndexIVF& ivf) {
                 ivf.invlists->reset();
                 ivf.ntotal = 0;
             }},
    };
}

std::set<idx_t> ids_in_lists(const faiss::IndexIVF& ivf) {
    std::set<idx_t> out;
    for (size_t i = 0; i < ivf.nlist; i++) {
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
        out.insert(ids.get(), ids.get() + ivf.invlists->list_size(i));
    }
    return out;
}

/// Runs a search; whether it threw. It throws nothing but what names a list.
bool refuses(const std::function<void()>& search) {
    try {
        search();
    } catch (const faiss::FaissException& e) {
        EXPECT_NE(std::string(e.what()).find("list "), std::string::npos)
                << e.what();
        EXPECT_NE(std::string(e.what()).find("entries"), std::string::npos)
                << e.what();
        return true;
    }
    return false;
}

TEST(Strays, NoSearchFindsWhatIsGone) {
    for (const char* description :
         {"GMM16,Flat",
          "GMM16,SQ8",
          "GMM16,PQ8x4np",
          "GMM16,RaBitQ4",
          "GMM16x1,Flat"}) {
        const Changed whole = make(description);
        for (const Way& way : ways()) {
            SCOPED_TRACE(std::string(description) + ", " + way.name);
            const Changed c = parts_of(clone_index(whole.index.get()));
            way.change(*c.ivf);
            const std::set<idx_t> left = ids_in_lists(*c.ivf);
            const Vectors& q = queries();
            const bool cells = !c.gmm->cells.empty();
            SearchParametersIVFGMM lists, codes, target, all;
            lists.nprobe = 3;
            codes.nprobe = 3;
            codes.probe_order = ProbeOrder::codes;
            target.target_recall = 0.9f;
            all.nprobe = kLists;
            for (const SearchParametersIVFGMM* p :
                 {&lists, &codes, &target, &all}) {
                const bool refused = refuses([&] {
                    for (idx_t id : find(*c.index, q, 70, p).ids) {
                        ASSERT_TRUE(id < 0 || left.count(id)) << id;
                    }
                });
                EXPECT_TRUE(refused || p != &codes || !cells);
                refuses([&] {
                    faiss::RangeSearchResult result(q.n);
                    c.index->range_search(q.n, q.x.data(), 60000, &result, p);
                    for (size_t i = 0; i < result.lims[q.n]; i++) {
                        const idx_t id = result.labels[i];
                        ASSERT_TRUE(left.count(id)) << id;
                    }
                });
                refuses([&] {
                    std::vector<float> dis(q.n * 5), x(q.n * 5 * q.d);
                    std::vector<idx_t> ids(q.n * 5);
                    c.ivf->search_and_reconstruct(
                            q.n,
                            q.x.data(),
                            5,
                            dis.data(),
                            ids.data(),
                            x.data(),
                            p);
                });
            }
        }
    }
}

TEST(Strays, CopiesAreNotTakenForOthers) {
    const Changed whole = make("GMM16,Flat", 2);
    for (const Way& way : ways()) {
        SCOPED_TRACE(way.name);
        const Changed c = parts_of(clone_index(whole.index.get()));
        way.change(*c.ivf);
        c.ivf->nprobe = kLists;
        EXPECT_TRUE(refuses([&] { find(*c.index, queries(), 10); }));
    }
}

/// As many as a list has, which says nothing of how many copies there are of
/// each; what was not filled so changes nothing.
TEST(Strays, ComeIntoAnIndexOfCopies) {
    const Changed c = make("GMM16x1,Flat", 3);
    size_t list = 0;
    while (c.gmm->earlier_lists[list].empty()) {
        list++;
    }
    const size_t n = c.ivf->invlists->list_size(list);
    for (size_t i = 0; i <= n; i++) {
        const float* row = queries().row(i % 20);
        c.ivf->invlists->add_entry(
                list, idx_t(kN + i), reinterpret_cast<const uint8_t*>(row));
    }
    c.ivf->ntotal += idx_t(n + 1);
    c.ivf->nprobe = kLists;
    EXPECT_EQ(find(*c.index, queries(), 10).dis[0], 0);
    c.gmm->max_assign = 2;
    EXPECT_FAISS_ERROR(find(*c.index, queries(), 10), "expected 3");
    EXPECT_FAISS_ERROR(c.index->add(1, base().x.data()), "expected 3");
    EXPECT_FAISS_ERROR(c.gmm->optimize(), "expected 3");
    EXPECT_EQ(c.ivf->invlists->list_size(list), 2 * n + 1);
    c.gmm->max_assign = 3;
    c.index->add(1, base().x.data());
    EXPECT_EQ(c.index->ntotal, idx_t(kN + n + 2));
    EXPECT_FALSE(written(*c.index).empty());
}

/// optimize() does what the message says, also where all entries had gone.
TEST(Strays, ComeIntoAnEmptiedIndexOfCopies) {
    const Changed c = make("GMM16x1,Flat", 2);
    c.ivf->remove_ids(faiss::IDSelectorRange(0, kN));
    EXPECT_EQ(c.ivf->ntotal, 0);
    for (size_t i = 0; i < 200; i++) {
        c.ivf->invlists->add_entry(
                i % kLists,
                idx_t(i),
                reinterpret_cast<const uint8_t*>(base().row(i)));
    }
    c.ivf->ntotal = 200;
    EXPECT_FAISS_ERROR(find(*c.index, queries(), 10), "optimize()");
    c.gmm->optimize();
    c.ivf->nprobe = kLists;
    EXPECT_GE(find(*c.index, queries(), 10).ids[9], 0);
}

/// An Array map grows for the id of a stray.
TEST(Strays, ComeInWhileTheirListIsUpdated) {
    const Changed c = make("GMM16,Flat");
    c.ivf->set_direct_map_type(faiss::DirectMap::Array);
    const idx_t id = 3;
    const size_t list = faiss::lo_listno(c.ivf->direct_map.array[id]);
    for (size_t i = 0; i < 300; i++) {
        c.ivf->invlists->add_entry(
                list,
                idx_t(kN + i),
                reinterpret_cast<const uint8_t*>(queries().row(i % 20)));
    }
    c.ivf->ntotal += 300;
    c.ivf->update_vectors(1, &id, queries().row(7));
    std::vector<float> x(base().d);
    c.index->reconstruct(id, x.data());
    EXPECT_EQ(x, std::vector<float>(queries().row(7), queries().row(8)));
    c.index->reconstruct(idx_t(kN + 299), x.data());
    EXPECT_EQ(x, std::vector<float>(queries().row(19), queries().row(20)));
}

/// Cells may turn while strays come in: what the new vectors' codes are about
/// is chosen after that.
TEST(Strays, ComeInBeforeCellsAreChosenForAnUpdate) {
    const size_t n = 12000;
    const Vectors x = sift_base(n), q = sift_queries(100);
    std::unique_ptr<faiss::Index> made(
            index_factory(x.d, "GMM64x40,Flat", faiss::METRIC_L2));
    train_quickly(made.get());
    made->train(n, x.x.data());
    made->add(n - 4000, x.x.data());
    const Changed c = parts_of(std::move(made));
    c.ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
    std::vector<idx_t> homes(n);
    c.ivf->quantizer->assign(n, x.x.data(), homes.data());
    for (size_t i = n - 4000; i < n; i++) {
        c.ivf->invlists->add_entry(
                homes[i], idx_t(i), reinterpret_cast<const uint8_t*>(x.row(i)));
    }
    c.ivf->ntotal += 4000;
    std::vector<idx_t> ids(2000);
    for (size_t i = 0; i < ids.size(); i++) {
        ids[i] = idx_t(2 * i);
    }
    c.ivf->update_vectors(int(ids.size()), ids.data(), x.row(3000));
    // Each code is one about the mean of the cell that it lies in: its bound
    // is below the distance.
    const PairCells& cells = c.gmm->cells;
    const MeansView means(*c.ivf);
    size_t wrong = 0;
    for (size_t list = 0; list < c.ivf->nlist; list++) {
        faiss::InvertedLists::ScopedCodes codes(c.ivf->invlists, list);
        const float* rows = reinterpret_cast<const float*>(codes.get());
        const size_t size = cells.list_size(list);
        std::vector<uint16_t> expected(size);
        cells.assign(
                list, size, x.d, rows, nullptr, means.data(), expected.data());
        const int32_t* partner = cells.partners(list);
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const auto [begin, end] = cells.range(list, l);
            for (size_t j = begin; j < end; j++) {
                wrong += partner[expected[j]] != partner[l];
            }
        }
    }
    EXPECT_LE(wrong, n / 1000); // ties by rounding
}

/// The direct map goes on naming what FAISS made it name.
TEST(Strays, OfOneIdTheMapNamesTheSame) {
    const Changed c = make("GMM16,Flat");
    c.ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
    std::vector<idx_t> ids;
    for (idx_t i = 0; i < 20; i++) {
        ids.push_back(kN + i % 4);
    }
    std::vector<uint8_t> codes(20 * c.ivf->sa_code_size());
    c.ivf->sa_encode(20, queries().x.data(), codes.data());
    c.ivf->add_sa_codes(20, codes.data(), ids.data());
    const auto named = [&] {
        std::vector<float> x(4 * base().d);
        for (size_t i = 0; i < 4; i++) {
            c.ivf->reconstruct(idx_t(kN + i), &x[i * base().d]);
        }
        return x;
    };
    const std::vector<float> before = named();
    written(*c.index); // takes them in
    EXPECT_EQ(named(), before);
    c.ivf->update_vectors(1, &ids[2], base().x.data());
    size_t left = 0; // of what the map named
    std::vector<float> x(base().d);
    for (size_t list = 0; list < kLists; list++) {
        for (size_t i = 0; i < c.ivf->invlists->list_size(list); i++) {
            c.ivf->reconstruct_from_offset(int64_t(list), int64_t(i), x.data());
            left += c.ivf->invlists->get_single_id(list, i) == ids[2] &&
                    std::equal(x.begin(), x.end(), &before[2 * base().d]);
        }
    }
    EXPECT_EQ(left, 0u);
}

TEST(Strays, WhatTheMessageSaysHelps) {
    for (const char* description : {"GMM16,Flat", "GMM16,SQ8"}) {
        const Changed c = make(description);
        c.ivf->IndexIVF::remove_ids(faiss::IDSelectorRange(300, 1400));
        c.gmm->probe_order = ProbeOrder::codes;
        c.ivf->nprobe = 3;
        EXPECT_FAISS_ERROR(find(*c.index, queries(), 10), "optimize()");
        c.gmm->optimize();
        for (idx_t id : find(*c.index, queries(), 10).ids) {
            EXPECT_TRUE(id >= 0 && (id < 300 || id >= 1400)) << id;
        }
    }
    const Changed c = make("GMM16,RaBitQ4");
    c.ivf->IndexIVF::remove_ids(faiss::IDSelectorRange(300, 1400));
    EXPECT_FAISS_ERROR(find(*c.index, queries(), 10), "reset()");
    c.index->reset();
    c.index->add(kN, base().x.data());
    EXPECT_EQ(
            find(*c.index, queries(), 10).ids,
            find(*make("GMM16,RaBitQ4").index, queries(), 10).ids);
}

TEST(Strays, CodesAloneAreNotReadForIdsThatAreGone) {
    const Changed c = make("GMM16,RaBitQ4");
    const auto other = clone_index(c.index.get());
    other->reset();
    auto& empty = dynamic_cast<faiss::IndexIVF&>(*other);
    c.ivf->IndexIVF::remove_ids(faiss::IDSelectorRange(0, 1400));
    size_t list = 0;
    while (c.gmm->cells.list_size(list) == 0) {
        list++;
    }
    std::vector<float> x(base().d);
    EXPECT_FAISS_ERROR(
            c.ivf->reconstruct_from_offset(int64_t(list), 0, x.data()),
            "entries");
    EXPECT_FAISS_ERROR(empty.merge_from(*c.index, 0), "entries");
    EXPECT_FAISS_ERROR(
            c.ivf->copy_subset_to(empty, subset_type_t(0), 0, 9), "entries");
    EXPECT_EQ(empty.ntotal, 0);
}

TEST(Strays, ListsThatCannotChangeOrAreNotThere) {
    for (const char* description : {"GMM16,Flat", "GMM16,RaBitQ4"}) {
        const Changed c = make(description);
        faiss::InvertedLists* own = c.ivf->invlists;
        const faiss::InvertedLists* view = own;
        c.ivf->own_invlists = false;
        faiss::HStackInvertedLists stack(1, &view);
        faiss::SliceInvertedLists slice(own, 0, kLists);
        for (faiss::InvertedLists* lists :
             {static_cast<faiss::InvertedLists*>(&stack),
              static_cast<faiss::InvertedLists*>(&slice),
              static_cast<faiss::InvertedLists*>(nullptr)}) {
            c.ivf->invlists = lists;
            const char* part = lists ? "read-only kind" : "invlists = nullptr";
            const faiss::IDSelectorRange some(3, 9);
            EXPECT_FAISS_ERROR(c.index->add(1, base().row(0)), part);
            EXPECT_FAISS_ERROR(c.index->remove_ids(some), part);
            EXPECT_FAISS_ERROR(c.index->reset(), part);
            EXPECT_FAISS_ERROR(c.gmm->maintain(), part);
            if (!lists) {
                EXPECT_FAISS_ERROR(find(*c.index, queries(), 5), "invlists");
                EXPECT_FAISS_ERROR(c.gmm->calibrate(20, nullptr), "invlists");
                EXPECT_FALSE(c.gmm->maintenance_due());
            }
        }
        c.ivf->invlists = own;
        c.ivf->own_invlists = true;
        EXPECT_EQ(c.index->ntotal, idx_t(kN));
        EXPECT_EQ(ids_in_lists(*c.ivf).size(), kN);
    }
}

TEST(Strays, MeansThatAreNotOfTheLists) {
    for (const char* description :
         {"GMM16,Flat", "GMM16x1,Flat", "GMM16,RaBitQ4"}) {
        const Changed c = make(description);
        c.ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
        const idx_t id = 5;
        c.ivf->quantizer->add(1, base().row(0));
        for (int round = 0; round < 2; round++) {
            const char* what = round == 0 ? "17 means" : "0 means";
            EXPECT_FAISS_ERROR(find(*c.index, queries(), 5), what);
            EXPECT_FAISS_ERROR(c.index->add(1, base().row(0)), what);
            EXPECT_FAISS_ERROR(
                    c.ivf->update_vectors(1, &id, base().row(0)), what);
            EXPECT_FAISS_ERROR(c.gmm->calibrate(20, nullptr), what);
            EXPECT_FAISS_ERROR(c.gmm->maintain(), what);
            EXPECT_FAISS_ERROR(c.gmm->optimize(), what);
            c.ivf->quantizer->reset();
        }
        EXPECT_EQ(c.index->ntotal, idx_t(kN));
    }
}

TEST(Strays, NothingIsMergedOrCopiedOfNothing) {
    for (const char* description : {"GMM16,Flat", "GMM16,RaBitQ4"}) {
        std::unique_ptr<faiss::Index> p(index_factory(8, description)),
                q(index_factory(8, description));
        EXPECT_FAISS_ERROR(p->merge_from(*q, 0), "trained");
        const Changed c = make(description);
        c.index->reset();
        const auto to = clone_index(c.index.get());
        auto& other = dynamic_cast<faiss::IndexIVF&>(*to);
        c.ivf->copy_subset_to(other, subset_type_t(2), 0, 5);
        EXPECT_EQ(other.ntotal, 0);
    }
    const Changed c = make("GMM16,Flat");
    c.index->reset();
    c.gmm->code_bits = -5;
    EXPECT_FAISS_ERROR(c.index->add(kN, base().row(0)), "code_bits = -5");
}

/// Entries that FAISS's own functions put in have no codes.
TEST(Strays, WhatCameInBySelectorsIsFoundOnce) {
    const Changed c = make("GMM16,Flat");
    const auto& lists =
            dynamic_cast<faiss::ArrayInvertedLists&>(*c.ivf->invlists);
    std::vector<idx_t> ids(lists.ids[0].begin(), lists.ids[0].end());
    for (idx_t& id : ids) {
        id += 10000;
    }
    c.ivf->invlists->add_entries(
            0, ids.size(), ids.data(), lists.codes[0].data());
    c.ivf->ntotal += ids.size();
    const Vectors& q = queries();
    for (idx_t step : {1, 3, 50}) {
        faiss::IDSelectorRange sel(0, 10000 + kN / step);
        for (size_t nprobe : {1, 3, 8, 16}) {
            SearchParametersIVFGMM params;
            params.nprobe = nprobe;
            params.sel = &sel;
            const Found found = find(*c.index, q, 100, &params);
            faiss::RangeSearchResult range(int(q.n));
            c.index->range_search(q.n, q.x.data(), 200000.0f, &range, &params);
            for (size_t i = 0; i < q.n; i++) {
                std::multiset<idx_t> seen(
                        &found.ids[i * 100], &found.ids[(i + 1) * 100]);
                std::multiset<idx_t> within(
                        range.labels + range.lims[i],
                        range.labels + range.lims[i + 1]);
                seen.erase(-1);
                for (idx_t id : seen) {
                    ASSERT_EQ(seen.count(id), 1u) << step << ", " << nprobe;
                }
                for (idx_t id : within) {
                    ASSERT_EQ(within.count(id), 1u) << step << ", " << nprobe;
                }
            }
        }
    }
}

TEST(Strays, AShardHasAllOfItsIndex) {
    Changed c = make("GMM16,Flat");
    c.ivf->IndexIVF::remove_ids(faiss::IDSelectorRange(300, 1400));
    EXPECT_FAISS_ERROR(ListShard(std::move(c.index), 0, 1), "optimize()");

    Changed later = make("GMM16,Flat");
    const ListShard shard(std::move(later.index), 0, 1);
    SearchParametersIVFGMM params;
    params.nprobe = 3;
    params.probe_order = ProbeOrder::codes;
    const Vectors& q = queries();
    const auto step = shard.step(q.n, q.x.data(), 5, &params, {});
    ASSERT_FALSE(step.done);
    later.ivf->IndexIVF::remove_ids(faiss::IDSelectorRange(300, 1400));
    EXPECT_FAISS_ERROR(
            shard.step(q.n, q.x.data(), 5, &params, {}), "optimize()");
    EXPECT_FAISS_ERROR(
            shard.answer(q.n, q.x.data(), 5, step.requests[0]), "not");
}

} // namespace
} // namespace faiss_ext
