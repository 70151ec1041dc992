// Codes without vectors: what they estimate, where they live, what they refuse.
#include "faiss_ext/IndexIVFRaBitQGMM.h"

#include <cmath>
#include <limits>

#include <faiss/impl/AuxIndexStructures.h>

#include "CodesAloneTools.h"
#include "faiss_ext/GMMParameterSpace.h"
#include "faiss_ext/index_factory.h"

namespace faiss_ext {
namespace {

TEST(IndexIVFRaBitQGMM, FindsTheBestEstimates) {
    for (auto metric : {kL2, kIP}) {
        for (size_t d : {1, 3, 16, 50, 100, 128}) {
            for (int bits : {1, 2, 4}) {
                SCOPED_TRACE(
                        testing::Message() << "metric " << int(metric) << ", d "
                                           << d << ", bits " << bits);
                const Vectors x = clustered(1500, d, 1);
                auto index = make(x, 24, bits, metric);
                ASSERT_NO_FATAL_FAILURE(expect_sound(*index, x.n));
                ASSERT_NO_FATAL_FAILURE(
                        expect_best_estimates(*index, clustered(12, d, 2), 20));
                ASSERT_NO_FATAL_FAILURE(
                        expect_best_estimates(*index, uniform(4, d, 3), 1));
            }
        }
    }
}

TEST(IndexIVFRaBitQGMM, FewListsAndOneCellEach) {
    const Vectors x = clustered(400, 20, 1), q = clustered(10, 20, 2);
    for (auto metric : {kL2, kIP}) {
        for (size_t nlist : {1, 2, 3, 5}) {
            auto index = make(x, nlist, 2, metric);
            EXPECT_EQ(
                    index->cells.cells_per_list,
                    nlist < 3 ? 1u : std::min<size_t>(nlist - 1, 16));
            ASSERT_NO_FATAL_FAILURE(expect_best_estimates(*index, q, 400));
        }
        auto plain = std::make_unique<IndexIVFRaBitQGMM>(20, 8, 4, metric);
        plain->cells_per_list = 1;
        plain->train(x.n, x.x.data());
        plain->add(x.n, x.x.data());
        EXPECT_EQ(plain->cells.cells_per_list, 1u);
        ASSERT_NO_FATAL_FAILURE(expect_best_estimates(*plain, q, 30));
    }
}

TEST(IndexIVFRaBitQGMM, EstimatesAreUnbiased) {
    const Vectors x = sift_base(6000), q = sift_queries(40);
    double before = std::numeric_limits<double>::infinity();
    for (int bits : {1, 2, 4}) {
        for (auto metric : {kL2, kIP}) {
            auto index = make(x, 32, bits, metric);
            const auto codes = codes_of(*index);
            double sum = 0, squares = 0;
            size_t n = 0;
            for (size_t i = 0; i < q.n; i++) {
                for (const auto& [id, v] : estimates(*index, codes, q.row(i))) {
                    const double truth =
                            true_distance(metric, q.row(i), x.row(id), x.d);
                    const double error = (v - truth) / truth;
                    sum += error;
                    squares += error * error;
                    n++;
                }
            }
            const double deviation = std::sqrt(squares / n);
            EXPECT_LT(std::abs(sum / n), 0.05 * deviation) << bits;
            if (metric == kL2) {
                EXPECT_LT(deviation, 0.6 * before);
                before = deviation;
            }
        }
    }
    EXPECT_LT(before, 0.02); // 4 bits
}

TEST(IndexIVFRaBitQGMM, DecodesTheNearer) {
    const Vectors x = sift_base(3000);
    for (auto metric : {kL2, kIP}) {
        double before = 0.5;
        for (int bits : {1, 2, 4}) {
            auto index = make(x, 16, bits, metric);
            index->make_direct_map();
            std::vector<float> all(x.n * x.d), one(x.d);
            index->reconstruct_n(0, x.n, all.data());
            double error = 0, size = 0;
            for (size_t i = 0; i < x.n; i++) {
                error += true_distance(kL2, &all[i * x.d], x.row(i), x.d);
                size += true_distance(
                        kL2, x.row(i), index->mixture().means.data(), 0);
            }
            // of the residuals' size, which is that of distances to means
            std::vector<float> distances(x.n);
            std::vector<idx_t> lists(x.n);
            index->quantizer->search(
                    x.n, x.x.data(), 1, distances.data(), lists.data());
            for (size_t i = 0; i < x.n && metric == kL2; i++) {
                size += distances[i];
            }
            if (metric == kL2) {
                EXPECT_LT(error / size, before) << bits;
                before = error / size * 0.4;
            }
            index->reconstruct(17, one.data());
            EXPECT_TRUE(std::equal(one.begin(), one.end(), &all[17 * x.d]));
        }
    }
    const Vectors line = clustered(300, 1, 1); // one dimension: nothing is lost
    auto index = make(line, 8, 1);
    index->make_direct_map();
    for (size_t i = 0; i < line.n; i++) {
        float v;
        index->reconstruct(i, &v);
        EXPECT_NEAR(v, line.x[i], 1e-4);
    }
}

TEST(IndexIVFRaBitQGMM, SearchAndReconstruct) {
    const Vectors x = clustered(900, 24, 1), q = clustered(5, 24, 2);
    auto index = make(x, 12, 4);
    index->nprobe = 12;
    index->make_direct_map();
    const size_t k = 7;
    const Found found = find(*index, q, k);
    Found again{k, std::vector<float>(q.n * k), std::vector<idx_t>(q.n * k)};
    std::vector<float> vectors(q.n * k * x.d), v(x.d);
    index->search_and_reconstruct(
            q.n,
            q.x.data(),
            k,
            again.dis.data(),
            again.ids.data(),
            vectors.data());
    EXPECT_EQ(found, again);
    for (size_t i = 0; i < q.n * k; i++) {
        index->reconstruct(found.ids[i], v.data());
        EXPECT_TRUE(std::equal(v.begin(), v.end(), &vectors[i * x.d]));
    }
}

TEST(IndexIVFRaBitQGMM, RangeSearch) {
    const Vectors x = clustered(1200, 32, 1), q = clustered(10, 32, 2);
    for (auto metric : {kL2, kIP}) {
        auto index = make(x, 16, 2, metric);
        const auto codes = codes_of(*index);
        faiss::SearchParametersIVF all;
        all.nprobe = 16;
        const Found some = find(*index, q, 30, &all);
        const float radius = some.dis[29];
        faiss::RangeSearchResult result(q.n);
        index->range_search(q.n, q.x.data(), radius, &result, &all);
        for (size_t i = 0; i < q.n; i++) {
            size_t sure = 0, possible = 0;
            for (const auto& [id, v] : estimates(*index, codes, q.row(i))) {
                const double inside = metric == kL2 ? radius - v : v - radius;
                sure += inside > 1e-3 * std::abs(radius);
                possible += inside > -1e-3 * std::abs(radius);
            }
            const size_t n = result.lims[i + 1] - result.lims[i];
            EXPECT_GE(n, sure);
            EXPECT_LE(n, possible);
        }
        EXPECT_GE(result.lims[1], 28u);
    }
}

TEST(IndexIVFRaBitQGMM, Selectors) {
    const Vectors x = clustered(1000, 20, 1), q = clustered(8, 20, 2);
    for (auto metric : {kL2, kIP}) {
        auto index = make(x, 16, 4, metric);
        const faiss::IDSelectorRange some(100, 400), few(500, 505);
        ASSERT_NO_FATAL_FAILURE(expect_best_estimates(*index, q, 10, &some));
        ASSERT_NO_FATAL_FAILURE(expect_best_estimates(*index, q, 10, &few));
        const idx_t ids[] = {3, 17, 900};
        const faiss::IDSelectorBatch batch(3, ids);
        ASSERT_NO_FATAL_FAILURE(expect_best_estimates(*index, q, 2, &batch));

        // with a target few that pass are all found
        index->calibrate(100, nullptr, 10);
        SearchParametersIVFGMM target;
        target.target_recall = 0.9f;
        target.sel = const_cast<faiss::IDSelectorRange*>(&few);
        const Found found = find(*index, q, 10, &target);
        for (size_t i = 0; i < q.n; i++) {
            EXPECT_GE(found.ids[i * 10 + 4], 500);
            EXPECT_EQ(found.ids[i * 10 + 5], -1);
        }
    }
}

TEST(IndexIVFRaBitQGMM, NprobeBuysCodes) {
    const Vectors x = sift_base(8000), q = sift_queries(50);
    auto index = make(x, 64, 4);
    faiss::SearchParametersIVF all;
    all.nprobe = 64;
    const Found truth = find(*index, q, 10, &all);
    double before = 0;
    for (size_t nprobe : {1, 2, 4, 8, 16, 32, 64}) {
        faiss::SearchParametersIVF p;
        p.nprobe = nprobe;
        const Outcome o = outcome(*index, q, truth, p);
        EXPECT_GE(o.recall, before);
        EXPECT_LE(o.distances, nprobe * x.n / 64 * 1.25 + 50) << nprobe;
        before = o.recall;
    }
    EXPECT_EQ(before, 1);
    for (size_t most : {1, 7, 100, 1000}) {
        faiss::SearchParametersIVF p;
        p.nprobe = 16;
        p.max_codes = most;
        EXPECT_LE(outcome(*index, q, truth, p).distances, most + 20.0);
    }
}

TEST(IndexIVFRaBitQGMM, FindsMoreThanTheListsOfItsMeans) {
    const Vectors x = sift_base(20000), q = sift_queries(100);
    auto index = make(x, 64, 4);
    auto lists = std::make_unique<IndexIVFRaBitQGMM>(128, 64, 4);
    lists->cells_per_list = 1;
    lists->cp.niter = 4;
    lists->train(x.n, x.x.data());
    lists->add(x.n, x.x.data());
    const Found truth = exact(model_of(x), q, 10, kL2);
    auto share = [&](const faiss::Index& i, size_t nprobe) {
        faiss::SearchParametersIVF p;
        p.nprobe = nprobe;
        const Found found = find(i, q, 10, &p);
        size_t n = 0;
        for (size_t j = 0; j < found.ids.size(); j++) {
            const auto begin = truth.ids.begin() + j / 10 * 10;
            n += std::count(begin, begin + 10, found.ids[j]);
        }
        return double(n) / found.ids.size();
    };
    for (size_t nprobe : {1, 2, 4}) {
        EXPECT_GT(share(*index, nprobe), share(*lists, nprobe) + 0.01);
    }
    EXPECT_GT(share(*index, 64), 0.9);
}

TEST(IndexIVFRaBitQGMM, TargetRecallIsOfAllCodes) {
    const Vectors x = sift_base(20000), q = sift_queries(200);
    auto index = make_empty(x, 128, 2);
    index->calibrate_on_add = true;
    index->add(x.n, x.x.data());
    ASSERT_TRUE(index->calibration.fitted);
    EXPECT_FALSE(index->maintenance_due());
    faiss::SearchParametersIVF all;
    all.nprobe = index->nlist;
    const Found truth = find(*index, q, 10, &all);
    double before = 0;
    for (float target : {0.7f, 0.9f, 0.95f, 0.99f}) {
        SearchParametersIVFGMM p;
        p.target_recall = target;
        const Outcome o = outcome(*index, q, truth, p);
        EXPECT_GE(o.recall, target - 0.03) << target;
        EXPECT_LT(o.distances, 0.5 * x.n);
        EXPECT_GE(o.distances, before);
        before = o.distances;
    }
    index->calibrate(q.n, q.x.data(), 10);
    SearchParametersIVFGMM p;
    p.target_recall = 0.9f;
    EXPECT_GE(outcome(*index, q, truth, p).recall, 0.9);
    for (const auto& curve : index->calibration.curves) {
        for (const auto& point : curve.points) {
            EXPECT_TRUE(point.by_codes);
        }
    }
    index->optimize();
    index->maintain();
    EXPECT_FALSE(index->maintenance_due());

    // not calibrated, and it is not to be: nothing is promised
    auto never = make(x, 128, 2);
    never->target_recall = 0.9f;
    EXPECT_FAISS_ERROR(find(*never, q, 1), "calibrat");
}

TEST(IndexIVFRaBitQGMM, ATargetAndASelectorSeeAllOfFew) {
    const Vectors x = sift_base(900), q = sift_queries(100);
    auto index = make_empty(x, 16, 4);
    index->add(x.n, x.x.data());
    faiss::IDSelectorRange half(0, 450);
    SearchParametersIVFGMM all;
    all.nprobe = index->nlist;
    all.sel = &half;
    const Found truth = find(*index, q, 10, &all);
    index->calibrate(q.n, q.x.data(), 10);
    SearchParametersIVFGMM p;
    p.target_recall = 0.9f;
    p.sel = &half;
    EXPECT_GE(outcome(*index, q, truth, p).recall, 0.9);
}

TEST(IndexIVFRaBitQGMM, ParameterSpace) {
    const Vectors x = clustered(1500, 16, 1);
    std::unique_ptr<faiss::Index> index(
            index_factory(16, "GMM16,RaBitQ4", kL2));
    index->train(x.n, x.x.data());
    index->add(x.n, x.x.data());
    GMMParameterSpace space;
    space.initialize(index.get());
    space.set_index_parameters(index.get(), "nprobe=3,target_recall=0.8");
    auto ivf = dynamic_cast<IndexIVFRaBitQGMM*>(index.get());
    ASSERT_TRUE(ivf);
    EXPECT_EQ(ivf->nprobe, 3u);
    EXPECT_FLOAT_EQ(ivf->target_recall, 0.8f);
}

TEST(IndexIVFRaBitQGMM, GraphOverTheMeans) {
    const Vectors x = clustered(2000, 32, 1), q = clustered(20, 32, 2);
    std::unique_ptr<faiss::Index> plain(
            index_factory(32, "GMM40,RaBitQ4", kL2)),
            graph(index_factory(32, "GMM40_HNSW8,RaBitQ4", kL2));
    for (faiss::Index* index : {plain.get(), graph.get()}) {
        index->train(x.n, x.x.data());
        index->add(x.n, x.x.data());
        GMMParameterSpace().set_index_parameters(index, "nprobe=40");
    }
    const Found a = find(*plain, q, 5), b = find(*graph, q, 5);
    EXPECT_GE(recall(b, a, kL2), 0.99);
}

TEST(IndexIVFRaBitQGMM, FactoryStrings) {
    struct {
        const char *given, *described;
        int bits;
    } cases[] = {
            {"GMM16,RaBitQ", "GMM16,RaBitQ", 1},
            {"GMM16,RaBitQ1", "GMM16,RaBitQ", 1},
            {"GMM16x4_Diag,RaBitQ2", "GMM16x4_Diag,RaBitQ2", 2},
            {"GMM16_HNSW8,RaBitQ4", "GMM16_HNSW8,RaBitQ4", 4},
    };
    for (const auto& c : cases) {
        std::unique_ptr<faiss::Index> index(index_factory(32, c.given, kIP));
        auto ivf = dynamic_cast<IndexIVFRaBitQGMM*>(index.get());
        ASSERT_TRUE(ivf) << c.given;
        EXPECT_EQ(ivf->code_bits, c.bits);
        EXPECT_EQ(ivf->metric_type, kIP);
        EXPECT_EQ(reverse_index_factory(ivf), c.described);
    }
    for (const char* text :
         {"PCA16,GMM16,RaBitQ4",
          "OPQ8_32,GMM16,RaBitQ2",
          "GMM16,RaBitQ4,RFlat",
          "GMM16,RaBitQ,Refine(SQ8)"}) {
        const Vectors x = clustered(1200, 32, 1);
        std::unique_ptr<faiss::Index> index(index_factory(32, text, kL2));
        index->train(x.n, x.x.data());
        index->add(x.n, x.x.data());
        GMMParameterSpace().set_index_parameters(index.get(), "nprobe=16");
        EXPECT_EQ(reverse_index_factory(index.get()), text);
        const Found found = find(*index, rows_of(x, 0, 50), 10);
        size_t own = 0;
        for (size_t i = 0; i < 50; i++) {
            own += std::count(
                    &found.ids[i * 10], &found.ids[i * 10] + 10, idx_t(i));
        }
        EXPECT_GE(own, 40u) << text;
    }
    for (const char* text : {"GMM16,RaBitQ3", "GMM16,RaBitQ12"}) {
        EXPECT_FAISS_ERROR(index_factory(32, text, kL2), "1, 2 or 4 bits");
    }
    EXPECT_FAISS_ERROR(index_factory(32, "GMM16,RaBitQ0", kL2), "is 0");
    EXPECT_ANY_THROW(index_factory(32, "GMM16,RaBitQx", kL2));
}

} // namespace
} // namespace faiss_ext
