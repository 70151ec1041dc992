// Queries farther from the means than all that a calibration saw: what a
// setting was measured to find says nothing of them, and they look on.
#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"
#include "faiss_ext/ListShard.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {
namespace {

constexpr size_t kStored = 12000, kQueries = 100;
constexpr faiss::MetricType kMetrics[] = {
        faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT};

const Vectors& all_sift() {
    static const Vectors data = sift_base(kStored + kQueries);
    return data;
}

Vectors base() {
    return rows_of(all_sift(), 0, kStored);
}

/// Of the base's own kind.
Vectors like() {
    return rows_of(all_sift(), kStored, kStored + kQueries);
}

/// The same queries, but for a scale and an offset in all dimensions.
Vectors moved(float scale, float offset) {
    Vectors q = like();
    for (size_t i = 0; i < q.x.size(); i++) {
        q.x[i] = scale * q.x[i] + offset * float(i % 3);
    }
    return q;
}

/// Farther from the means than any vector of the base. By directions an offset
/// of positive numbers is not.
std::vector<Vectors> unlike(faiss::MetricType metric) {
    if (metric == faiss::METRIC_L2) {
        return {moved(1, 60), moved(1, 200), moved(-1, 0), moved(3, 0)};
    }
    return {moved(-1, 0), moved(-1, 60)};
}

struct Index {
    std::unique_ptr<faiss::Index> index;
    IVFGMM* gmm;
    faiss::IndexIVF* ivf;

