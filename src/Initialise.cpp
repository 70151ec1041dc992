#include "Initialise.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "Blas.h"
#include "DeviceSource.h"
#include "Error.h"
#include "Lloyd.h"
#include "ParallelFor.h"
#include "cpu/Kernels.h"

namespace gmm {

double uniform(std::mt19937_64& random) {
    return double(random() >> 11) * 0x1p-53;
}

namespace {

/// Sums of a block of rows relative to a pivot near the data.
struct Moments {
    double weight = 0;
    std::vector<double> sum;    ///< sum_i w_i (x_i - pivot)
    std::vector<double> square; ///< of each dimension

    explicit Moments(size_t d) : sum(d), square(d) {}

    void add(const float* x, const float* pivot, double w) {
        weight += w;
        for (size_t j = 0; j < sum.size(); j++) {
            const double diff = double(x[j]) - pivot[j];
            sum[j] += w * diff;
            square[j] += w * diff * diff;
        }
    }

    void merge(const Moments& other) {
        weight += other.weight;
        for (size_t j = 0; j < sum.size(); j++) {
            sum[j] += other.sum[j];
            square[j] += other.square[j];
        }
    }
};

void check_finite(const float* x, size_t d, size_t row) {
    for (size_t j = 0; j < d; j++) {
        if (!std::isfinite(x[j])) {
            throw_invalid(
                    "source: row %zu, dimension %zu is %g, expected a finite "
                    "value",
                    row,
                    j,
                    x[j]);
        }
    }
}

Moments total_moments(
        const VectorSource& source, const float* weights, const float* pivot) {
    constexpr size_t kRows = 256, kBlocks = 64;
    const size_t d = source.d;
    Moments total(d);
    if (const auto* there = dynamic_cast<const DeviceSource*>(&source)) {
        const size_t bad = there->moments(
                pivot, weights, total.sum.data(), total.square.data());
        if (bad < source.n) {
            std::vector<float> x(d);
            gather(source, {bad}, x.data());
            check_finite(x.data(), d, source.given_row(bad));
        }
        for (size_t begin = 0; begin < source.n; begin += kRows) {
            double block = 0;
            for (size_t i = begin; i < std::min(begin + kRows, source.n); i++) {
                block += weights ? weights[i] : 1;
            }
            total.weight += block;
        }
        return total;
    }
    for (size_t first = 0; first < source.n; first += kRows * kBlocks) {
        std::vector<Moments> blocks(
                std::min(kBlocks, (source.n - first + kRows - 1) / kRows),
                Moments(d));
        parallel_for(blocks.size(), [&](size_t b) {
            const size_t begin = first + b * kRows;
            const size_t count = std::min(kRows, source.n - begin);
            std::vector<std::byte> scratch;
            std::vector<float> x(count * d);
            source.rows(begin, count, scratch).to_float(x.data());
            for (size_t i = 0; i < count; i++) {
                const float* row = x.data() + i * d;
                check_finite(row, d, source.given_row(begin + i));
                blocks[b].add(row, pivot, weights ? weights[begin + i] : 1);
            }
        });
        for (const Moments& block : blocks) {
            total.merge(block);
        }
    }
    return total;
}

} // namespace

CheckedWeights check_weights(size_t n, const float* weights, size_t positive) {
    if (!weights) {
        return {double(n), 1, 1};
    }
    CheckedWeights out{0, HUGE_VAL, 0};
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        if (!(weights[i] >= 0) || !std::isfinite(weights[i])) {
            throw_invalid(
                    "weights[%zu] = %g, expected a finite value of at least 0",
                    i,
                    weights[i]);
        }
        out.sum += weights[i];
        if (weights[i] > 0) {
            out.lightest = std::min(out.lightest, double(weights[i]));
            found++;
        }
    }
    if (found < positive) {
        throw_invalid(
                "weights: %zu are positive, expected at least %zu",
                found,
                positive);
    }
    out.mean = out.sum / found;
    return out;
}

