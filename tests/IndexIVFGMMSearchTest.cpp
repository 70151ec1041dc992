// Search of an index with cells: better than k-means for the distances, exact
// when all is searched, and the same in every way of asking.
#include "faiss_ext/IndexIVFGMM.h"

#include <omp.h>

#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 64;

const Vectors& base() {
    static const Vectors data = sift_base(10000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(100);
    return data;
}

/// Rows of very different norms, for inner products.
Vectors scaled(Vectors x, float power) {
    for (size_t i = 0; i < x.n; i++) {
        const float scale = std::pow(float(i % 7 + 1), power) / 512;
        for (size_t j = 0; j < x.d; j++) {
            x.x[i * x.d + j] *= scale;
        }
    }
    return x;
}

faiss::SearchParametersIVF probes(size_t nprobe) {
    faiss::SearchParametersIVF params;
    params.nprobe = nprobe;
    return params;
}

TEST(IndexIVFGMMSearch, CellsFindMoreThanKMeansForTheSameDistances) {
    const Found truth =
            exact(model_of(base()), queries(), 10, faiss::METRIC_L2);
    faiss::IndexFlatL2 coarse(base().d);
    faiss::IndexIVFFlat kmeans(&coarse, base().d, kLists);
    kmeans.train(base().n, base().x.data());
    kmeans.add(base().n, base().x.data());
    auto index = std::make_unique<IndexIVFFlatGMM>(base().d, kLists);
    auto whole_lists = std::make_unique<IndexIVFFlatGMM>(base().d, kLists);
    index->train(base().n, base().x.data());
    whole_lists->train(base().n, base().x.data());
    index->add(base().n, base().x.data());
    whole_lists->cells_per_list = 1;
    whole_lists->add(base().n, base().x.data());
    ASSERT_FALSE(index->cells.empty());
    EXPECT_TRUE(whole_lists->cells.empty());

    for (size_t nprobe : {2, 4, 8, 12}) {
        kmeans.nprobe = index->nprobe = whole_lists->nprobe = nprobe;
        const double cost = distances_per_query(kmeans, queries(), 10);
        const double expected =
                recall(find(kmeans, queries(), 10), truth, faiss::METRIC_L2);
        if (nprobe >= 8) { // before that there is not time to choose
            EXPECT_LT(distances_per_query(*index, queries(), 10), 0.5 * cost);
            EXPECT_GT(
                    recall(find(*index, queries(), 10),
                           truth,
                           faiss::METRIC_L2),
                    expected + 0.02);
        }
        EXPECT_NEAR(
                distances_per_query(*whole_lists, queries(), 10),
                cost,
                0.15 * cost);
        EXPECT_NEAR(
                recall(find(*whole_lists, queries(), 10),
                       truth,
                       faiss::METRIC_L2),
                expected,
                0.04);
    }
}

TEST(IndexIVFGMMSearch, AllListsAreAnExactSearch) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        for (float power : {0.0f, 1.0f}) {
            const Vectors x = scaled(base(), power);
            const Model model = model_of(x);
            for (size_t cells : {0, 1}) {
                auto index = trained(x, kLists, metric);
                index->cells_per_list = cells;
                index->add(x.n, x.x.data());
                expect_model(*index, model, scaled(queries(), power));
            }
        }
    }
}

TEST(IndexIVFGMMSearch, ResultsAreTrueInEveryOrder) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const Vectors x = scaled(base(), 1), q = scaled(queries(), 1);
        auto index = filled(x, kLists, metric);
        index->calibrate(100, nullptr);
        const Model model = model_of(x);
        for (auto order :
             {ProbeOrder::calibrated,
              ProbeOrder::distance,
              ProbeOrder::log_likelihood,
              ProbeOrder::scale_free,
              ProbeOrder::codes}) {
            for (float mass : {0.5f, 0.9f, 1.0f}) {
                SearchParametersIVFGMM params;
                params.nprobe = 5;
                params.probe_order = order;
                params.probe_mass = mass;
                SCOPED_TRACE(to_string(order));
                const Found found = find(*index, q, 10, &params);
                expect_honest(found, model, q, metric);
                EXPECT_GT(
                        std::count_if(
                                found.ids.begin(),
                                found.ids.end(),
                                [](idx_t id) { return id >= 0; }),
                        long(q.n * 9));
            }
        }
    }
}

