#include "HierarchicalStart.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

#include "Initialise.h"
#include "Lloyd.h"
#include "ParallelFor.h"

namespace gmm {

namespace {

/// Rows of the sample that each mean has.
constexpr size_t kSamplePerMean = 128;
/// Rows that each of the groups' means has, and their k-means iterations.
constexpr size_t kSamplePerGroup = 256;
constexpr int kGroupIterations = 5;

/// How many of k means each group gets: one, then in proportion to its weight
/// (Sainte-Lague), and no more than it has points.
std::vector<size_t> shares(
        size_t k,
        const std::vector<double>& weight,
        const std::vector<std::vector<size_t>>& members) {
    std::vector<size_t> out(weight.size());
    std::priority_queue<std::pair<double, size_t>> next;
    for (size_t g = 0; g < out.size(); g++) {
        if (!members[g].empty()) {
            next.emplace(std::numeric_limits<double>::infinity(), g);
        }
    }
    for (; k > 0; k--) {
        const size_t g = next.top().second;
        next.pop();
        out[g]++;
        if (out[g] < members[g].size()) {
            next.emplace(weight[g] / (double(out[g]) + 0.5), g);
        }
    }
    return out;
}

/// The rows of ids nearest to each of the groups' means.
std::vector<std::vector<size_t>> divide(
        const VectorSource& source,
        const Frame& frame,
        const std::vector<size_t>& ids,
        const std::vector<float>& means) {
    constexpr size_t kRows = 1024;
    const size_t groups = means.size() / source.d;
    const Nearest nearest(groups, source.d, means);
    std::vector<int32_t> of(ids.size());
    parallel_for((ids.size() + kRows - 1) / kRows, [&](size_t b) {
        const size_t begin = b * kRows;
        const size_t end = std::min(begin + kRows, ids.size());
        const Points points(
                source,
                nullptr,
                frame,
                {ids.begin() + begin, ids.begin() + end});
        nearest.find(points.n, points.y.data(), of.data() + begin);
    });
    std::vector<std::vector<size_t>> out(groups);
    for (size_t i = 0; i < ids.size(); i++) {
        out[of[i]].push_back(ids[i]);
    }
    return out;
}

void write_stats(const Lloyd& lloyd, size_t first, SufficientStats& stats) {
    const Points& points = lloyd.points;
    const size_t d = points.d;
    std::copy(lloyd.count.begin(), lloyd.count.end(), &stats.n_k[first]);
    std::copy(lloyd.sum.begin(), lloyd.sum.end(), &stats.sum_x[first * d]);
    for (size_t i = 0; i < points.n; i++) {
        const float* y = points.y.data() + i * d;
        const size_t c = first + lloyd.of[i];
        if (stats.covariance == Covariance::diagonal) {
            best_kernels().add_squares(
                    d, points.weight[i], y, &stats.sum_x2[c * d]);
        } else {
            stats.sum_x2[c] += points.weight[i] * best_kernels().norm(d, y);
        }
    }
}

} // namespace

HierarchicalStart hierarchical_start(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        Covariance covariance,
        size_t k,
        int iterations,
        std::mt19937_64& random,
        const std::function<void()>& check) {
    const size_t d = source.d;
    size_t available = source.n;
    if (weights) {
        available = std::count_if(
                weights, weights + source.n, [](float w) { return w > 0; });
    }
    const std::vector<size_t> ids = sample_rows(
            source.n,
            weights,
            std::min(available, kSamplePerMean * k),
            /*by_weight=*/false,
            random);

    const size_t groups = size_t(std::lround(std::sqrt(double(k))));
    const size_t few = std::min(ids.size(), kSamplePerGroup * groups);
    std::vector<size_t> spread(few);
    for (size_t i = 0; i < few; i++) {
        spread[i] = ids[i * ids.size() / few];
    }
    const Points sample(source, weights, frame, spread);
    Lloyd coarse(sample, groups, random);
    coarse.run(kGroupIterations, random);
    const auto members = divide(source, frame, ids, coarse.means);

    std::vector<double> weight(groups);
    std::vector<uint64_t> seed(groups);
    for (size_t g = 0; g < groups; g++) {
        seed[g] = random();
        for (size_t i : members[g]) {
            weight[g] += weights ? weights[i] : 1;
        }
    }
    const std::vector<size_t> share = shares(k, weight, members);
    std::vector<size_t> first(groups);
    for (size_t g = 1; g < groups; g++) {
        first[g] = first[g - 1] + share[g - 1];
    }
    HierarchicalStart out{
            std::vector<float>(k * d), SufficientStats(covariance, k, d)};
    for (double w : weight) {
        out.stats.weight += w;
    }
    parallel_for(groups, [&](size_t g) {
        check();
        if (share[g] == 0) {
            return;
        }
        std::mt19937_64 own(seed[g]);
        const Points points(source, weights, frame, members[g]);
        Lloyd fine(points, share[g], own);
        fine.run(iterations, own);
        std::copy(
                fine.means.begin(), fine.means.end(), &out.means[first[g] * d]);
        write_stats(fine, first[g], out.stats);
    });
    return out;
}

} // namespace gmm