DataFrame fit_frame(const VectorSource& source, const float* weights) {
    const size_t d = source.d;
    size_t first = 0; // that counts: others may be far away
    while (weights && first + 1 < source.n && !(weights[first] > 0)) {
        first++;
    }
    std::vector<float> pivot(d);
    gather(source, {first}, pivot.data());
    check_finite(pivot.data(), d, source.given_row(first));
    const Moments moments = total_moments(source, weights, pivot.data());

    std::vector<double> variances(d);
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        const double mean = moments.sum[j] / moments.weight;
        variances[j] =
                std::max(0.0, moments.square[j] / moments.weight - mean * mean);
        sum += variances[j];
    }
    const double deviation = std::sqrt(sum / d);
    if (deviation != 0 && !(deviation > 1e-15 && deviation < 1e15)) {
        throw_invalid(
                "source: the standard deviation is %g, expected 1e-15 to 1e15 "
                "so that variances fit into floats",
                deviation);
    }

    DataFrame out;
    const double unit =
            deviation == 0 ? 1 : std::exp2(std::round(std::log2(deviation)));
    out.frame.scale = 1 / unit;
    out.frame.center.resize(d);
    out.frame.variances.resize(d);
    for (size_t j = 0; j < d; j++) {
        const double mean = pivot[j] + moments.sum[j] / moments.weight;
        // so that small integers stay exact; finer in a dimension whose own
        // unit is far smaller
        const double step = std::min(
                                    unit,
                                    std::exp2(std::ceil(std::log2(
                                            16 * std::sqrt(variances[j]))))) /
                256;
        out.frame.center[j] = step > 0 ? std::round(mean / step) * step : mean;
        out.frame.variances[j] = variances[j] / (unit * unit);
    }
    out.variance = deviation == 0 ? 1 : deviation * deviation / (unit * unit);
    return out;
}

std::vector<size_t> sample_rows(
        size_t n,
        const float* weights,
        size_t count,
        bool by_weight,
        std::mt19937_64& random) {
    std::vector<size_t> ids;
    if (!weights) {
        std::unordered_set<size_t> chosen;
        for (size_t i = n - count; i < n; i++) {
            const size_t id = size_t(uniform(random) * double(i + 1));
            ids.push_back(chosen.insert(id).second ? id : i);
            chosen.insert(ids.back());
        }
    } else {
        std::vector<std::pair<double, size_t>> heap; // of the largest keys
        for (size_t i = 0; i < n; i++) {
            if (weights[i] <= 0) {
                continue;
            }
            const double exponential = std::log(1 - uniform(random));
            const double key =
                    by_weight ? exponential / weights[i] : exponential;
            if (heap.size() == count) {
                if (key <= heap.front().first) {
                    continue;
                }
                std::pop_heap(heap.begin(), heap.end(), std::greater<>());
                heap.pop_back();
            }
            heap.emplace_back(key, i);
            std::push_heap(heap.begin(), heap.end(), std::greater<>());
        }
        for (const auto& entry : heap) {
            ids.push_back(entry.second);
        }
    }
    std::sort(ids.begin(), ids.end());
    return ids;
}

namespace {

/** Draws rows in proportion to their weighted squared distance to the nearest
 * mean so far, several at a time.
 *
 * As in k-means|| (Bahmani et al. 2012), distances are brought up to date once
 * a round; but a round adds only a sixteenth of the means there are already, so
 * that the draw is nearly k-means++'s. Each of the first 32 is the best of 2 +
 * ln k draws. So many products as K + 32 ln K means have with the sample.
 */
struct PlusPlus {
    size_t n;
    size_t d;
    const float* y; ///< size n * d
    std::vector<double> norm;
    std::vector<double> mass; ///< of each row

    PlusPlus(size_t n, size_t d, const float* y, std::vector<double> weight)
            : n(n), d(d), y(y), norm(n), mass(n), weight(std::move(weight)),
              nearest(n, std::numeric_limits<double>::infinity()) {
        for (size_t i = 0; i < n; i++) {
            const float* row = y + i * d;
            norm[i] = std::inner_product(row, row + d, row, 0.0);
            mass[i] = this->weight[i];
        }
    }

    /// Up to count rows; fewer, where fewer have a distance left.
    std::vector<size_t> draw(size_t count, std::mt19937_64& random) {
        std::vector<size_t> out;
        while (out.size() < count) {
            std::vector<double> upto(n);
            std::partial_sum(mass.begin(), mass.end(), upto.begin());
            if (!(upto.back() > 0)) {
                break;
            }
            for (size_t missing = count - out.size(); missing > 0; missing--) {
                const double at = uniform(random) * upto.back();
                const size_t i =
                        std::upper_bound(upto.begin(), upto.end() - 1, at) -
                        upto.begin();
                if (mass[i] > 0) {
                    mass[i] = 0;
                    out.push_back(i);
                }
            }
        }
        return out;
    }

    void add_means(const std::vector<size_t>& chosen) {
        with_products(chosen, [&](size_t, size_t i, const float* dot) {
            for (size_t c = 0; c < chosen.size(); c++) {
                nearest[i] =
                        std::min(nearest[i], distance(i, chosen[c], dot[c]));
            }
            mass[i] = weight[i] * nearest[i];
        });
    }