TEST(IndexIVFGMMSearch, CellsFindMoreForInnerProductsToo) {
    // all norms the same, or from one to seven; as small, as, and larger
    // than those of the means
    for (float power : {0.0f, 1.0f}) {
        for (float scale : {0.05f, 1.0f, 500.0f}) {
            Vectors x = scaled(base(), power), q = scaled(queries(), power);
            for (float& v : x.x) {
                v *= scale;
            }
            const auto metric = faiss::METRIC_INNER_PRODUCT;
            auto index = filled(x, kLists, metric);
            index->nprobe = 4;
            const Found truth = exact(model_of(x), q, 10, metric);
            SearchParametersIVFGMM params;
            params.nprobe = 4;
            params.probe_order = ProbeOrder::distance;
            const double lists =
                    recall(find(*index, q, 10, &params), truth, metric);
            params.probe_order = ProbeOrder::codes;
            const double cells =
                    recall(find(*index, q, 10, &params), truth, metric);
            EXPECT_GT(cells, lists) << power << " " << scale;
            EXPECT_GT(cells, 0.5) << power << " " << scale;
        }
    }
}

TEST(IndexIVFGMMSearch, LargerVectorsAddedLaterAreFoundByMass) {
    const auto metric = faiss::METRIC_INNER_PRODUCT;
    const Vectors x = scaled(base(), 0);
    auto index = trained(x, kLists, metric);
    index->calibrate_on_add = true;
    index->add(8000, x.row(0));
    Vectors large = rows_of(x, 8000, 10000);
    for (float& v : large.x) {
        v *= 10;
    }
    index->add(large.n, large.x.data());
    Model model = model_of(rows_of(x, 0, 8000));
    model.merge(model_of(large, 8000));
    SearchParametersIVFGMM params;
    params.nprobe = kLists;
    params.probe_mass = 0.95f;
    const Vectors q = scaled(queries(), 0);
    EXPECT_GT(
            recall(find(*index, q, 10, &params),
                   exact(model, q, 10, metric),
                   metric),
            0.8);
}

TEST(IndexIVFGMMSearch, SelectorsLeaveOutAndNothingElse) {
    auto index = filled(base(), kLists);
    index->add_with_ids(0, nullptr, nullptr); // nothing added, nothing changed
    const std::vector<idx_t> some = {3, 17, 999, 5000, 5001, 9999, 123456};
    const faiss::IDSelectorRange range(1000, 3000);
    const faiss::IDSelectorBatch batch(some.size(), some.data());
    const faiss::IDSelectorNot others(&range);
    for (const faiss::IDSelector* sel :
         {static_cast<const faiss::IDSelector*>(&range),
          static_cast<const faiss::IDSelector*>(&batch),
          static_cast<const faiss::IDSelector*>(&others)}) {
        Model model = model_of(base());
        std::erase_if(model, [&](const auto& entry) {
            return !sel->is_member(entry.first);
        });
        for (size_t nprobe : {size_t(6), kLists}) {
            faiss::SearchParametersIVF params = probes(nprobe);
            params.sel = const_cast<faiss::IDSelector*>(sel);
            faiss::indexIVF_stats.reset();
            const Found found = find(*index, queries(), 20, &params);
            expect_honest(found, model, queries(), faiss::METRIC_L2);
            if (nprobe == kLists) {
                expect_exact(
                        found,
                        exact(model, queries(), 20, faiss::METRIC_L2),
                        model,
                        queries(),
                        faiss::METRIC_L2);
                // distances of what is left out are not computed
                EXPECT_EQ(
                        faiss::indexIVF_stats.ndis, queries().n * model.size());
            }
        }
    }
}

