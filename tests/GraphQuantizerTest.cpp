// An HNSW graph over the means ("GMM512_HNSW16,Flat") in place of a flat
// quantizer: the same searches, whatever the graph has to be asked for.
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/impl/AuxIndexStructures.h>

#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "faiss_ext/coarse/QueryCoarse.h"
#include "faiss_ext/index_factory.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 1100; // more than the graph is asked for at first
constexpr size_t kStored = 9000;

std::unique_ptr<IndexIVFFlatGMM> graph_index(faiss::MetricType metric) {
    const Vectors x = sift_base(kStored);
    std::unique_ptr<faiss::Index> index(
            index_factory(x.d, "GMM1100x4_HNSW16,Flat", metric));
    auto& gmm = dynamic_cast<IndexIVFFlatGMM&>(*index);
    gmm.cp.niter = 2;
    gmm.train(x.n, x.x.data());
    gmm.add(x.n, x.x.data());
    index.release();
    return std::unique_ptr<IndexIVFFlatGMM>(&gmm);
}

/// The same lists and cells under a flat quantizer.
void flatten(IndexIVFFlatGMM& index) {
    std::vector<float> means(index.nlist * index.d);
    index.quantizer->reconstruct_n(0, index.nlist, means.data());
    auto flat = std::make_unique<faiss::IndexFlat>(index.d, index.metric_type);
    flat->add(index.nlist, means.data());
    delete index.quantizer;
    index.quantizer = flat.release();
}

TEST(GraphQuantizer, FindsWhatAFlatOneFinds) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        SCOPED_TRACE(metric);
        auto index = graph_index(metric);
        ASSERT_TRUE(dynamic_cast<faiss::IndexHNSWFlat*>(index->quantizer));
        ASSERT_FALSE(index->cells.empty());
        ASSERT_TRUE(index->calibration.fitted);
        const Vectors q = sift_queries(200);
        struct Case {
            ProbeOrder order;
            size_t nprobe;
            float mass;
        };
        const Case cases[] = {
                {ProbeOrder::distance, 8, 1},
                {ProbeOrder::codes, 8, 1},
                // 256, 1024, and then all lists are needed
                {ProbeOrder::codes, 60, 1},
                {ProbeOrder::codes, 200, 1},
                {ProbeOrder::codes, 1000, 1},
                {ProbeOrder::codes, kLists, 0.9f}};
        auto search = [&](const Case& c) {
            SearchParametersIVFGMM params;
            params.probe_order = c.order;
            params.nprobe = c.nprobe;
            params.probe_mass = c.mass;
            return find(*index, q, 10, &params);
        };
        std::vector<Found> by_graph;
        for (const Case& c : cases) {
            by_graph.push_back(search(c));
        }
        flatten(*index);
        for (size_t i = 0; i < by_graph.size(); i++) {
            // the graph misses a list now and then, and cells at the rim of
            // what is looked at are others
            EXPECT_GT(agreement(by_graph[i], search(cases[i])), 0.9)
                    << to_string(cases[i].order) << " " << cases[i].nprobe;
        }
    }
}

/// Fewer lists than the graph is asked for: all at once, the nearest first.
TEST(GraphQuantizer, NoLessThanTheStockIndexInFewLists) {
    const Vectors x = sift_base(kStored);
    std::unique_ptr<faiss::Index> index(
            index_factory(x.d, "GMM128_HNSW32,Flat"));
    index->train(x.n, x.x.data());
    index->add(x.n, x.x.data());
    const auto stock = read_by_faiss(written(*index));

    Vectors q = sift_queries(100);
    for (bool negated : {false, true}) {
        SCOPED_TRACE(negated);
        for (float& v : q.x) {
            v = negated ? -v : v;
        }
        faiss::IndexFlatL2 flat(x.d);
        flat.add(x.n, x.x.data());
        const Found truth = find(flat, q, 10);
        for (size_t nprobe : {4, 16, 64}) {
            dynamic_cast<faiss::IndexIVF&>(*index).nprobe = nprobe;
            dynamic_cast<faiss::IndexIVF&>(*stock).nprobe = nprobe;
            EXPECT_GE(
                    agreement(truth, find(*index, q, 10)),
                    agreement(truth, find(*stock, q, 10)) - 0.002)
                    << nprobe;
            faiss::RangeSearchResult in_radius(q.n), expected(q.n);
            const float radius = truth.dis[9];
            index->range_search(q.n, q.x.data(), radius, &in_radius);
            stock->range_search(q.n, q.x.data(), radius, &expected);
            EXPECT_GE(in_radius.lims[q.n], 0.998 * expected.lims[q.n])
                    << nprobe;
        }
    }
}

