// The order in which a call's queries are searched, and that what they find
// does not depend on it.
#include "faiss_ext/scan/QueryOrder.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 64, kQueries = 400;
/// Too few to be put in order.
constexpr size_t kFew = 100;
constexpr size_t kNeighbours = 10;
/// Squared; one vector of 250 is as near.
constexpr float kRadius = 215;

/// 16.8 MB of codes, by which it is searched.
const IndexIVFFlatGMM& large() {
    static const auto index = [] {
        const Vectors x = uniform(84000, 384, 1);
        auto out = trained(rows_of(x, 0, 4000), kLists);
        out->code_bits = 4;
        out->probe_order = ProbeOrder::codes;
        out->add(x.n, x.x.data());
        return out;
    }();
    return *index;
}

Vectors some_queries() {
    Vectors q = uniform(kQueries, large().d, 2);
    q.x[7 * q.d] = std::numeric_limits<float>::quiet_NaN();
    return q;
}

TEST(QueryOrder, QueriesNearTheSameMeanAreSideBySide) {
    const IndexIVFFlatGMM& index = large();
    const Vectors q = some_queries();
    const QueryOrder order(index, index.cells.codes, q.n, q.x.data());
    ASSERT_FALSE(order.as_they_come());
    std::vector<uint32_t> sorted = order.numbers;
    std::sort(sorted.begin(), sorted.end());
    std::vector<uint32_t> all(q.n);
    std::iota(all.begin(), all.end(), 0);
    ASSERT_EQ(sorted, all);

    // Eight groups of 48 queries would be: of every eighth mean.
    const size_t groups = 8;
    const float* means = means_in_memory(index);
    size_t last = 0;
    for (uint32_t i : order.numbers) {
        if (i == 7) {
            continue;
        }
        size_t nearest = 0;
        double least = HUGE_VAL;
        for (size_t g = 0; g < groups; g++) {
            double distance = 0;
            for (size_t j = 0; j < q.d; j++) {
                const double diff = double(q.x[i * q.d + j]) -
                        means[g * kLists / groups * q.d + j];
                distance += diff * diff;
            }
            if (distance < least) {
                least = distance;
                nearest = g;
            }
        }
        EXPECT_GE(nearest, last);
        last = nearest;
    }
    EXPECT_GT(last, 0);
}

TEST(QueryOrder, FewQueriesAndSmallIndexesComeAsTheyAre) {
    const Vectors q = some_queries();
    EXPECT_TRUE(QueryOrder().as_they_come());
    EXPECT_TRUE(QueryOrder(large(), large().cells.codes, kFew, q.x.data())
                        .as_they_come());
    const auto small = filled(uniform(2000, 384, 3), kLists);
    EXPECT_TRUE(QueryOrder(*small, small->cells.codes, q.n, q.x.data())
                        .as_they_come());
}

/// What searches of so many queries at once found and counted.
struct Result {
    std::vector<Found> found;
    std::vector<std::map<idx_t, float>> within;
    size_t distances = 0, codes = 0;
};

Result search(const Vectors& q, size_t at_once) {
    Result out;
    faiss::indexIVF_stats.reset();
    ivf_gmm_stats.reset();
    for (size_t i = 0; i < q.n; i += at_once) {
        const Vectors some = rows_of(q, i, i + at_once);
        const Found found = find(large(), some, kNeighbours);
        faiss::RangeSearchResult range(at_once);
        large().range_search(at_once, some.x.data(), kRadius, &range);
        for (size_t j = 0; j < at_once; j++) {
            const size_t begin = j * kNeighbours, end = begin + kNeighbours;
            out.found.push_back(
                    {kNeighbours,
                     {&found.dis[begin], &found.dis[end]},
                     {&found.ids[begin], &found.ids[end]}});
            auto& within = out.within.emplace_back();
            for (size_t r = range.lims[j]; r < range.lims[j + 1]; r++) {
                within[range.labels[r]] = range.distances[r];
            }
        }
    }
    out.distances = faiss::indexIVF_stats.ndis;
    out.codes = ivf_gmm_stats.n_codes;
    return out;
}

TEST(QueryOrder, EachQueryFindsTheSame) {
    const Vectors q = some_queries();
    const Result few = search(q, kFew), all = search(q, kQueries);
    EXPECT_EQ(all.found, few.found);
    EXPECT_EQ(all.within, few.within);
    EXPECT_EQ(all.distances, few.distances);
    EXPECT_EQ(all.codes, few.codes);
    EXPECT_GT(all.codes, 0);
    size_t within = 0;
    for (const auto& each : all.within) {
        within += each.size();
    }
    EXPECT_GT(within, kQueries);
    EXPECT_EQ(all.found[7].ids[0], -1);
}

} // namespace
} // namespace faiss_ext
