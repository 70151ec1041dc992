// max_assign > 1: vectors in several lists, found once, counted once, removed
// everywhere.
#include "faiss_ext/IndexIVFGMM.h"

#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"
#include "faiss_ext/calibrate/ground_truth.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 32;

const Vectors& base() {
    static const Vectors data = sift_base(5000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(50);
    return data;
}

struct Rule {
    size_t max_assign;
    float threshold; ///< 0: by direction
};
constexpr Rule kRules[] = {{2, 0}, {3, 0}, {2, 0.01f}, {3, 1e-6f}};

std::string name(const Rule& rule) {
    return "max_assign " + std::to_string(rule.max_assign) + " threshold " +
            std::to_string(rule.threshold);
}

template <class Index = IndexIVFFlatGMM, class... Args>
std::unique_ptr<Index> empty_index(
        const Rule& rule, const Vectors& x, Args... args) {
    auto index = trained<Index>(x, kLists, args...);
    index->max_assign = rule.max_assign;
    index->assign_threshold = rule.threshold;
    return index;
}

size_t stored(const faiss::IndexIVF& index) {
    size_t n = 0;
    for (size_t i = 0; i < index.nlist; i++) {
        n += index.invlists->list_size(i);
    }
    return n;
}

TEST(IndexIVFGMMCopies, EachVectorIsFoundAndCountedOnce) {
    for (const Rule& rule : kRules) {
        SCOPED_TRACE(name(rule));
        auto index = empty_index(rule, base());
        index->add(base().n, base().x.data());
        EXPECT_GT(stored(*index), base().n);
        EXPECT_LE(stored(*index), base().n * rule.max_assign);
        const Model model = model_of(base());
        check_consistent(*index, *index, model);
        expect_model(*index, model, queries());

        // k = ntotal shows every vector that a distance was computed of
        for (size_t nprobe : {size_t(1), size_t(2), size_t(5), kLists}) {
            index->nprobe = nprobe;
            faiss::indexIVF_stats.reset();
            const Found all = find(*index, queries(), base().n);
            expect_honest(all, model, queries(), faiss::METRIC_L2);
            const size_t given = all.ids.size() -
                    std::count(all.ids.begin(), all.ids.end(), -1);
            EXPECT_EQ(faiss::indexIVF_stats.ndis, given);
            // and that is each vector of the lists probed
            std::vector<float> dis(queries().n * nprobe);
            std::vector<idx_t> keys(dis.size());
            index->quantizer->search(
                    queries().n,
                    queries().x.data(),
                    nprobe,
                    dis.data(),
                    keys.data());
            for (size_t q = 0; q < queries().n; q++) {
                std::set<idx_t> expected;
                for (size_t p = 0; p < nprobe; p++) {
                    const size_t list = keys[q * nprobe + p];
                    faiss::InvertedLists::ScopedIds ids(index->invlists, list);
                    expected.insert(
                            ids.get(),
                            ids.get() + index->invlists->list_size(list));
                }
                const auto begin = all.ids.begin() + q * base().n;
                std::set<idx_t> got(begin, begin + base().n);
                got.erase(-1);
                ASSERT_EQ(got, expected) << "query " << q;
            }
        }
    }
}

TEST(IndexIVFGMMCopies, CopiesFollowTheirRule) {
    auto index = empty_index({2, 0}, base());
    index->add(base().n, base().x.data());
    const std::vector<float> means = index->mixture().means;
    auto distance = [&](idx_t id, size_t list) {
        return true_distance(
                faiss::METRIC_L2,
                base().row(id),
                &means[list * base().d],
                base().d);
    };
    size_t with_copy = 0;
    for (const auto& [id, at] : entries_by_id(*index)) {
        if (at.size() == 1) {
            continue;
        }
        with_copy++;
        const bool first_is_home =
                index->earlier_lists[at[0].list][at[0].offset] < 0;
        const double home = distance(id, at[first_is_home ? 0 : 1].list);
        const double copy = distance(id, at[first_is_home ? 1 : 0].list);
        ASSERT_LE(home, copy * (1 + 1e-5));
        ASSERT_LE(copy, 1.3 * 1.3 * home * (1 + 1e-5));
    }
    EXPECT_GT(with_copy, base().n / 4);

    auto closer = empty_index({2, 0}, base());
    closer->assign_ratio = 1.02f;
    closer->add(base().n, base().x.data());
    EXPECT_LT(stored(*closer) - base().n, with_copy / 2);

    // responsibilities above the threshold, by the mixture's own reference
    auto soft = empty_index({2, 0.05f}, base());
    soft->add(base().n, base().x.data());
    const gmm::GaussianMixture mixture = soft->mixture();
    std::vector<double> joint(base().n * kLists);
    mixture.log_joint(base().n, base().x.data(), joint.data());
    const auto entries = entries_by_id(*soft);
    size_t wrong = 0;
    for (size_t i = 0; i < base().n; i++) {
        std::vector<double> r(&joint[i * kLists], &joint[i * kLists] + kLists);
        const double best = *std::max_element(r.begin(), r.end());
        double sum = 0;
        for (double& v : r) {
            v = std::exp(v - best);
            sum += v;
        }
        std::sort(r.rbegin(), r.rend());
        wrong += (r[1] / sum >= 0.05) != (entries.at(i).size() == 2);
    }
    EXPECT_LE(wrong, base().n / 500);
}

TEST(IndexIVFGMMCopies, CopiesFindMoreInAsManyLists) {
    auto plain = trained(base(), kLists);
    plain->cells_per_list = 1;
    plain->add(base().n, base().x.data());
    auto index = empty_index({2, 0}, base());
    index->add(base().n, base().x.data());
    const Found truth =
            exact(model_of(base()), queries(), 10, faiss::METRIC_L2);
    plain->nprobe = index->nprobe = 2;
    EXPECT_GT(
            recall(find(*index, queries(), 10), truth, faiss::METRIC_L2),
            recall(find(*plain, queries(), 10), truth, faiss::METRIC_L2) +
                    0.03);
}

/// Random operations against a map, as in IndexIVFGMMTest.
void live(
        const Rule& rule,
        uint32_t seed,
        faiss::DirectMap::Type type,
        bool map_afterwards) {
    std::mt19937 rng(seed);
    const Vectors few = rows_of(base(), 0, 800), q = rows_of(queries(), 0, 8);
    auto index = empty_index(rule, few);
    if (!map_afterwards) {
        index->set_direct_map_type(type);
    }
    Model model;
    idx_t next_id = 0;
    auto put = [&](idx_t id, size_t row) {
        model[id] = {base().row(row), base().row(row) + base().d};
        next_id = std::max(next_id, id + 1);
    };
    auto some_ids = [&](size_t n) {
        std::vector<idx_t> ids;
        for (const auto& entry : model) {
            ids.push_back(entry.first);
        }
        std::shuffle(ids.begin(), ids.end(), rng);
        ids.resize(std::min(n, ids.size()));
        return ids;
    };
    for (int step = 0; step < 40; step++) {
        if (step == 10 && map_afterwards) {
            index->set_direct_map_type(type);
        }
        const size_t n = 1 + rng() % 300, row = rng() % (base().n - n);
        const bool mapped = !index->direct_map.no();
        switch (rng() % 6) {
            case 0:
            case 1: {
                std::vector<idx_t> ids(n);
                for (size_t i = 0; i < n; i++) {
                    ids[i] = type == faiss::DirectMap::Array
                            ? index->ntotal + i
                            : next_id + rng() % 2;
                    put(ids[i], row + i);
                }
                if (type == faiss::DirectMap::Array) {
                    index->add(n, base().row(row));
                } else {
                    index->add_with_ids(n, base().row(row), ids.data());
                }
                break;
            }
            case 2:
                if (type != faiss::DirectMap::Array) {
                    const std::vector<idx_t> ids = some_ids(n / 2);
                    EXPECT_EQ(
                            index->remove_ids(faiss::IDSelectorBatch(
                                    ids.size(), ids.data())),
                            ids.size());
                    for (idx_t id : ids) {
                        model.erase(id);
                    }
                }
                break;
            case 3:
                if (mapped) {
                    const std::vector<idx_t> ids = some_ids(n / 3);
                    for (size_t i = 0; i < ids.size(); i++) {
                        put(ids[i], row + i);
                    }
                    index->update_vectors(
                            ids.size(), ids.data(), base().row(row));
                }
                break;
            case 4:
                if (type == faiss::DirectMap::NoMap) {
                    auto other = empty_index(rule, few);
                    other->add(n, base().row(row));
                    const idx_t first = next_id;
                    for (size_t i = 0; i < n; i++) {
                        put(first + i, row + i);
                    }
                    index->merge_from(*other, first);
                    ASSERT_NO_FATAL_FAILURE(
                            check_consistent(*other, *other, {}));
                }
                break;
            case 5:
                if (rng() % 4 == 0) {
                    index->reset();
                    model.clear();
                    next_id = 0;
                }
        }
        ASSERT_NO_FATAL_FAILURE(check_consistent(*index, *index, model))
                << "step " << step;
        ASSERT_NO_FATAL_FAILURE(expect_model(*index, model, q))
                << "step " << step;
        index->nprobe = 1 + rng() % 6;
        ASSERT_NO_FATAL_FAILURE(
                expect_honest(find(*index, q, 10), model, q, faiss::METRIC_L2))
                << "step " << step;
    }
}

TEST(IndexIVFGMMCopies, HoldsWhatAMapHoldsUnderRandomOperations) {
    uint32_t seed = 1;
    for (const Rule& rule : kRules) {
        for (auto type :
             {faiss::DirectMap::NoMap,
              faiss::DirectMap::Array,
              faiss::DirectMap::Hashtable}) {
            for (bool map_afterwards : {false, true}) {
                SCOPED_TRACE(name(rule) + " seed " + std::to_string(seed));
                live(rule, seed++, type, map_afterwards);
            }
        }
    }
}

TEST(IndexIVFGMMCopies, SelectorsRangesAndReconstruction) {
    auto index = empty_index({3, 0}, base());
    index->add(base().n, base().x.data());
    const faiss::IDSelectorRange half(0, base().n / 2);
    faiss::SearchParametersIVF all;
    all.nprobe = kLists;
    all.sel = const_cast<faiss::IDSelectorRange*>(&half);
    const Model model = model_of(rows_of(base(), 0, base().n / 2));
    expect_exact(
            find(*index, queries(), 10, &all),
            exact(model, queries(), 10, faiss::METRIC_L2),
            model,
            queries(),
            faiss::METRIC_L2);

    const float radius = 120000;
    faiss::IndexFlatL2 flat(base().d);
    flat.add(base().n, base().x.data());
    faiss::RangeSearchResult expected(queries().n), found(queries().n);
    flat.range_search(queries().n, queries().x.data(), radius, &expected);
    index->nprobe = kLists;
    index->range_search(queries().n, queries().x.data(), radius, &found);
    EXPECT_GT(expected.lims[queries().n], 100u);
    for (size_t q = 0; q < queries().n; q++) {
        std::vector<idx_t> want(
                expected.labels + expected.lims[q],
                expected.labels + expected.lims[q + 1]);
        std::vector<idx_t> got(
                found.labels + found.lims[q], found.labels + found.lims[q + 1]);
        std::sort(want.begin(), want.end());
        std::sort(got.begin(), got.end());
        ASSERT_EQ(got, want) << "query " << q;
    }

    std::vector<float> vectors(base().n * base().d);
    index->reconstruct_n(0, base().n, vectors.data());
    EXPECT_EQ(vectors, base().x);
    index->nprobe = 4;
    const Found plain = find(*index, queries(), 5);
    Found again = plain;
    index->search_and_reconstruct(
            queries().n,
            queries().x.data(),
            5,
            again.dis.data(),
            again.ids.data(),
            vectors.data());
    EXPECT_EQ(again.dis, plain.dis);
    for (size_t j = 0; j < again.ids.size(); j++) {
        ASSERT_TRUE(std::equal(
                base().row(again.ids[j]),
                base().row(again.ids[j] + 1),
                &vectors[j * base().d]));
    }
}

/// What was found by a copy is found.
TEST(IndexIVFGMMCopies, CalibrationCountsWhatCopiesFind) {
    auto index = empty_index({2, 0}, base());
    index->add(base().n, base().x.data());
    index->calibrate(queries().n, queries().x.data(), 10);
    const Found truth =
            exact(model_of(base()), queries(), 10, faiss::METRIC_L2);
    size_t compared = 0;
    for (const auto& curve : index->calibration.curves) {
        if (curve.k != 10) {
            continue;
        }
        for (const Calibration::Point& point : curve.points) {
            index->nprobe = size_t(point.budget);
            ASSERT_FALSE(point.by_codes);
            EXPECT_NEAR(
                    recall(find(*index, queries(), 10),
                           truth,
                           faiss::METRIC_L2),
                    point.recall,
                    0.005)
                    << index->nprobe;
            compared++;
        }
    }
    EXPECT_GE(compared, 3u);
}

/// Several vectors of one id, equal ones among them, are no more than are
/// there: a file with a recall above 1 is refused.
TEST(IndexIVFGMMCopies, CalibrationCountsNoIdTooOften) {
    GroundTruth truth({-1}); // inner products, the largest first, negated
    truth.near = {{{0, -5}, {1, -4}, {2, -4}, {3, -1}}};
    EXPECT_EQ(truth.wanted(0, 1), (std::vector<idx_t>{0}));
    EXPECT_EQ(truth.wanted(0, 2), (std::vector<idx_t>{0, 1, 2}));
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        Vectors x = rows_of(base(), 0, 1400);
        auto index = empty_index({3, 0}, x, metric);
        std::vector<idx_t> ids(x.n);
        for (size_t i = 0; i < x.n; i++) {
            ids[i] = idx_t(i % 200);
            if (i % 2 == 0) {
                std::copy_n(x.row(i % 20), x.d, &x.x[i * x.d]);
            }
        }
        index->add_with_ids(x.n, x.x.data(), ids.data());
        index->calibrate(200, nullptr, 10);
        index->calibrate(200, nullptr, 10);
        for (const Calibration::Curve& curve : index->calibration.curves) {
            for (const Calibration::Point& point : curve.points) {
                EXPECT_LE(point.recall, 1) << "k = " << curve.k;
            }
        }
        EXPECT_EQ(clone_index(index.get())->ntotal, idx_t(x.n));
    }
}