TEST(IndexIVFGMMSearch, RangeSearchFindsAllWithinTheRadius) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const bool l2 = metric == faiss::METRIC_L2;
        auto index = filled(base(), kLists, metric);
        const Found near = exact(model_of(base()), queries(), 1, metric);
        std::vector<float> nearest = near.dis;
        std::nth_element(nearest.begin(), nearest.begin() + 50, nearest.end());
        const float radius = nearest[50];
        faiss::IndexFlat flat(base().d, metric);
        flat.add(base().n, base().x.data());
        faiss::RangeSearchResult expected(queries().n), all(queries().n),
                few(queries().n);
        flat.range_search(queries().n, queries().x.data(), radius, &expected);
        auto params = probes(kLists);
        index->range_search(
                queries().n, queries().x.data(), radius, &all, &params);
        params.nprobe = 1;
        index->range_search(
                queries().n, queries().x.data(), radius, &few, &params);
        size_t n_few = 0;
        for (size_t i = 0; i < queries().n; i++) {
            auto found = [&](const faiss::RangeSearchResult& r) {
                std::set<idx_t> ids(
                        r.labels + r.lims[i], r.labels + r.lims[i + 1]);
                EXPECT_EQ(ids.size(), r.lims[i + 1] - r.lims[i]);
                return ids;
            };
            const auto want = found(expected), got = found(all),
                       some = found(few);
            EXPECT_EQ(got, want);
            EXPECT_TRUE(std::includes(
                    want.begin(), want.end(), some.begin(), some.end()));
            n_few += some.size();
            for (size_t j = all.lims[i]; j < all.lims[i + 1]; j++) {
                EXPECT_TRUE(
                        l2 ? all.distances[j] < radius
                           : all.distances[j] > radius);
            }
        }
        EXPECT_GT(n_few, expected.lims[queries().n] / 2);
    }
}

TEST(IndexIVFGMMSearch, BatchesThreadsAndSingleQueriesAgree) {
    auto index = filled(base(), kLists);
    index->calibrate(100, nullptr);
    const int threads = omp_get_max_threads();
    for (auto order : {ProbeOrder::distance, ProbeOrder::codes}) {
        for (float mass : {0.9f, 1.0f}) {
            index->probe_order = order;
            index->probe_mass = mass;
            index->nprobe = 8;
            omp_set_num_threads(4);
            const Found many = find(*index, queries(), 10);
            omp_set_num_threads(1);
            const Found one_thread = find(*index, queries(), 10);
            EXPECT_EQ(many, one_thread) << to_string(order);
            size_t same = 0;
            for (size_t i = 0; i < queries().n; i++) {
                const Found one =
                        find(*index, rows_of(queries(), i, i + 1), 10);
                same += std::equal(
                        one.ids.begin(),
                        one.ids.end(),
                        many.ids.begin() + i * 10);
            }
            EXPECT_GE(same, queries().n - 2) << to_string(order);
        }
    }
    omp_set_num_threads(threads);
}

/// Searches once more when the main thread's own objects are gone.
struct SearchesAtExit {
    std::unique_ptr<faiss::Index> index;
    std::vector<float> query;

    ~SearchesAtExit() {
        if (index) {
            float distance = -1;
            idx_t id = -1;
            index->search(1, query.data(), 1, &distance, &id);
            if (id < 0) {
                std::_Exit(3);
            }
        }
    }
} at_exit;

TEST(IndexIVFGMMSearch, DestructorsOfGlobalObjectsMaySearch) {
    auto index = std::make_unique<IndexIVFFlatGMM>(base().d, kLists);
    index->train(base().n, base().x.data());
    index->add(base().n, base().x.data());
    find(*index, queries(), 10);
    at_exit.query.assign(
            queries().x.begin(), queries().x.begin() + queries().d);
    at_exit.index = std::move(index);
}

TEST(IndexIVFGMMSearch, WhatIsNotThereIsMinusOne) {
    auto index = filled(rows_of(base(), 0, 100), 8);
    for (size_t nprobe : {1, 8}) {
        const auto params = probes(nprobe);
        const Found found = find(*index, queries(), 300, &params);
        const size_t n = found.ids.size() -
                std::count(found.ids.begin(), found.ids.end(), -1);
        EXPECT_EQ(n, nprobe == 8 ? 100 * queries().n : n);
        EXPECT_GT(n, 0u);
        expect_honest(
                found,
                model_of(rows_of(base(), 0, 100)),
                queries(),
                faiss::METRIC_L2);
    }
}

TEST(IndexIVFGMMSearch, SearchAndReconstructIsSearch) {
    auto index = filled(base(), kLists);
    index->nprobe = 5;
    const Found found = find(*index, queries(), 5);
    Found again = found;
    std::vector<float> vectors(queries().n * 5 * base().d);
    index->search_and_reconstruct(
            queries().n,
            queries().x.data(),
            5,
            again.dis.data(),
            again.ids.data(),
            vectors.data());
    EXPECT_EQ(found.dis, again.dis);
    for (size_t j = 0; j < again.ids.size(); j++) {
        ASSERT_TRUE(std::equal(
                base().row(again.ids[j]),
                base().row(again.ids[j] + 1),
                &vectors[j * base().d]));
    }
}

