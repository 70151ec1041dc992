// Codes without vectors: how they come, go and move, and what they refuse.
#include "CodesAloneTools.h"

namespace faiss_ext {
namespace {

TEST(IndexIVFRaBitQGMM, AddsInAnyPortions) {
    const Vectors x = clustered(1500, 40, 1);
    auto whole = make(x, 16, 2);
    auto parts = make_empty(x, 16, 2);
    for (size_t begin = 0, n = 1; begin < x.n; begin += n, n = 3 * n) {
        n = std::min(n, x.n - begin);
        parts->add(n, x.row(begin));
    }
    ASSERT_NO_FATAL_FAILURE(expect_sound(*parts, x.n));
    EXPECT_EQ(decoded(*whole), decoded(*parts));
    const Vectors q = clustered(10, 40, 2);
    EXPECT_EQ(find(*whole, q, 10), find(*parts, q, 10));
    EXPECT_FALSE(whole->maintenance_due() && !whole->calibrate_on_add);
}

TEST(IndexIVFRaBitQGMM, RemovesUpdatesAndResets) {
    const Vectors x = clustered(800, 30, 1), y = clustered(800, 30, 5);
    for (auto metric : {kL2, kIP}) {
        for (auto map :
             {faiss::DirectMap::NoMap, faiss::DirectMap::Hashtable}) {
            auto index = make(x, 12, 4, metric);
            index->set_direct_map_type(map);
            auto expected = decoded(*index);
            const faiss::IDSelectorRange some(100, 350);
            EXPECT_EQ(index->remove_ids(some), 250u);
            expected.erase(expected.find(100), expected.find(350));
            ASSERT_NO_FATAL_FAILURE(expect_sound(*index, 550));
            EXPECT_EQ(decoded(*index), expected);
            if (map == faiss::DirectMap::Hashtable) {
                const idx_t ids[] = {3, 700, 42};
                index->update_vectors(3, ids, y.x.data());
                auto fresh = make_empty(x, 12, 4, metric);
                fresh->add_with_ids(3, y.x.data(), ids);
                for (const auto& [id, v] : decoded(*fresh)) {
                    expected[id] = v;
                }
                EXPECT_EQ(decoded(*index), expected);
            }
            ASSERT_NO_FATAL_FAILURE(
                    expect_best_estimates(*index, rows_of(y, 0, 5), 15));
            index->reset();
            ASSERT_NO_FATAL_FAILURE(expect_sound(*index, 0));
            EXPECT_EQ(find(*index, y, 1).ids[0], -1);
            index->add(x.n, x.x.data());
            ASSERT_NO_FATAL_FAILURE(expect_sound(*index, x.n));
        }
    }
}

TEST(IndexIVFRaBitQGMM, MergesAndCopiesWithoutLoss) {
    const Vectors x = clustered(1000, 30, 1), q = clustered(10, 30, 2);
    for (auto metric : {kL2, kIP}) {
        auto whole = make(x, 12, 2, metric);
        auto a = make_empty(x, 12, 2, metric);
        auto b = make_empty(x, 12, 2, metric);
        a->add(600, x.row(0));
        b->add(400, x.row(600));
        a->merge_from(*b, 600);
        ASSERT_NO_FATAL_FAILURE(expect_sound(*a, x.n));
        ASSERT_NO_FATAL_FAILURE(expect_sound(*b, 0));
        EXPECT_EQ(decoded(*a), decoded(*whole));
        EXPECT_EQ(a->cells.norm2, whole->cells.norm2);
        EXPECT_EQ(find(*a, q, 10), find(*whole, q, 10));

        const auto id_mod = subset_type_t(1); // ids of remainder 2 modulo 3
        whole->copy_subset_to(*b, id_mod, 3, 2);
        ASSERT_NO_FATAL_FAILURE(expect_sound(*b, 333));
        auto all = decoded(*whole);
        for (const auto& [id, v] : decoded(*b)) {
            EXPECT_EQ(id % 3, 2);
            EXPECT_EQ(v, all.at(id));
        }
        ASSERT_NO_FATAL_FAILURE(expect_sound(*whole, x.n));

        // another training, bits, kind of index
        auto other = make(clustered(1000, 30, 9), 12, 2, metric);
        EXPECT_ANY_THROW(a->merge_from(*other, 0));
        EXPECT_FAISS_ERROR(a->copy_subset_to(*other, id_mod, 3, 2), "differ");
        auto bits = make_empty(x, 12, 4, metric);
        EXPECT_FAISS_ERROR(a->merge_from(*bits, 0), "bits");
        auto flat = trained<IndexIVFFlatGMM>(x, 12, metric);
        EXPECT_ANY_THROW(a->merge_from(*flat, 0));
        EXPECT_FAISS_ERROR(
                a->copy_subset_to(*flat, id_mod, 3, 2), "IndexIVFRaBitQGMM");
        EXPECT_ANY_THROW(flat->copy_subset_to(*a, id_mod, 3, 2));
        ASSERT_NO_FATAL_FAILURE(expect_sound(*a, x.n));
    }
}

TEST(IndexIVFRaBitQGMM, ErrorsChangeNothing) {
    const Vectors x = clustered(600, 12, 1);
    EXPECT_FAISS_ERROR(IndexIVFRaBitQGMM(12, 8, 3), "code_bits = 3");
    IndexIVFRaBitQGMM untrained(12, 8, 2);
    EXPECT_FAISS_ERROR(untrained.add(1, x.x.data()), "not trained");
    untrained.code_bits = 7;
    EXPECT_FAISS_ERROR(untrained.train(x.n, x.x.data()), "code_bits = 7");
    EXPECT_FALSE(untrained.is_trained);

    auto index = make(x, 8, 2);
    const auto before = decoded(*index);
    std::vector<float> bad(12, std::numeric_limits<float>::quiet_NaN());
    EXPECT_FAISS_ERROR(index->add(1, bad.data()), "x");
    index->max_assign = 2;
    EXPECT_FAISS_ERROR(index->add(1, x.x.data()), "max_assign = 2");
    EXPECT_FAISS_ERROR(find(*index, x, 1), "max_assign = 2");
    index->max_assign = 1;
    for (auto order :
         {ProbeOrder::distance,
          ProbeOrder::log_likelihood,
          ProbeOrder::scale_free}) {
        index->probe_order = order;
        EXPECT_FAISS_ERROR(find(*index, x, 1), "probe_order");
    }
    index->probe_order = ProbeOrder::calibrated;
    std::vector<float> dis(8), coarse(8);
    std::vector<idx_t> ids(8), keys(8, 1);
    EXPECT_FAISS_ERROR(
            index->search_preassigned(
                    1,
                    x.x.data(),
                    1,
                    keys.data(),
                    coarse.data(),
                    dis.data(),
                    ids.data(),
                    false),
            "search_preassigned");
    faiss::RangeSearchResult result(1);
    EXPECT_FAISS_ERROR(
            index->range_search_preassigned(
                    1, x.x.data(), 1, keys.data(), coarse.data(), &result),
            "range_search_preassigned");
    std::vector<uint8_t> bytes(100);
    EXPECT_FAISS_ERROR(
            index->sa_encode(1, x.x.data(), bytes.data()), "encode_vectors");
    EXPECT_FAISS_ERROR(
            index->reconstruct_from_offset(0, 100000, dis.data()), "entry");
    // what is put in the lists behind the index's back has no codes
    const idx_t id = 12345;
    index->invlists->add_entries(2, 1, &id, bytes.data());
    EXPECT_FAISS_ERROR(find(*index, x, 5), "no codes");
    EXPECT_FAISS_ERROR(index->calibrate(8, x.x.data()), "no codes");
    EXPECT_FAISS_ERROR(
            index->remove_ids(faiss::IDSelectorRange(0, 9)), "no codes");
    index->invlists->resize(2, index->invlists->list_size(2) - 1);
    ASSERT_NO_FATAL_FAILURE(expect_sound(*index, x.n));
    EXPECT_EQ(decoded(*index), before);
}

} // namespace
} // namespace faiss_ext