TEST(IndexIVFGMMCopies, ListsThatWereGivenAreKept) {
    auto index = empty_index({2, 0.05f}, base());
    std::vector<idx_t> homes(base().n);
    for (size_t i = 0; i < homes.size(); i++) {
        homes[i] = i % 3 == 0 ? -1 : idx_t(i % kLists);
    }
    static_cast<faiss::IndexIVF&>(*index).add_core(
            base().n, base().x.data(), nullptr, homes.data());
    std::vector<size_t> lists_of(base().n);
    for (size_t list = 0; list < kLists; list++) {
        faiss::InvertedLists::ScopedIds ids(index->invlists, list);
        for (size_t j = 0; j < index->invlists->list_size(list); j++) {
            const size_t row = size_t(ids[j]);
            lists_of[row]++;
            if (is_primary(*index, list, j)) {
                EXPECT_EQ(idx_t(list), homes[row]);
            }
        }
    }
    size_t copies = 0;
    for (size_t i = 0; i < base().n; i++) {
        EXPECT_EQ(lists_of[i] == 0, homes[i] < 0) << i;
        copies += lists_of[i] == 2;
    }
    EXPECT_GT(copies, 0u);
}

TEST(IndexIVFGMMCopies, CapsStopsAndTargetsWork) {
    auto index = empty_index({2, 0}, base());
    index->calibrate_on_add = true;
    index->add(base().n, base().x.data());
    EXPECT_TRUE(index->calibration.fitted);
    const Model model = model_of(base());
    const Found truth = exact(model, queries(), 10, faiss::METRIC_L2);
    SearchParametersIVFGMM params;
    params.nprobe = kLists;
    params.max_codes = 123;
    EXPECT_EQ(distances_per_query(*index, queries(), 10, &params), 123);
    params.max_codes = 0;
    params.target_recall = 0.9f;
    const Found found = find(*index, queries(), 10, &params);
    expect_honest(found, model, queries(), faiss::METRIC_L2);
    EXPECT_GT(recall(found, truth, faiss::METRIC_L2), 0.75);
    EXPECT_LT(
            distances_per_query(*index, queries(), 10, &params), base().n / 2);
}

