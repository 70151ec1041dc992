// Queries farther from the means than all that a calibration saw: what a
// setting was measured to find says nothing of them, and they look on.
#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"
#include "faiss_ext/ListShard.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"

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
        // And without it they find too little.
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

/// Shards ask in as many rounds as it takes.
TEST(UnlikeQueries, ShardsFindTheSame) {
    constexpr size_t kShards = 3, k = 10;
    for (const char* description : {"GMM64,Flat", "GMM64,RaBitQ4"}) {
        const Index index(description, faiss::METRIC_L2);
        std::vector<ListShard> shards;
        for (size_t s = 0; s < kShards; s++) {
            shards.emplace_back(clone_index(index.index.get()), s, kShards);
        }
        const Vectors q = moved(1, 60);
        const auto params = target(0.9f);
        const Found whole = find(*index.index, q, k, &params);
        ListShard::Answers answers;
        auto step = shards[0].step(q.n, q.x.data(), k, &params, answers);
        while (!step.done) {
            ASSERT_LT(answers.size(), 12u);
            answers.emplace_back();
            for (size_t s = 0; s < kShards; s++) {
                answers.back().push_back(shards[s].answer(
                        q.n, q.x.data(), k, step.requests[s], &params));
            }
            step = shards[answers.size() % kShards].step(
                    q.n, q.x.data(), k, &params, answers);
        }
        EXPECT_EQ(step.distances, whole.dis) << description;
    }
}

TEST(UnlikeQueries, TheFarthestIsKeptInFiles) {
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
}

} // namespace
} // namespace faiss_ext
