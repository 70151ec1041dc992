#include "HierarchicalStart.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

#include "Initialise.h"
#include "InnerProducts.h"
#include "ParallelFor.h"

namespace gmm {

namespace {

/// Rows of the sample that each mean has.
constexpr size_t kSamplePerMean = 128;
/// Rows that each of the groups' means has, and their k-means iterations.
constexpr size_t kSamplePerGroup = 256;
constexpr int kGroupIterations = 5;

/// Vectors in the frame's units.
struct Points {
    size_t n;
    size_t d;
    std::vector<float> y;      ///< size n * d
    std::vector<float> weight; ///< size n

    Points(const VectorSource& source,
           const float* weights,
           const Frame& frame,
           const std::vector<size_t>& ids)
            : n(ids.size()), d(source.d), y(n * d), weight(n, 1) {
        gather(source, ids, y.data());
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < d; j++) {
                float& value = y[i * d + j];
                value = (value - frame.center[j]) * frame.scale;
            }
            if (weights) {
                weight[i] = weights[ids[i]];
            }
        }
    }

    std::vector<float> rows(const std::vector<size_t>& wanted) const {
        std::vector<float> out(wanted.size() * d);
        for (size_t i = 0; i < wanted.size(); i++) {
            std::copy_n(y.data() + wanted[i] * d, d, out.data() + i * d);
        }
        return out;
    }
};

/// Finds the nearest of few means.
struct Nearest {
    PackedMeans packed;
    std::vector<float> half_norm;

    Nearest(size_t k, size_t d, const std::vector<float>& means)
            : packed(k, d, means.data()), half_norm(k) {
        for (size_t c = 0; c < k; c++) {
            half_norm[c] = 0.5 * best_kernels().norm(d, means.data() + c * d);
        }
    }

    void find(size_t n, const float* y, int32_t* out) const {
        constexpr size_t kRows = 96;
        const size_t k = packed.k;
        std::vector<float> dot(std::min(n, kRows) * k);
        for (size_t begin = 0; begin < n; begin += kRows) {
            const size_t count = std::min(kRows, n - begin);
            inner_products(packed, count, y + begin * packed.d, dot.data(), k);
            for (size_t i = 0; i < count; i++) {
                const float* row = dot.data() + i * k;
                float best = -std::numeric_limits<float>::infinity();
                int32_t at = 0;
                for (size_t c = 0; c < k; c++) {
                    const float value = row[c] - half_norm[c];
                    at = value > best ? int32_t(c) : at;
                    best = std::max(best, value);
                }
                out[begin + i] = at;
            }
        }
    }
};

/// k-means in one thread.
struct Lloyd {
    const Points& points;
    size_t k;
    std::vector<float> means; ///< those that of was found with
    std::vector<int32_t> of;  ///< the nearest mean of each point
    std::vector<double> count;
    std::vector<double> sum; ///< size k * d

    Lloyd(const Points& points, size_t k, std::mt19937_64& random)
            : points(points), k(k), means(points.rows(sample_rows(
                                            points.n,
                                            points.weight.data(),
                                            k,
                                            /*by_weight=*/true,
                                            random))),
              of(points.n) {}

    void assign() {
        const size_t d = points.d;
        Nearest(k, d, means).find(points.n, points.y.data(), of.data());
        count.assign(k, 0);
        sum.assign(k * d, 0);
        for (size_t i = 0; i < points.n; i++) {
            count[of[i]] += points.weight[i];
            best_kernels().add(
                    d,
                    points.weight[i],
                    points.y.data() + i * d,
                    sum.data() + of[i] * d);
        }
    }

    // An empty mean goes to a point of the heaviest one.
    void move(std::mt19937_64& random) {
        const size_t d = points.d;
        for (size_t c = 0; c < k; c++) {
            for (size_t j = 0; count[c] > 0 && j < d; j++) {
                means[c * d + j] = sum[c * d + j] / count[c];
            }
        }
        std::vector<double> left = count;
        for (size_t c = 0; c < k; c++) {
            if (count[c] > 0) {
                continue;
            }
            const size_t heaviest =
                    std::max_element(left.begin(), left.end()) - left.begin();
            left[heaviest] /= 2;
            size_t i = size_t(uniform(random) * double(points.n));
            while (size_t(of[i]) != heaviest) {
                i = (i + 1) % points.n;
            }
            std::copy_n(points.y.data() + i * d, d, means.data() + c * d);
        }
    }

    void run(int iterations, std::mt19937_64& random) {
        for (int i = 0; i < iterations; i++) {
            if (i > 0) {
                move(random);
            }
            assign();
        }
    }
};

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
        std::mt19937_64& random) {
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