/// The same codes in the same lists of a stock index, all searched.
template <class Stock, class Index>
void expect_stock_results(const Index& index, Stock&& stock, const Vectors& q) {
    stock.is_trained = true;
    index.copy_subset_to(stock, subset_type_t(0), 0, index.ntotal);
    ASSERT_EQ(stock.ntotal, index.ntotal);
    stock.nprobe = index.nlist;
    const Found expected = find(stock, q, 10);
    auto expect_near = [&](const Found& found) {
        for (size_t j = 0; j < found.dis.size(); j++) {
            ASSERT_NEAR(
                    found.dis[j],
                    expected.dis[j],
                    2e-5 * std::abs(expected.dis[j]) +
                            1e-5 * std::abs(expected.dis[0]));
        }
    };
    const auto all = probes(index.nlist);
    expect_near(find(index, q, 10, &all));
    // through the cells, too, and one query at a time
    SearchParametersIVFGMM cells;
    cells.nprobe = index.nlist - 1;
    cells.probe_order = ProbeOrder::codes;
    size_t same = 0;
    for (size_t i = 0; i < q.n; i++) {
        const Found one = find(index, rows_of(q, i, i + 1), 10, &cells);
        for (size_t j = 0; j < 10; j++) {
            const float e = expected.dis[i * 10 + j];
            same += std::abs(one.dis[j] - e) <=
                    2e-5 * std::abs(e) + 1e-5 * std::abs(expected.dis[0]);
        }
    }
    EXPECT_GT(same, q.n * 10 * 95 / 100);
}

TEST(IndexIVFGMMSearch, CompressedCodesGiveWhatStockFaissGives) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const Vectors x = scaled(rows_of(base(), 0, 6000), 1);
        const Vectors q = scaled(queries(), 1);
        {
            const auto index = filled<IndexIVFScalarQuantizerGMM>(
                    x, kLists, faiss::ScalarQuantizer::QT_8bit, metric);
            faiss::IndexIVFScalarQuantizer stock(
                    index->quantizer,
                    x.d,
                    kLists,
                    faiss::ScalarQuantizer::QT_8bit,
                    metric);
            stock.sq = index->sq;
            expect_stock_results(*index, stock, q);
        }
        const auto index = filled<IndexIVFPQGMM>(x, kLists, 16, 8, metric);
        EXPECT_TRUE(index->by_residual);
        faiss::IndexIVFPQ stock(index->quantizer, x.d, kLists, 16, 8, metric);
        stock.pq = index->pq;
        stock.by_residual = index->by_residual;
        stock.is_trained = true;
        stock.precompute_table();
        expect_stock_results(*index, stock, q);
    }
}

TEST(IndexIVFGMMSearch, WorksBetweenOPQAndRefine) {
    auto* opq = new faiss::OPQMatrix(base().d, 16);
    opq->niter = 2;
    opq->max_train_points = 2000;
    auto* ivf = new IndexIVFPQGMM(base().d, kLists, 16, 8);
    ivf->cp.niter = 4;
    ivf->pq.cp.niter = 4;
    auto* rotated = new faiss::IndexPreTransform(opq, ivf);
    rotated->own_fields = true;
    faiss::IndexRefineFlat index(rotated);
    index.own_fields = true;
    index.k_factor = 8;
    index.train(base().n, base().x.data());
    index.add(base().n, base().x.data());
    EXPECT_FALSE(ivf->cells.empty());
    EXPECT_TRUE(ivf->calibration.fitted);
    const Model model = model_of(base());
    const Found truth = exact(model, queries(), 10, faiss::METRIC_L2);
    ivf->nprobe = 8;
    const Found found = find(index, queries(), 10);
    expect_honest(found, model, queries(), faiss::METRIC_L2);
    EXPECT_GT(recall(found, truth, faiss::METRIC_L2), 0.85);
    ivf->nprobe = 1;
    ivf->target_recall = 0.9f;
    EXPECT_GT(recall(find(index, queries(), 10), truth, faiss::METRIC_L2), 0.7);
}

} // namespace
} // namespace faiss_ext
