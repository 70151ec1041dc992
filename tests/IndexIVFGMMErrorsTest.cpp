// Wrong input is refused with its name and value, and changes nothing.
#include "faiss_ext/IndexIVFGMM.h"

#include <limits>

#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/AuxIndexStructures.h>

#include "RefusedCalls.h"

namespace faiss_ext {
namespace {

TEST(IndexIVFGMMErrors, AnUntrainedIndexTakesAndGivesNothing) {
    IndexIVFFlatGMM index(base().d, kLists);
    const Vectors& x = base();
    expect_refused(index, {"not trained"}, [&] { index.add(x.n, x.x.data()); });
    expect_refused(index, {"not trained"}, [&] { find(index, x, 5); });
    expect_refused(index, {"not trained"}, [&] {
        faiss::RangeSearchResult result(x.n);
        index.range_search(x.n, x.x.data(), 1e5f, &result);
    });
    expect_refused(index, {"not trained"}, [&] { index.mixture(); });
    expect_refused(index, {"not trained"}, [&] { index.optimize(); });
    expect_refused(index, {"n = -1"}, [&] { index.add(-1, x.x.data()); });
}

TEST(IndexIVFGMMErrors, VectorsGoToListsThatThereAre) {
    auto index = calibrated();
    std::vector<idx_t> lists(base().n, 3);
    [[maybe_unused]] void* const inverted_list_context = nullptr;
    for (idx_t wrong : {idx_t(kLists), idx_t(-2)}) {
        lists[2500] = wrong;
        expect_refused(
                *index,
                {"coarse_idx[2500] = " + std::to_string(wrong), "of 16"},
                [&] {
                    index->add_core(
                            base().n,
                            base().x.data(),
                            nullptr,
                            lists.data() FAISS_EXT_ADD_CORE_TAIL);
                });
    }
}

TEST(IndexIVFGMMErrors, TrainingNeedsAVectorForEachList) {
    IndexIVFFlatGMM index(base().d, kLists);
    expect_refused(index, {"n = 15", "nlist = 16"}, [&] {
        index.train(15, base().x.data());
    });
    expect_refused(index, {"n = 0", "nlist = 16"}, [&] {
        index.train(0, base().x.data());
    });
    index.train(kLists, base().x.data());
    EXPECT_TRUE(index.is_trained);
}

TEST(IndexIVFGMMErrors, TrainingDataIsFinite) {
    for (float bad :
         {std::numeric_limits<float>::quiet_NaN(),
          std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
        IndexIVFFlatGMM index(base().d, kLists);
        Vectors x = base();
        x.x[77 * x.d + 5] = bad;
        expect_refused(index, {"x", "77", "dimension 5"}, [&] {
            index.train(x.n, x.x.data());
        });
    }
}

TEST(IndexIVFGMMErrors, AFilledIndexIsNotTrainedAgain) {
    auto index = calibrated();
    expect_refused(*index, {"ntotal = 3000"}, [&] {
        index->train(base().n, base().x.data());
    });
}

TEST(IndexIVFGMMErrors, ACodecThatCannotBeTrainedLeavesTheIndexAsItWas) {
    IndexIVFPQGMM index(base().d, kLists, 16, 8);
    index.cp.niter = 2;
    const faiss::Index* quantizer = index.quantizer;
    EXPECT_FAISS_ERROR(index.train(100, base().x.data()), "100");
    EXPECT_FALSE(index.is_trained);
    EXPECT_EQ(index.quantizer, quantizer);
    EXPECT_EQ(index.quantizer->ntotal, 0);
    EXPECT_TRUE(index.variances.empty());
    index.pq.cp.niter = 2;
    index.train(base().n, base().x.data());
    EXPECT_TRUE(index.is_trained);
    // and again: what was trained stays
    const std::vector<float> means = index.mixture().means;
    EXPECT_FAISS_ERROR(index.train(100, base().x.data()), "100");
    EXPECT_EQ(index.mixture().means, means);
}

TEST(IndexIVFGMMErrors, AddedVectorsAreFiniteOrNoneIsAdded) {
    auto index = calibrated();
    for (float bad :
         {std::numeric_limits<float>::quiet_NaN(),
          std::numeric_limits<float>::infinity(),
          1e30f}) {
        Vectors x = base();
        x.x[2999 * x.d + 100] = bad;
        expect_refused(
                *index, {"x", "2999"}, [&] { index->add(x.n, x.x.data()); });
    }
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    std::vector<float> v(base().d, std::nanf(""));
    const idx_t id = 5;
    expect_refused(*index, {"v", "row 0", "dimension 0"}, [&] {
        index->update_vectors(1, &id, v.data());
    });
}

TEST(IndexIVFGMMErrors, AQueryThatIsNotFiniteFindsNothing) {
    auto index = calibrated();
    Vectors q = queries();
    q.x[3 * q.d + 7] = std::nanf("");
    q.x[5 * q.d] = std::numeric_limits<float>::infinity();
    for (auto order :
         {ProbeOrder::calibrated,
          ProbeOrder::distance,
          ProbeOrder::scale_free,
          ProbeOrder::log_likelihood,
          ProbeOrder::codes}) {
        for (float mass : {0.9f, 1.0f}) {
            index->probe_order = order;
            index->probe_mass = mass;
            const Found clean = find(*index, queries(), 4);
            const Found found = find(*index, q, 4);
            for (size_t j = 0; j < found.ids.size(); j++) {
                const size_t i = j / 4;
                ASSERT_EQ(found.ids[j], i == 3 || i == 5 ? -1 : clean.ids[j])
                        << to_string(order) << " query " << i;
            }
            // alone, too
            const Found one = find(*index, rows_of(q, 3, 4), 4);
            ASSERT_EQ(one.ids, std::vector<idx_t>(4, -1)) << to_string(order);
        }
    }
    faiss::RangeSearchResult result(q.n);
    index->range_search(q.n, q.x.data(), 1e6f, &result);
    EXPECT_EQ(result.lims[3], result.lims[4]);
    EXPECT_LT(result.lims[4], result.lims[5]);
    EXPECT_EQ(result.lims[5], result.lims[6]);
}

TEST(IndexIVFGMMErrors, SearchParametersAreInTheirRanges) {
    auto index = calibrated();
    auto refused = [&](const std::vector<std::string>& words, auto&& params) {
        expect_refused(
                *index, words, [&] { find(*index, queries(), 5, &params); });
        expect_refused(*index, words, [&] {
            faiss::RangeSearchResult result(queries().n);
            index->range_search(
                    queries().n, queries().x.data(), 1e5f, &result, &params);
        });
    };
    SearchParametersIVFGMM p;
    p.nprobe = 0;
    refused({"nprobe = 0"}, p);
    faiss::SearchParametersIVF stock;
    stock.nprobe = 0;
    refused({"nprobe = 0"}, stock);
    for (float mass : {0.0f, -0.5f, 1.5f, std::nanf("")}) {
        p = {};
        p.probe_mass = mass;
        refused({"probe_mass = ", "(0, 1]"}, p);
    }
    for (float target : {1.0f, -0.5f, 1.5f, std::nanf("")}) {
        p = {};
        p.target_recall = target;
        refused({"target_recall = ", "[0, 1)", "nprobe = nlist"}, p);
    }
    struct Foreign : faiss::SearchParameters {
        int of_another_index = 0;
    };
    refused({"a faiss_ext::", "::Foreign, expected"}, Foreign());

    expect_refused(*index, {"k = 0"}, [&] { find(*index, queries(), 0); });
    // the index's own fields are looked at alike
    index->probe_mass = 2;
    EXPECT_FAISS_ERROR(find(*index, queries(), 5), "probe_mass = 2");
    index->probe_mass = 1;
    index->nprobe = 0;
    EXPECT_FAISS_ERROR(find(*index, queries(), 5), "nprobe = 0");
}

TEST(IndexIVFGMMErrors, ATargetNeedsACalibration) {
    auto index = filled(base(), kLists);
    SearchParametersIVFGMM p;
    p.target_recall = 0.9f;
    expect_refused(*index, {"target_recall", "calibrat"}, [&] {
        find(*index, queries(), 5, &p);
    });
}

} // namespace
} // namespace faiss_ext
