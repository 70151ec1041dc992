// Wrong input is refused with its name and value, and changes nothing.
#include "faiss_ext/IndexIVFGMM.h"

#include <limits>
#include <numeric>
#include <random>

#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/io.h>

#include "IvfTestTools.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 16;

const Vectors& base() {
    static const Vectors data = sift_base(3000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(20);
    return data;
}

/// Everything of an index that a failed call could have changed.
struct State {
    explicit State(const IndexIVFFlatGMM& index)
            : index(index), ntotal(index.ntotal), trained(index.is_trained),
              map(index.direct_map.type), cells(index.cells.cells_per_list),
              calibrated(index.calibration.fitted),
              report(index.calibration.report()),
              means(index.is_trained ? index.mixture().means
                                     : std::vector<float>()),
              found(search()), entries(list_entries()) {}

    Found search() const {
        return trained ? find(index, queries(), 10) : Found{};
    }
    std::vector<std::vector<idx_t>> list_entries() const {
        std::vector<std::vector<idx_t>> out;
        for (size_t i = 0; i < index.nlist; i++) {
            faiss::InvertedLists::ScopedIds ids(index.invlists, i);
            out.emplace_back(
                    ids.get(), ids.get() + index.invlists->list_size(i));
        }
        return out;
    }
    void expect_unchanged() const {
        EXPECT_EQ(index.ntotal, ntotal);
        EXPECT_EQ(index.is_trained, trained);
        EXPECT_EQ(index.direct_map.type, map);
        EXPECT_EQ(index.cells.cells_per_list, cells);
        EXPECT_EQ(index.calibration.fitted, calibrated);
        EXPECT_EQ(index.calibration.report(), report);
        if (trained) {
            EXPECT_EQ(index.mixture().means, means);
        }
        EXPECT_EQ(search(), found);
        EXPECT_EQ(list_entries(), entries);
    }

    const IndexIVFFlatGMM& index;
    idx_t ntotal;
    bool trained;
    faiss::DirectMap::Type map;
    size_t cells;
    bool calibrated;
    std::string report;
    std::vector<float> means;
    Found found;
    std::vector<std::vector<idx_t>> entries;
};

/// The call throws, its message has these words, and the index is as it was.
template <class F>
void expect_refused(
        const IndexIVFFlatGMM& index,
        const std::vector<std::string>& words,
        F&& call) {
    const State before(index);
    const std::string message = faiss_error(call);
    for (const std::string& word : words) {
        EXPECT_NE(message.find(word), std::string::npos)
                << "'" << word << "' is not in: " << message;
    }
    before.expect_unchanged();
}

std::unique_ptr<IndexIVFFlatGMM> calibrated() {
    auto index = filled(base(), kLists);
    index->calibrate(100, nullptr);
    index->nprobe = 3;
    return index;
}

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

TEST(IndexIVFGMMErrors, TheCovarianceIsOneOfThree) {
    IndexIVFFlatGMM index(base().d, kLists);
    index.covariance = gmm::Covariance(9);
    expect_refused(index, {"covariance = 9"}, [&] {
        index.train(base().n, base().x.data());
    });
}

TEST(IndexIVFGMMErrors, TheMetricIsOneOfTwo) {
    IndexIVFFlatGMM index(base().d, kLists, faiss::METRIC_Linf);
    expect_refused(index, {"metric = 3", "METRIC_L2"}, [&] {
        index.train(base().n, base().x.data());
    });
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
        refused({"target_recall = ", "[0, 1)"}, p);
    }
    struct Foreign : faiss::SearchParameters {
        int of_another_index = 0;
    };
    refused({"params", "SearchParametersIVF"}, Foreign());

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

TEST(IndexIVFGMMErrors, NoCallTakesFewerThanNoVectors) {
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

TEST(IndexIVFGMMErrors, NoCallTakesMoreVectorsThanMemoryHolds) {
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

TEST(IndexIVFGMMErrors, WhatIsNotThereCannotBeNamed) {
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

TEST(IndexIVFGMMErrors, ListsChosenByTheCallerWorkWithoutCopiesOnly) {
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

/// Before anything is in.
TEST(IndexIVFGMMErrors, FieldsAreInTheirRangesWhenVectorsAreAdded) {
    auto index = trained(base(), kLists);
    index->code_bits = 3;
    expect_refused(*index, {"code_bits = 3"}, [&] {
        index->add(100, base().x.data());
    });
    index->code_bits = 0;
    index->max_assign = 2;
    index->cells_per_list = 1;
    for (float ratio : {0.0f, -1.0f, NAN}) {
        index->assign_ratio = ratio;
        EXPECT_FAISS_ERROR(index->add(100, base().x.data()), "assign_ratio");
    }
    index->assign_ratio = 1.3f;
    for (float threshold : {-1.0f, 2.0f, NAN}) {
        index->assign_threshold = threshold;
        EXPECT_FAISS_ERROR(
                index->add(100, base().x.data()), "assign_threshold");
    }
    EXPECT_EQ(index->ntotal, 0);
    // what only additions read keeps nobody from searching
    index->assign_threshold = 0;
    index->add(base().n, base().x.data());
    index->assign_ratio = INFINITY;
    index->assign_threshold = -1;
    EXPECT_NO_THROW(find(*index, queries(), 5));
    // nor is anything merged that cells could not be made of
    auto full = calibrated(), into = trained(base(), kLists);
    into->code_bits = 3;
    const idx_t n = full->ntotal;
    EXPECT_FAISS_ERROR(into->merge_from(*full, 0), "code_bits = 3");
    EXPECT_FAISS_ERROR(
            full->copy_subset_to(*into, faiss_ext::subset_type_t(0), 0, 9),
            "code_bits = 3");
    EXPECT_EQ(full->ntotal, n);
    EXPECT_EQ(into->ntotal, 0);
}

TEST(IndexIVFGMMErrors, SubsetsAreOfATrainedIndexAndInOrder) {
    auto index = calibrated();
    IndexIVFFlatGMM untrained(base().d, kLists);
    using Kind = faiss_ext::subset_type_t;
    EXPECT_FAISS_ERROR(
            index->copy_subset_to(untrained, Kind(0), 0, 10), "trained");
    EXPECT_EQ(untrained.ntotal, 0);
    auto other = trained(base(), kLists);
    EXPECT_FAISS_ERROR(
            index->copy_subset_to(*other, Kind(2), 20, 10), "a2 = 10");
    EXPECT_FAISS_ERROR(index->copy_subset_to(*other, Kind(1), 0, 0), "a1 = 0");
    EXPECT_EQ(other->ntotal, 0);
}

/// Codes about other means, or by another codec, are other vectors.
TEST(IndexIVFGMMErrors, SubsetsAreOfTheSameTraining) {
    using Kind = faiss_ext::subset_type_t;
    for (const char* description : {"GMM16,Flat", "GMM16,PQ8x4", "GMM16,SQ8"}) {
        const auto make = [&](const Vectors& x) {
            std::unique_ptr<faiss::Index> index(
                    index_factory(int(x.d), description, faiss::METRIC_L2));
            index->train(x.n, x.x.data());
            return index;
        };
        const auto from = make(rows_of(base(), 0, 1000));
        from->add(500, base().x.data());
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*from);
        const auto same = clone_index(from.get());
        same->reset();
        auto& same_ivf = dynamic_cast<faiss::IndexIVF&>(*same);
        ivf.copy_subset_to(same_ivf, Kind(0), 0, 200);
        EXPECT_EQ(same->ntotal, 200) << description;
        const auto other = make(rows_of(base(), 1000, 2000));
        auto& other_ivf = dynamic_cast<faiss::IndexIVF&>(*other);
        EXPECT_FAISS_ERROR(
                ivf.copy_subset_to(other_ivf, Kind(0), 0, 200), "means");
        EXPECT_EQ(other->ntotal, 0) << description;
    }
    // as many bytes, of another quantizer; and of another metric
    const size_t d = base().d;
    std::unique_ptr<faiss::Index> index(
            index_factory(int(d), "GMM16,SQ8", faiss::METRIC_L2));
    index->train(1000, base().x.data());
    index->add(100, base().x.data());
    auto& sq = dynamic_cast<faiss::IndexIVF&>(*index);
    faiss::IndexIVFPQ pq(sq.quantizer, d, kLists, d, 8);
    pq.train(1000, base().x.data());
    EXPECT_FAISS_ERROR(
            sq.copy_subset_to(pq, Kind(0), 0, 10), "quantizers of residuals");
    faiss::IndexIVFScalarQuantizer ip(
            sq.quantizer,
            d,
            kLists,
            faiss::ScalarQuantizer::QT_8bit,
            faiss::METRIC_INNER_PRODUCT);
    ip.is_trained = true;
    EXPECT_FAISS_ERROR(sq.copy_subset_to(ip, Kind(0), 0, 10), "metric");
}

/// What fp16 makes infinite is named and changes nothing.
TEST(IndexIVFGMMErrors, ValuesThatTheCodecHasNoRoomFor) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        std::unique_ptr<faiss::Index> index(
                index_factory(int(base().d), "GMM16,SQfp16", metric));
        index->train(base().n, base().x.data());
        index->add(1500, base().x.data());
        Vectors wide = rows_of(base(), 0, 1200);
        wide.x[700 * wide.d + 5] = 1e5f;
        EXPECT_FAISS_ERROR(index->add(1200, wide.x.data()), "holds 100000");
        EXPECT_EQ(index->ntotal, 1500);
        faiss::VectorIOWriter writer;
        faiss_ext::write_index(index.get(), &writer);
        wide.x[700 * wide.d + 5] = 6e4f;
        index->add(1200, wide.x.data());
        extract_gmm(index.get())->calibrate(300, nullptr);
        faiss_ext::write_index(index.get(), &writer);
    }
}

/// What the caller takes away is named, not presumed.
TEST(IndexIVFGMMErrors, CellsAreThoseThatItWasFilledWith) {
    for (const char* description : {"GMM16,Flat", "GMM16,RaBitQ4"}) {
        std::unique_ptr<faiss::Index> index(
                index_factory(int(base().d), description, faiss::METRIC_L2));
        index->train(base().n, base().x.data());
        index->add(2000, base().x.data());
        IVFGMM& gmm = *extract_gmm(index.get());
        const PairCells kept = gmm.cells;
        if (description[6] == 'F') {
            gmm.cells.codes = CellCodes();
        } else {
            gmm.cells = PairCells();
        }
        EXPECT_FAISS_ERROR(find(*index, queries(), 10), "cells");
        EXPECT_FAISS_ERROR(index->add(10, base().x.data()), "cells");
        EXPECT_FAISS_ERROR(
                index->remove_ids(faiss::IDSelectorRange(0, 10)), "cells");
        gmm.cells = kept;
        EXPECT_GE(find(*index, queries(), 10).ids[0], 0);
    }
}

TEST(IndexIVFGMMErrors, AnArrayMapTakesNoIdsAndHasNoGaps) {
    auto index = calibrated();
    index->set_direct_map_type(faiss::DirectMap::Array);
    const std::vector<idx_t> ids = {7000, 7001};
    expect_refused(*index, {}, [&] {
        index->add_with_ids(2, base().x.data(), ids.data());
    });
    expect_refused(*index, {"Array"}, [&] {
        index->remove_ids(faiss::IDSelectorRange(0, 10));
    });
}

TEST(IndexIVFGMMErrors, OnlyTheSameKindMerges) {
    auto index = calibrated();
    faiss::IndexFlatL2 coarse(base().d);
    faiss::IndexIVFFlat stock(&coarse, base().d, kLists);
    stock.train(base().n, base().x.data());
    stock.add(100, base().x.data());
    expect_refused(*index, {}, [&] { index->merge_from(stock, 0); });
    EXPECT_EQ(stock.ntotal, 100);
    auto other_means = trained(rows_of(base(), 1000, 2000), kLists);
    other_means->add(100, base().x.data());
    expect_refused(*index, {"means differ"}, [&] {
        index->merge_from(*other_means, 0);
    });
    EXPECT_EQ(other_means->ntotal, 100);
    auto copies = trained(base(), kLists);
    copies->max_assign = 2;
    copies->add(100, base().x.data());
    expect_refused(
            *index, {"max_assign = 2"}, [&] { index->merge_from(*copies, 0); });
    expect_refused(*index, {}, [&] { index->merge_from(*index, 0); });
}

TEST(IndexIVFGMMErrors, IdsBeyond64BitsAreNotMerged) {
    auto index = calibrated();
    const auto other = trained(base(), kLists);
    const idx_t id = std::numeric_limits<idx_t>::max() - 3;
    other->add_with_ids(1, base().x.data(), &id);
    expect_refused(
            *index, {"add_id = 4"}, [&] { index->merge_from(*other, 4); });
    EXPECT_EQ(other->ntotal, 1);
    index->merge_from(*other, 3);
}

TEST(IndexIVFGMMErrors, CopiesAreDecidedOnBeforeAdding) {
    auto index = calibrated();
    for (size_t assign : {size_t(0), size_t(2)}) {
        index->max_assign = assign;
        EXPECT_FAISS_ERROR(
                index->add(10, base().x.data()),
                "max_assign = " + std::to_string(assign));
        index->max_assign = 1;
        EXPECT_EQ(index->ntotal, idx_t(base().n));
    }
    auto plain = trained(base(), kLists);
    plain->cells_per_list = 1;
    plain->add(100, base().x.data());
    plain->max_assign = 2;
    EXPECT_FAISS_ERROR(plain->add(100, base().x.data()), "max_assign = 2");
    EXPECT_FAISS_ERROR(find(*plain, queries(), 5), "max_assign = 2");
    plain->max_assign = 1;
    expect_model(*plain, model_of(rows_of(base(), 0, 100)), queries());
}

TEST(IndexIVFGMMErrors, NumbersThatNoMemoryHasRoomFor) {
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

TEST(IndexIVFGMMErrors, NothingIsReadFromNowhere) {
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

TEST(IndexIVFGMMErrors, AnEmptiedIndexTakesAnotherNumberOfCopies) {
    auto index = trained(base(), kLists);
    for (size_t assign : {2, 1, 3}) {
        index->max_assign = assign;
        index->add(base().n, base().x.data());
        EXPECT_EQ(index->cells.empty(), assign > 1);
        check_consistent(*index, *index, model_of(base()));
        index->remove_ids(faiss::IDSelectorRange(0, base().n));
        EXPECT_EQ(index->ntotal, 0);
    }
}

/// Codes of very many bits would not add up in 16 of them.
TEST(IndexIVFGMMErrors, CodesOfVeryManyDimensions) {
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

TEST(IndexIVFGMMErrors, WhatASearchDoesNotTake) {
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
