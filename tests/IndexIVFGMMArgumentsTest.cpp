// Arguments that a call does not take: how many, where from, which lists.
#include "faiss_ext/IndexIVFGMM.h"

#include <numeric>
#include <random>

#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/AuxIndexStructures.h>

#include "RefusedCalls.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/index_factory.h"

namespace faiss_ext {
namespace {

TEST(IndexIVFGMMArguments, NoCallTakesFewerThanNoVectors) {
    auto index = calibrated();
    const float* const x = base().x.data();
    float distance;
    idx_t label = 0;
    std::vector<float> v(base().d);
    expect_refused(*index, {"n = -1"}, [&] {
        index->search(-1, x, 1, &distance, &label);
    });
    expect_refused(*index, {"n = -1"}, [&] {
        faiss::RangeSearchResult result(1);
        index->range_search(-1, x, 1e5f, &result);
    });
    expect_refused(*index, {"n = -1"}, [&] {
        index->search_and_reconstruct(-1, x, 1, &distance, &label, v.data());
    });
    IndexGMM quantizer(base().d, kLists);
    quantizer.set_mixture(index->mixture());
    expect_refused(*index, {"n = -1"}, [&] {
        quantizer.search(-1, x, 1, &distance, &label);
    });
    index->set_direct_map_type(faiss::DirectMap::Array);
    expect_refused(
            *index, {"nv = -1"}, [&] { index->update_vectors(-1, &label, x); });
}

TEST(IndexIVFGMMArguments, NoCallTakesMoreVectorsThanMemoryHolds) {
    auto index = calibrated();
    IndexIVFFlatGMM untrained(base().d, kLists);
    const float* const x = base().x.data();
    const idx_t many = idx_t(1) << 62;
    float distance;
    idx_t label = 0;
    for (const auto& [n, given] :
         std::initializer_list<std::pair<idx_t, const float*>>{
                 {many, x}, {idx_t(1) << 45, x}, {100, nullptr}}) {
        const std::string named =
                given ? "n = " + std::to_string(n) : std::string("x = nullptr");
        const idx_t rows = n;
        const float* const rows_at = given;
        expect_refused(*index, {named}, [&] { index->add(rows, rows_at); });
        expect_refused(*index, {named}, [&] {
            index->search(rows, rows_at, 1, &distance, &label);
        });
        expect_refused(*index, {named}, [&] {
            faiss::RangeSearchResult result(1);
            index->range_search(rows, rows_at, 1e5f, &result);
        });
        expect_refused(
                untrained, {named}, [&] { untrained.train(rows, rows_at); });
    }
    expect_refused(*index, {"k = " + std::to_string(many)}, [&] {
        index->search(10, x, many, &distance, &label);
    });
    expect_refused(*index, {"n = ", "distances"}, [&] {
        index->search(10, x, many / 16, &distance, &label);
    });
    expect_refused(*index, {"labels = nullptr"}, [&] {
        index->search(1, x, 1, &distance, nullptr);
    });
    expect_refused(*index, {"distances = nullptr"}, [&] {
        index->search(1, x, 1, nullptr, &label);
    });
    expect_refused(*index, {"result = nullptr"}, [&] {
        index->range_search(1, x, 1e5f, nullptr);
    });
    faiss::RangeSearchResult of_two(2);
    expect_refused(*index, {"result->nq = 2", "n = 1"}, [&] {
        index->range_search(1, x, 1e5f, &of_two);
    });
    // No vectors need no memory.
    index->search(0, nullptr, 1, nullptr, nullptr);
    index->add(0, nullptr);
}

TEST(IndexIVFGMMArguments, CallsThatFaissAnswersAreChecked) {
    auto index = calibrated();
    const float* const x = base().x.data();
    const idx_t many = idx_t(1) << 62, ntotal = index->ntotal;
    std::vector<float> out(2 * base().d);
    std::vector<uint8_t> bytes(2 * index->sa_code_size());
    idx_t labels[2];
    for (idx_t n : {idx_t(-1), many}) {
        const std::string named = "n = " + std::to_string(n);
        expect_refused(
                *index, {named}, [&] { index->assign(n, x, labels, 1); });
        expect_refused(
                *index, {named}, [&] { index->sa_encode(n, x, bytes.data()); });
        expect_refused(*index, {named}, [&] {
            index->sa_decode(n, bytes.data(), out.data());
        });
        expect_refused(*index, {"ni = " + std::to_string(n)}, [&] {
            index->reconstruct_n(0, n, out.data());
        });
    }
    expect_refused(*index, {"x = nullptr"}, [&] {
        index->assign(2, nullptr, labels, 1);
    });
    expect_refused(*index, {"labels = nullptr"}, [&] {
        index->assign(2, x, nullptr, 1);
    });
    expect_refused(*index, {"x = nullptr"}, [&] {
        index->sa_encode(2, nullptr, bytes.data());
    });
    expect_refused(*index, {"bytes = nullptr"}, [&] {
        index->sa_encode(2, x, nullptr);
    });
    expect_refused(*index, {"bytes = nullptr"}, [&] {
        index->sa_decode(2, nullptr, out.data());
    });
    expect_refused(*index, {"x = nullptr"}, [&] {
        index->sa_decode(2, bytes.data(), nullptr);
    });
    for (const auto& [i0, ni] : std::initializer_list<std::pair<idx_t, idx_t>>{
                 {-1, 1}, {ntotal, 1}, {ntotal - 1, 2}, {many, 1}}) {
        const idx_t from = i0, count = ni;
        expect_refused(*index, {"i0 = " + std::to_string(i0)}, [&] {
            index->reconstruct_n(from, count, out.data());
        });
    }
    expect_refused(*index, {"recons = nullptr"}, [&] {
        index->reconstruct_n(0, 2, nullptr);
    });
    index->reconstruct_n(ntotal, 0, nullptr);
    index->reconstruct_n(ntotal - 2, 2, out.data());
    for (size_t j = 0; j < 2 * base().d; j++) {
        EXPECT_EQ(out[j], base().row(ntotal - 2)[j]);
    }
    index->sa_encode(2, x, bytes.data());
    index->sa_decode(2, bytes.data(), out.data());
    for (size_t j = 0; j < 2 * base().d; j++) {
        EXPECT_EQ(out[j], x[j]);
    }
    index->assign(2, x, labels, 1);
    EXPECT_EQ(labels[0], 0);
}

TEST(IndexIVFGMMArguments, WhatIsNotThereCannotBeNamed) {
    auto index = calibrated();
    std::vector<float> v(base().d);
    const idx_t known = 5;
    expect_refused(*index, {"direct map"}, [&] {
        index->update_vectors(1, &known, v.data());
    });
    expect_refused(
            *index, {"direct map"}, [&] { index->reconstruct(5, v.data()); });
    for (auto type : {faiss::DirectMap::Array, faiss::DirectMap::Hashtable}) {
        index->set_direct_map_type(type);
        for (idx_t id : {idx_t(3000), idx_t(-1), idx_t(1) << 40}) {
            expect_refused(
                    *index, {}, [&] { index->reconstruct(id, v.data()); });
            const idx_t ids[] = {4, id};
            expect_refused(*index, {"idx[1]", std::to_string(id)}, [&] {
                index->update_vectors(2, ids, base().row(0));
            });
        }
    }
    // nothing is removed, and that is no error
    index->set_direct_map_type(faiss::DirectMap::NoMap);
    EXPECT_EQ(index->remove_ids(faiss::IDSelectorRange(3000, 9000)), 0u);
}

TEST(IndexIVFGMMArguments, ListsChosenByTheCallerWorkWithoutCopiesOnly) {
    const Vectors& q = queries();
    std::vector<float> coarse(q.n * 3);
    std::vector<idx_t> keys(q.n * 3);
    auto search = [&](const faiss::IndexIVF& index, Found& out) {
        index.quantizer->search(q.n, q.x.data(), 3, coarse.data(), keys.data());
        index.search_preassigned(
                q.n,
                q.x.data(),
                5,
                keys.data(),
                coarse.data(),
                out.dis.data(),
                out.ids.data(),
                false);
    };
    auto index = calibrated();
    index->probe_order = ProbeOrder::distance;
    Found found = find(*index, q, 5), again = found;
    search(*index, again);
    EXPECT_EQ(again, found);
    auto copies = trained(base(), kLists);
    copies->max_assign = 2;
    copies->add(base().n, base().x.data());
    EXPECT_FAISS_ERROR(search(*copies, again), "max_assign = 2");
    const idx_t beyond = kLists;
    EXPECT_FAISS_ERROR(
            index->search_preassigned(
                    1,
                    q.x.data(),
                    5,
                    &beyond,
                    coarse.data(),
                    again.dis.data(),
                    again.ids.data(),
                    false),
            "assign[0] = " + std::to_string(kLists));
    faiss::RangeSearchResult result(1);
    EXPECT_FAISS_ERROR(
            index->range_search_preassigned(
                    1, q.x.data(), 5, &beyond, coarse.data(), &result),
            "assign[0] = " + std::to_string(kLists));
    EXPECT_FAISS_ERROR(
            copies->range_search_preassigned(
                    1, q.x.data(), 5, keys.data(), coarse.data(), &result),
            "max_assign = 2");
    // lists are in the order of cells, whatever a range of ids is told
    faiss::IDSelectorRange range(base().n / 4, base().n / 2, true);
    faiss::SearchParametersIVF params;
    params.sel = &range;
    params.nprobe = 3;
    for (const char* name : {"GMM,Flat", "GMM,PQ4"}) {
        std::string spec = name;
        spec.insert(3, std::to_string(kLists));
        const std::unique_ptr<faiss::Index> any(
                index_factory(int(base().d), spec.c_str()));
        any->train(base().n, base().x.data());
        any->add(base().n, base().x.data());
        auto& of_any = dynamic_cast<faiss::IndexIVF&>(*any);
        faiss::IVFPQSearchParameters of_pq;
        of_pq.sel = &range;
        of_pq.nprobe = 3;
        of_any.quantizer->search(
                q.n, q.x.data(), 3, coarse.data(), keys.data());
        Found by[3] = {found, found, found};
        for (int i : {0, 1, 2}) {
            range.assume_sorted = i > 0;
            of_any.search_preassigned(
                    q.n,
                    q.x.data(),
                    5,
                    keys.data(),
                    coarse.data(),
                    by[i].dis.data(),
                    by[i].ids.data(),
                    false,
                    i == 2 ? &of_pq : &params);
        }
        EXPECT_EQ(by[1], by[0]) << name;
        EXPECT_EQ(by[2], by[0]) << name;
        EXPECT_GT(
                std::count_if(
                        by[0].ids.begin(),
                        by[0].ids.end(),
                        [](idx_t id) { return id >= 0; }),
                idx_t(q.n));
    }
    const float radius = found.dis[4] * 1.5f;
    index->nprobe = 3;
    index->range_search_preassigned(
            1, q.x.data(), radius, keys.data(), coarse.data(), &result);
    EXPECT_GE(result.lims[1], 5u);
    // FAISS takes nlist of more than nlist, and so many keys are given
    std::vector<idx_t> all(kLists);
    std::vector<float> far(kLists);
    std::iota(all.begin(), all.end(), 0);
    faiss::SearchParametersIVF more;
    more.nprobe = kLists + 100;
    index->search_preassigned(
            1,
            q.x.data(),
            5,
            all.data(),
            far.data(),
            again.dis.data(),
            again.ids.data(),
            false,
            &more);
    SearchParametersIVFGMM everything;
    everything.nprobe = kLists;
    found = find(*index, rows_of(q, 0, 1), 5, &everything);
    again.ids.resize(5);
    EXPECT_EQ(again.ids, found.ids);
}

TEST(IndexIVFGMMArguments, NumbersThatNoMemoryHasRoomFor) {
    auto index = calibrated();
    const float* const x = base().x.data();
    float distance;
    idx_t label;
    constexpr idx_t kHuge = idx_t(1) << 62;
    expect_refused(*index, {"n = 46"}, [&] { index->add(kHuge, x); });
    IndexIVFFlatGMM untrained(base().d, kLists);
    expect_refused(untrained, {"n = 46"}, [&] { untrained.train(kHuge, x); });
    expect_refused(*index, {"n = 46"}, [&] {
        index->search(kHuge, x, 1, &distance, &label);
    });
    expect_refused(*index, {"distances"}, [&] {
        index->search(1000, x, kHuge / 16, &distance, &label);
    });
    expect_refused(*index, {"k = "}, [&] {
        index->search(1, x, kHuge, &distance, &label);
    });
    expect_refused(*index, {"n = 46"}, [&] {
        faiss::RangeSearchResult result(1);
        index->range_search(kHuge, x, 1, &result);
    });
    for (size_t lists : {kLists + 1, SIZE_MAX}) {
        auto empty = trained(base(), kLists);
        empty->max_assign = lists;
        const std::string words = "max_assign = " + std::to_string(lists);
        EXPECT_FAISS_ERROR(empty->add(10, x), words);
        EXPECT_FAISS_ERROR(find(*empty, queries(), 1), words);
        EXPECT_EQ(empty->ntotal, 0);
    }
}

TEST(IndexIVFGMMArguments, NothingIsReadFromNowhere) {
    auto index = calibrated();
    const float* const x = base().x.data();
    float distance;
    idx_t label;
    expect_refused(*index, {"x = nullptr"}, [&] { index->add(5, nullptr); });
    expect_refused(*index, {"x = nullptr"}, [&] {
        index->search(5, nullptr, 1, &distance, &label);
    });
    expect_refused(*index, {"distances = nullptr"}, [&] {
        index->search(1, x, 1, nullptr, &label);
    });
    expect_refused(*index, {"labels = nullptr"}, [&] {
        index->search(1, x, 1, &distance, nullptr);
    });
    expect_refused(*index, {"result = nullptr"}, [&] {
        index->range_search(1, x, 1, nullptr);
    });
    index->add(0, nullptr);
    index->search(0, nullptr, 1, nullptr, nullptr);
}

TEST(IndexIVFGMMArguments, NorByAQuantizer) {
    auto index = calibrated();
    IndexGMM quantizer(base().d, kLists);
    quantizer.set_mixture(index->mixture());
    const float* const x = base().x.data();
    float distance;
    idx_t label;
    EXPECT_FAISS_ERROR(
            quantizer.search(1, x, 1, nullptr, &label), "distances = nullptr");
    EXPECT_FAISS_ERROR(quantizer.assign(1, x, nullptr), "labels = nullptr");
    EXPECT_FAISS_ERROR(
            quantizer.range_search(1, x, 1e9f, nullptr), "result = nullptr");
    faiss::RangeSearchResult result(1);
    EXPECT_FAISS_ERROR(
            quantizer.range_search(1, nullptr, 1e9f, &result), "x = nullptr");
    quantizer.range_search(1, x, 1e9f, &result);
    EXPECT_EQ(result.lims[1], size_t(kLists));
    EXPECT_FAISS_ERROR(
            quantizer.range_search(1, x, 1e9f, &result), "another search");
    quantizer.search(1, x, 1, &distance, &label);
    EXPECT_GE(label, 0);
}

/// Codes of very many bits would not add up in 16 of them.
TEST(IndexIVFGMMArguments, CodesOfVeryManyDimensions) {
    constexpr size_t kD = 65536;
    EXPECT_FAISS_ERROR(
            IndexIVFRaBitQGMM(kD, 8, 4), "expected at most 65532 dimensions");
    EXPECT_NO_THROW(IndexIVFRaBitQGMM(65532, 8, 4));
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    Vectors x{80, kD, std::vector<float>(80 * kD)};
    for (float& v : x.x) {
        v = normal(rng);
    }
    IndexIVFFlatGMM index(kD, 8);
    index.code_bits = 4;
    index.cp.min_points_per_centroid = 1;
    index.train(x.n, x.x.data());
    index.add(x.n, x.x.data());
    index.nprobe = 8;
    const Found found = find(index, rows_of(x, 0, 5), 1);
    EXPECT_EQ(found.ids, std::vector<idx_t>({0, 1, 2, 3, 4}));
}

TEST(IndexIVFGMMArguments, WhatASearchDoesNotTake) {
    auto index = calibrated();
    const Vectors q = rows_of(base(), 0, 5);
    index->parallel_mode = index->PARALLEL_MODE_NO_HEAP_INIT;
    EXPECT_FAISS_ERROR(find(*index, q, 3), "NO_HEAP_INIT");
    index->parallel_mode = 0;
    SearchParametersIVFGMM params;
    params.target_recall = 0.9f;
    std::vector<float> coarse(q.n), distances(q.n * 3);
    std::vector<idx_t> keys(q.n), labels(q.n * 3);
    index->quantizer->search(q.n, q.x.data(), 1, coarse.data(), keys.data());
    EXPECT_FAISS_ERROR(
            index->search_preassigned(
                    q.n,
                    q.x.data(),
                    3,
                    keys.data(),
                    coarse.data(),
                    distances.data(),
                    labels.data(),
                    false,
                    &params),
            "target_recall = 0.9");
    // FAISS takes lists, distances and results on trust, and its loop is
    // parallel
    struct Given {
        const float* x;
        const idx_t* keys;
        const float* coarse;
        float* distances;
        idx_t* labels;
    };
    const Given all{
            q.x.data(),
            keys.data(),
            coarse.data(),
            distances.data(),
            labels.data()};
    const auto preassigned = [&](idx_t n, idx_t k, const Given& g) {
        index->search_preassigned(
                n, g.x, k, g.keys, g.coarse, g.distances, g.labels, false);
    };
    const auto in_range = [&](idx_t n, const Given& g, size_t nq, bool there) {
        faiss::RangeSearchResult result(nq);
        index->range_search_preassigned(
                n, g.x, 1, g.keys, g.coarse, there ? &result : nullptr);
    };
    const idx_t n = q.n;
    index->nprobe = 1;
    EXPECT_NO_THROW(preassigned(n, 3, all));
    EXPECT_NO_THROW(in_range(n, all, q.n, true));
    for (int missing = 0; missing < 5; missing++) {
        const char* names[] = {
                "x", "assign", "centroid_dis", "distances", "labels"};
        Given some = all;
        some.x = missing == 0 ? nullptr : some.x;
        some.keys = missing == 1 ? nullptr : some.keys;
        some.coarse = missing == 2 ? nullptr : some.coarse;
        some.distances = missing == 3 ? nullptr : some.distances;
        some.labels = missing == 4 ? nullptr : some.labels;
        const std::string what = std::string(names[missing]) + " = nullptr";
        EXPECT_FAISS_ERROR(preassigned(n, 3, some), what);
        if (missing < 3) {
            EXPECT_FAISS_ERROR(in_range(n, some, q.n, true), what);
        }
    }
    for (idx_t wrong : {idx_t(-1), idx_t(1) << 62}) {
        const std::string what = "n = " + std::to_string(wrong);
        EXPECT_FAISS_ERROR(preassigned(wrong, 3, all), what);
        EXPECT_FAISS_ERROR(in_range(wrong, all, q.n, true), what);
    }
    EXPECT_FAISS_ERROR(preassigned(n, 0, all), "k = 0");
    EXPECT_FAISS_ERROR(in_range(n, all, q.n, false), "result = nullptr");
    EXPECT_FAISS_ERROR(in_range(n, all, q.n - 1, true), "result->nq = 4");
    faiss::RangeSearchResult used(q.n);
    const auto in_used = [&] {
        index->range_search_preassigned(
                n, all.x, 1, all.keys, all.coarse, &used);
    };
    in_used();
    EXPECT_FAISS_ERROR(in_used(), "result: it holds those of another search");
    EXPECT_FAISS_ERROR(
            index->range_search(n, all.x, 1, &used), "result: it holds");
    // what FAISS puts where there is no vector
    std::vector<float> recons(q.n * 4000 * q.d);
    std::vector<float> far(q.n * 4000);
    std::vector<idx_t> ids(q.n * 4000);
    index->nprobe = 1;
    index->search_and_reconstruct(
            q.n, q.x.data(), 4000, far.data(), ids.data(), recons.data());
    ASSERT_EQ(ids.back(), -1);
    EXPECT_TRUE(std::isnan(recons.back()));
}

} // namespace
} // namespace faiss_ext