TEST(IndexIVFGMMCopies, WorkForInnerProductsAndCompressedCodes) {
    Vectors x = base();
    for (size_t i = 0; i < x.x.size(); i++) {
        x.x[i] *= float(i / x.d % 3 + 1) / 512;
    }
    const auto ip = faiss::METRIC_INNER_PRODUCT;
    for (const Rule& rule : kRules) {
        SCOPED_TRACE(name(rule));
        auto index = empty_index(rule, x, ip);
        index->add(x.n, x.x.data());
        check_consistent(*index, *index, model_of(x));
        expect_model(*index, model_of(x), queries());
        index->nprobe = 3;
        expect_honest(find(*index, queries(), 10), model_of(x), queries(), ip);
    }
    auto sq = empty_index<IndexIVFScalarQuantizerGMM>(
            {3, 0}, base(), faiss::ScalarQuantizer::QT_8bit);
    sq->add(base().n, base().x.data());
    check_consistent(*sq, *sq, model_of(base()), false);
    sq->nprobe = kLists;
    const Found found = find(*sq, queries(), 10);
    for (size_t q = 0; q < queries().n; q++) {
        const auto begin = found.ids.begin() + q * 10;
        EXPECT_EQ(std::set<idx_t>(begin, begin + 10).size(), 10u);
    }
    EXPECT_GT(
            recall(found,
                   exact(model_of(base()), queries(), 10, faiss::METRIC_L2),
                   faiss::METRIC_L2),
            0.5);
}