TEST(GraphQuantizer, EveryListIsReached) {
    auto index = graph_index(faiss::METRIC_L2);
    const Vectors q = sift_queries(20);
    SearchParametersIVFGMM params;
    params.probe_order = ProbeOrder::codes;
    for (size_t nprobe : {kLists - 1, kLists}) {
        SCOPED_TRACE(nprobe);
        params.nprobe = nprobe;
        // k = ntotal shows every vector that was scanned
        const Found found = find(*index, q, kStored, &params);
        const double scanned = found.ids.size() -
                std::count(found.ids.begin(), found.ids.end(), idx_t(-1));
        const double budget = double(kStored) * nprobe / kLists;
        EXPECT_GE(scanned / q.n, std::floor(budget));
        for (size_t i = 0; i < q.n; i++) {
            std::set<idx_t> ids(
                    &found.ids[i * kStored], &found.ids[(i + 1) * kStored]);
            ids.erase(-1);
            ASSERT_GE(ids.size(), std::floor(budget)); // none twice
        }
    }
}

/// The graph is asked as FAISS's own parameters say.
TEST(GraphQuantizer, TakesTheGraphsParameters) {
    auto index = graph_index(faiss::METRIC_L2);
    const Vectors q = sift_queries(50);
    auto distances = [](const auto& stats) { // n3 before FAISS 1.8
        if constexpr (requires { stats.n3; }) {
            return stats.n3;
        } else {
            return stats.ndis;
        }
    };
    auto efforts = [&](ProbeOrder order, int efSearch) {
        faiss::SearchParametersHNSW graph;
        graph.efSearch = efSearch;
        SearchParametersIVFGMM params;
        params.probe_order = order;
        params.nprobe = 2;
        params.quantizer_params = &graph;
        faiss::hnsw_stats.reset();
        find(*index, q, 10, &params);
        return distances(faiss::hnsw_stats);
    };
    for (ProbeOrder order : {ProbeOrder::distance, ProbeOrder::codes}) {
        EXPECT_GT(efforts(order, 800), efforts(order, 2)) << to_string(order);
    }
}

TEST(GraphQuantizer, DistancesAreTrueWhereKnown) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        auto index = graph_index(metric);
        const Vectors q = sift_queries(5);
        QueryCoarse coarse(*index);
        ASSERT_TRUE(coarse.by_graph());
        for (size_t i = 0; i < q.n; i++) {
            coarse.start_graph(q.row(i));
            const std::vector<float> all = mean_distances(*index, q.row(i));
            std::vector<uint32_t> lists;
            std::set<uint32_t> seen;
            size_t portions = 0;
            while (coarse.more_lists(lists)) {
                portions++;
                ASSERT_FALSE(lists.empty());
                for (uint32_t list : lists) {
                    ASSERT_TRUE(seen.insert(list).second);
                    const float expected = all[list];
                    ASSERT_NEAR(
                            coarse.distances[list],
                            expected,
                            1e-4 * expected + 1e-4);
                }
            }
            // 256, what 1024 add to them if anything, and the others
            EXPECT_GE(portions, 2u);
            EXPECT_LE(portions, 3u);
            EXPECT_EQ(seen.size(), kLists);
        }
    }
}

TEST(GraphQuantizer, FilesAndNames) {
    auto index = graph_index(faiss::METRIC_L2);
    EXPECT_EQ(reverse_index_factory(index.get()), "GMM1100x4_HNSW16,Flat");
    const Vectors q = sift_queries(50);
    index->target_recall = 0.9f;
    const Found expected = find(*index, q, 10);
    const Bytes bytes = written(*index);
    EXPECT_EQ(find(*read_bytes(bytes), q, 10), expected);

    const auto stock = read_by_faiss(bytes);
    auto& ivf = dynamic_cast<faiss::IndexIVFFlat&>(*stock);
    EXPECT_EQ(typeid(ivf), typeid(faiss::IndexIVFFlat));
    ivf.nprobe = 64;
    EXPECT_GT(agreement(find(ivf, q, 10), expected), 0.6);
}

} // namespace
} // namespace faiss_ext