    Index(const char* description, faiss::MetricType metric)
            : index(index_factory(all_sift().d, description, metric)),
              gmm(extract_gmm(index.get())),
              ivf(dynamic_cast<faiss::IndexIVF*>(index.get())) {
        index->train(kStored, base().x.data());
        index->add(kStored, base().x.data());
    }
};

Found nearest(const Vectors& q, faiss::MetricType metric, size_t k) {
    return exact(model_of(base()), q, k, metric);
}

void forget_reach(IVFGMM& gmm) {
    for (Calibration::Curve& curve : gmm.calibration.curves) {
        for (Calibration::Point& point : curve.points) {
            point.reach = 0;
        }
    }
}

/// Halfway between two vectors.
Vectors between(const Vectors& x, size_t n) {
    std::mt19937 rng(3);
    Vectors q{n, x.d, std::vector<float>(n * x.d)};
    for (size_t i = 0; i < n; i++) {
        const float* a = x.row(rng() % x.n);
        const float* b = x.row(rng() % x.n);
        for (size_t j = 0; j < x.d; j++) {
            q.x[i * x.d + j] = 0.5f * (a[j] + b[j]);
        }
    }
    return q;
}

SearchParametersIVFGMM target(float recall) {
    SearchParametersIVFGMM params;
    params.target_recall = recall;
    return params;
}

/// Outliers among the vectors do not make queries from elsewhere usual ones.
TEST(UnlikeQueries, AreRecognisedBesideOutliers) {
    Vectors x = rows_of(all_sift(), 0, kStored);
    float usual = 0;
    for (bool outliers : {false, true}) {
        for (size_t i = 0; outliers && i < x.n; i += 100) {
            for (size_t j = 0; j < x.d; j++) {
                x.x[i * x.d + j] *= 4;
            }
        }
        std::unique_ptr<faiss::Index> index(index_factory(x.d, "GMM64,Flat"));
        index->train(x.n, x.x.data());
        index->add(x.n, x.x.data());
        const float farthest = extract_gmm(index.get())->calibration.farthest;
        usual = outliers ? usual : farthest;
        EXPECT_LT(farthest, 2 * usual);
        const Vectors q = moved(1, 60);
        const Found truth = exact(model_of(x), q, 10, faiss::METRIC_L2);
        EXPECT_GE(outcome(*index, q, truth, target(0.9f)).recall, 0.9)
                << outliers;
    }
}

TEST(UnlikeQueries, LookOnForATarget) {
    for (const char* description :
         {"GMM64,Flat", "GMM64,SQ8", "GMM64_HNSW16,Flat"}) {
        for (auto metric : kMetrics) {
            const Index index(description, metric);
            ASSERT_TRUE(index.gmm->calibration.fitted);
            ASSERT_GT(index.gmm->calibration.farthest, 0);
            for (const Vectors& q : unlike(metric)) {
                const Found truth = nearest(q, metric, 10);
                const Outcome o = outcome(*index.index, q, truth, target(0.9f));
                SearchParametersIVFGMM all;
                all.nprobe = index.ivf->nlist;
                const double most = outcome(*index.index, q, truth, all).recall;
                EXPECT_GT(o.recall, 0.9 * most)
                        << description << " " << metric << " " << q.x[1];
            }
        }
    }
}

TEST(UnlikeQueries, OthersTakeNoMore) {
    for (auto metric : kMetrics) {
        const Index index("GMM64,Flat", metric);
        const Found truth = nearest(like(), metric, 10);
        const Outcome with = outcome(*index.index, like(), truth, target(0.9f));
        index.gmm->calibration.farthest = 0; // not known
        const Outcome without =
                outcome(*index.index, like(), truth, target(0.9f));
        EXPECT_LE(with.distances, 1.05 * without.distances + 1);
        EXPECT_GE(with.recall, without.recall);
        // And without it and what is found they find too little.
        forget_reach(*index.gmm);
        const Vectors q = moved(-1, 0);
        EXPECT_LT(
                outcome(*index.index, q, nearest(q, metric, 10), target(0.9f))
                        .recall,
                0.8);
    }
}

/// A calibration whose settings are whole lists.
TEST(UnlikeQueries, ProbeAllListsWhereListsAreTheSetting) {
    for (const char* description : {"GMM64,Flat", "GMM64_HNSW16,Flat"}) {
        for (auto metric : kMetrics) {
            const Index index(description, metric);
            const float ntotal = kStored;
            index.gmm->calibration.curves = {
                    {10,
                     {{false, 2, 0, 0.97f, 0, 400, 1},
                      {false, 64, 0, 1, 0, ntotal, 2}}}};
            const Vectors q = moved(-1, 0);
            const Found truth = nearest(q, metric, 10);
            EXPECT_EQ(outcome(*index.index, q, truth, target(0.9f)).recall, 1)
                    << description << " " << metric;
            const Outcome few =
                    outcome(*index.index,
                            like(),
                            nearest(like(), metric, 10),
                            target(0.9f));
            EXPECT_LT(few.distances, kStored / 8) << description;
        }
    }
}

TEST(UnlikeQueries, FindAllWithinARadius) {
    const Index index("GMM64,Flat", faiss::METRIC_L2);
    const Vectors q = moved(1, 60);
    const Found truth = nearest(q, faiss::METRIC_L2, 10);
    double found = 0, there = 0;
    for (size_t i = 0; i < q.n; i++) {
        const float radius = truth.dis[i * 10 + 9] * 1.0001f;
        faiss::RangeSearchResult result(1);
        const auto params = target(0.9f);
        index.index->range_search(1, q.row(i), radius, &result, &params);
        found += double(result.lims[1]);
        there += 10;
    }
    EXPECT_GT(found, 0.98 * there);
}

TEST(UnlikeQueries, ALimitOfTheCallIsKept) {
    const Index index("GMM64,Flat", faiss::METRIC_L2);
    const Vectors q = moved(1, 200);
    const Found truth = nearest(q, faiss::METRIC_L2, 10);
    auto params = target(0.9f);
    params.max_codes = 50;
    EXPECT_LE(outcome(*index.index, q, truth, params).distances, 50);
}

TEST(UnlikeQueries, CodesAlone) {
    for (auto metric : kMetrics) {
        const Index index("GMM64,RaBitQ4", metric);
        const Vectors q = moved(-1, 0);
        const Found truth = nearest(q, metric, 10);
        const double all = [&] {
            faiss::SearchParametersIVF params;
            params.nprobe = index.ivf->nlist;
            return outcome(*index.index, q, truth, params).recall;
        }();
        EXPECT_GT(
                outcome(*index.index, q, truth, target(0.9f)).recall,
                0.88 * all);
    }
}

void expect_the_same(
        const faiss::Index& index,
        const std::vector<ListShard>& shards,
        const Vectors& q,
        size_t k,
        const SearchParametersIVFGMM& params) {
    const Found whole = find(index, q, k, &params);
    ListShard::Answers answers;
    auto step = shards[0].step(q.n, q.x.data(), k, &params, answers);
    while (!step.done) {
        ASSERT_LT(answers.size(), 12u);
        answers.emplace_back();
        for (size_t s = 0; s < shards.size(); s++) {
            answers.back().push_back(shards[s].answer(
                    q.n, q.x.data(), k, step.requests[s], &params));
        }
        step = shards[answers.size() % shards.size()].step(
                q.n, q.x.data(), k, &params, answers);
    }
    EXPECT_EQ(step.distances, whole.dis);
}

/// Shards ask in as many rounds as it takes.
TEST(UnlikeQueries, ShardsFindTheSame) {
    constexpr size_t kShards = 3, k = 10;
    for (const char* description : {"GMM64,Flat", "GMM64,RaBitQ4"}) {
        const Index index(description, faiss::METRIC_L2);
        std::vector<ListShard> shards;
        for (size_t s = 0; s < kShards; s++) {
            shards.emplace_back(clone_index(index.index.get()), s, kShards);
        }
        const auto params = target(0.9f);
        for (const Vectors& q : {moved(1, 60), between(base(), kQueries)}) {
            expect_the_same(*index.index, shards, q, k, params);
        }
        if (!has_vectors(*index.ivf)) {
            continue;
        }
        // whole lists
        const Calibration::Curve lists = {
                k,
                {{false, 1, 0, 0.97f, 0, 200, 1, 1.2f},
                 {false, 64, 0, 1, 0, float(kStored), 2, 0}}};
        index.gmm->calibration.curves = {lists};
        for (size_t s = 0; s < kShards; s++) {
            shards[s] = ListShard(clone_index(index.index.get()), s, kShards);
        }
        for (const Vectors& q : {moved(1, 60), between(base(), kQueries)}) {
            expect_the_same(*index.index, shards, q, k, params);
        }
    }
}

/// Not farther from the means than those of the calibration, but with less
/// found once as much was looked at: they look on.
TEST(UnlikeQueries, ThatFindLittleLookOn) {
    for (const char* description : {"GMM64,Flat", "GMM64,RaBitQ4"}) {
        for (auto metric : kMetrics) {
            SCOPED_TRACE(description + std::to_string(metric));
            const Index index(description, metric);
            const Vectors q = between(base(), kQueries);
            const Found truth = nearest(q, metric, 10);
            SearchParametersIVFGMM all;
            all.nprobe = index.ivf->nlist;
            const double most = outcome(*index.index, q, truth, all).recall;
            const Found own_truth = nearest(like(), metric, 10);
            const auto params = target(0.8f);
            const Outcome found = outcome(*index.index, q, truth, params);
            const Outcome own =
                    outcome(*index.index, like(), own_truth, params);
            forget_reach(*index.gmm);
            const Outcome before = outcome(*index.index, q, truth, params);
            const Outcome own_before =
                    outcome(*index.index, like(), own_truth, params);
            EXPECT_GE(found.recall, 0.8 * most);
            EXPECT_GE(found.recall, before.recall);
            EXPECT_GE(own.recall, own_before.recall);
            EXPECT_LE(own.distances, 1.15 * own_before.distances + 1);
        }
    }
}

/// Where the graph has given out some, those beyond are not near.
TEST(UnlikeQueries, UsualOnesAskAGraphForNoMore) {
    for (auto metric : kMetrics) {
        const Index index("GMM512_HNSW16,Flat", metric);
        const Found truth = nearest(like(), metric, 1);
        const auto scored = [&] {
            ivf_gmm_stats.reset();
            outcome(*index.index, like(), truth, target(0.5f));
            return double(ivf_gmm_stats.n_cell_scores);
        };
        const double found = scored();
        forget_reach(*index.gmm);
        EXPECT_LE(found, 1.2 * scored()) << metric;
    }
}

/// The nearest mean may be that of a narrow cluster, far away by its width.
TEST(UnlikeQueries, AmongClustersOfManyWidths) {
    constexpr size_t kClusters = 200, n = 20000, d = 16;
    std::mt19937 rng(11);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> exponent(-2, 0);
    std::vector<float> centres(kClusters * d), widths(kClusters);
    for (float& c : centres) {
        c = 10 * normal(rng);
    }
    for (float& w : widths) {
        w = 10 * std::pow(10.0f, exponent(rng));
    }
    Vectors x{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const size_t c = rng() % kClusters;
        for (size_t j = 0; j < d; j++) {
            x.x[i * d + j] = centres[c * d + j] + widths[c] * normal(rng);
        }
    }
    std::unique_ptr<faiss::Index> index(index_factory(d, "GMM128,Flat"));
    index->train(n, x.x.data());
    index->add(n, x.x.data());
    const Vectors q = between(x, 200);
    const Found truth = exact(model_of(x), q, 10, faiss::METRIC_L2);
    const double found = outcome(*index, q, truth, target(0.9f)).recall;
    forget_reach(*extract_gmm(index.get()));
    const double before = outcome(*index, q, truth, target(0.9f)).recall;
    EXPECT_GT(found, before + 0.15);
    EXPECT_GT(found, 0.6);
}

/// A setting of whole lists: beyond one list there may be more.
TEST(UnlikeQueries, ThatFindLittleInListsProbeMore) {
    for (const char* description : {"GMM64,Flat", "GMM64_HNSW16,Flat"}) {
        for (auto metric : kMetrics) {
            SCOPED_TRACE(description + std::to_string(metric));
            const Index index(description, metric);
            const auto settings = [&](float reach) {
                index.gmm->calibration.curves = {
                        {10,
                         {{false, 1, 0, 0.9f, 0, 200, 1, reach},
                          {false, 64, 0, 1, 0, float(kStored), 2, 0}}}};
            };
            const Vectors q = between(base(), kQueries);
            const Found truth = nearest(q, metric, 10);
            double before = 0, lists_before = 0;
            for (float reach : {0.0f, 0.9f, 1.1f, 1.4f}) {
                settings(reach);
                faiss::indexIVF_stats.reset();
                const double found =
                        outcome(*index.index, q, truth, target(0.8f)).recall;
                const double lists = double(faiss::indexIVF_stats.nlist);
                EXPECT_GE(found, before) << reach;
                EXPECT_GE(lists, lists_before) << reach;
                before = found;
                lists_before = lists;
            }
            EXPECT_GT(before, 0.9);
            index.gmm->calibration.curves[0].points[0].budget = 64; // all lists
            EXPECT_EQ(outcome(*index.index, q, truth, target(0.8f)).recall, 1);
        }
    }
}

TEST(UnlikeQueries, WhatIsKnownOfThemIsKeptInFiles) {
    const Index index("GMM64,Flat", faiss::METRIC_L2);
    float farthest = 0; // of vectors of its own, which were calibrated on
    for (size_t i = 0; i < kStored; i++) {
        float distance;
        idx_t list;
        index.ivf->quantizer->search(1, all_sift().row(i), 1, &distance, &list);
        farthest = std::max(farthest, distance);
    }
    const float kept = index.gmm->calibration.farthest;
    EXPECT_LE(kept, 1.001f * farthest);
    EXPECT_GT(kept, 0.2f * farthest);
    const std::unique_ptr<faiss::Index> copy(clone_index(index.index.get()));
    EXPECT_EQ(extract_gmm(copy.get())->calibration.farthest, kept);
    const auto& curves = index.gmm->calibration.curves;
    for (size_t c = 0; c < curves.size(); c++) {
        for (size_t p = 0; p < curves[c].points.size(); p++) {
            const float reach = curves[c].points[p].reach;
            EXPECT_EQ(
                    extract_gmm(copy.get())
                            ->calibration.curves[c]
                            .points[p]
                            .reach,
                    reach);
            EXPECT_EQ(reach > 0, p + 1 < curves[c].points.size());
        }
    }
}

} // namespace
} // namespace faiss_ext