TEST(IndexIVFGMMCopies, CannotBeCopiedIntoAnotherIndex) {
    auto index = empty_index({2, 0}, base());
    index->add(1000, base().x.data());
    auto other = empty_index({2, 0}, base());
    EXPECT_FAISS_ERROR(
            index->copy_subset_to(*other, subset_type_t(0), 0, 500),
            "max_assign = 2");
    EXPECT_EQ(other->ntotal, 0);
    EXPECT_EQ(stored(*other), 0u);
}

/// Where all are gone, one list each is a choice again.
TEST(IndexIVFGMMCopies, AnEmptiedIndexMayHaveOneListEach) {
    auto index = empty_index({2, 0}, base());
    index->add(100, base().x.data());
    index->remove_ids(faiss::IDSelectorRange(0, 100));
    index->max_assign = 1;
    const auto nothing = [&](const faiss::Index& searched) {
        const Found found = find(searched, queries(), 3);
        EXPECT_EQ(
                std::count(found.ids.begin(), found.ids.end(), idx_t(-1)),
                idx_t(found.ids.size()));
        faiss::RangeSearchResult range(queries().n);
        searched.range_search(queries().n, queries().x.data(), 1e9f, &range);
        EXPECT_EQ(range.lims[queries().n], 0u);
    };
    nothing(*index);
    const auto copy = clone_index(index.get());
    nothing(*copy);
    index->add(base().n, base().x.data());
    check_consistent(*index, *index, model_of(base()));
}

} // namespace
} // namespace faiss_ext