    /// Of some rows the one that as a mean leaves the least sum of masses
    /// (greedy k-means++, as in Arthur and Vassilvitskii's own program).
    size_t best_of(const std::vector<size_t>& rows) const {
        const size_t m = rows.size();
        std::vector<double> of_block((n + kRows - 1) / kRows * m);
        with_products(rows, [&](size_t b, size_t i, const float* dot) {
            for (size_t c = 0; c < m; c++) {
                of_block[b * m + c] += weight[i] *
                        std::min(nearest[i], distance(i, rows[c], dot[c]));
            }
        });
        std::vector<double> sum(m);
        for (size_t at = 0; at < of_block.size(); at++) {
            sum[at % m] += of_block[at];
        }
        return rows[std::min_element(sum.begin(), sum.end()) - sum.begin()];
    }

private:
    /// use(block, row, its products with the chosen rows) for all rows.
    template <class Use>
    void with_products(
            const std::vector<size_t>& chosen, const Use& use) const {
        const size_t m = chosen.size();
        std::vector<float> means(m * d);
        for (size_t c = 0; c < m; c++) {
            std::copy_n(y + chosen[c] * d, d, means.data() + c * d);
        }
        parallel_for((n + kRows - 1) / kRows, [&](size_t b) {
            const size_t begin = b * kRows;
            const size_t count = std::min(kRows, n - begin);
            std::vector<float> dot(m * count);
            sgemm("T",
                  m,
                  count,
                  d,
                  means.data(),
                  d,
                  y + begin * d,
                  d,
                  dot.data(),
                  m);
            for (size_t i = 0; i < count; i++) {
                use(b, begin + i, dot.data() + i * m);
            }
        });
    }

    static constexpr size_t kRows = 256;
    /// Of a float product, over the squared norms.
    static constexpr double kRounding = 1e-5;

    std::vector<double> weight;
    std::vector<double> nearest; ///< squared distance

    /// Squared, of two rows, of which the product is known.
    double distance(size_t i, size_t j, float dot) const {
        const double norms = norm[i] + norm[j];
        const double distance = norms - 2.0 * dot;
        // Of neighbours in a group far away rounding leaves nothing.
        return distance < 1e-3 * norms &&
                        distance - kRounding * norms < nearest[i]
                ? best_kernels().distance(d, y + i * d, y + j * d, nullptr)
                : distance;
    }
};

} // namespace

static std::vector<size_t> plus_plus(
        size_t k,
        size_t d,
        const std::vector<float>& y,
        std::vector<double> weight,
        std::mt19937_64& random) {
    const size_t n = weight.size();
    const SerialBlas serial_blas;
    PlusPlus rows(n, d, y.data(), std::move(weight));
    std::vector<bool> taken(n);
    std::vector<size_t> out;
    while (out.size() < k) {
        const size_t round =
                std::clamp<size_t>(out.size() / 16, 1, k - out.size());
        const bool greedy = round == 1 && !out.empty();
        const size_t trials = greedy ? 2 + size_t(std::log(double(k))) : round;
        std::vector<size_t> chosen = rows.draw(trials, random);
        if (chosen.empty()) {
            break;
        }
        if (greedy) {
            chosen = {rows.best_of(chosen)};
        }
        for (size_t i : chosen) {
            taken[i] = true;
            out.push_back(i);
        }
        rows.add_means(chosen);
    }
    // Fewer than k different vectors: copies are all that is left.
    std::vector<size_t> rest;
    for (size_t i = 0; i < n && out.size() < k; i++) {
        if (!taken[i]) {
            rest.push_back(i);
        }
    }
    std::shuffle(rest.begin(), rest.end(), random);
    rest.resize(k - out.size());
    out.insert(out.end(), rest.begin(), rest.end());
    return out;
}

std::vector<float> initial_means(
        const VectorSource& source,
        const float* weights,
        const Frame& frame,
        size_t k,
        Initialisation init,
        std::mt19937_64& random) {
    const bool by_distance = init == Initialisation::kmeans_plus_plus;
    size_t available = source.n;
    if (weights) {
        available = std::count_if(
                weights, weights + source.n, [](float w) { return w > 0; });
    }
    // 16 rows for a mean choose well, few means better among more rows; many
    // means cannot afford as many.
    const size_t wanted =
            std::max({4 * k, std::min<size_t>(16 * k, 32768), size_t(4096)});
    const size_t count = by_distance ? std::min(available, wanted) : k;
    const std::vector<size_t> ids = sample_rows(
            source.n, weights, count, /*by_weight=*/!by_distance, random);
    Points points(source, weights, frame, ids);
    if (!by_distance) {
        return std::move(points.y);
    }
    return points.rows(plus_plus(
            k,
            source.d,
            points.y,
            {points.weight.begin(), points.weight.end()},
            random));
}

} // namespace gmm
