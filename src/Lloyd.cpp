#include "Lloyd.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "Initialise.h"

namespace gmm {

Points::Points(size_t d, std::vector<float> values)
        : n(values.size() / d), d(d), y(std::move(values)), weight(n, 1) {}

Points::Points(
        const VectorSource& source,
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

std::vector<float> Points::rows(const std::vector<size_t>& wanted) const {
    std::vector<float> out(wanted.size() * d);
    for (size_t i = 0; i < wanted.size(); i++) {
        std::copy_n(y.data() + wanted[i] * d, d, out.data() + i * d);
    }
    return out;
}

Nearest::Nearest(size_t k, size_t d, const std::vector<float>& means)
        : centre(d), half_norm(k) {
    std::vector<double> sum(d);
    for (size_t i = 0; i < k * d; i++) {
        sum[i % d] += means[i];
    }
    for (size_t j = 0; j < d; j++) {
        centre[j] = float(sum[j] / double(k));
    }
    std::vector<float> moved(k * d);
    for (size_t c = 0; c < k; c++) {
        float* const to = moved.data() + c * d;
        best_kernels().subtract(d, means.data() + c * d, centre.data(), to);
        half_norm[c] = 0.5 * best_kernels().norm(d, to);
    }
    packed = PackedMeans(k, d, moved.data());
}

void Nearest::find(size_t n, const float* y, int32_t* out) const {
    constexpr size_t kRows = 96;
    const size_t k = packed.k, d = packed.d;
    std::vector<float> dot(std::min(n, kRows) * k);
    std::vector<float> moved(std::min(n, kRows) * d);
    for (size_t begin = 0; begin < n; begin += kRows) {
        const size_t count = std::min(kRows, n - begin);
        for (size_t i = 0; i < count; i++) {
            best_kernels().subtract(
                    d,
                    y + (begin + i) * d,
                    centre.data(),
                    moved.data() + i * d);
        }
        inner_products(packed, count, moved.data(), dot.data(), k);
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

Lloyd::Lloyd(const Points& points, size_t k, std::mt19937_64& random)
        : points(points), k(k), means(points.rows(sample_rows(
                                        points.n,
                                        points.weight.data(),
                                        k,
                                        /*by_weight=*/true,
                                        random))),
          of(points.n) {}

void Lloyd::assign() {
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
void Lloyd::move(std::mt19937_64& random) {
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

void Lloyd::run(int iterations, std::mt19937_64& random) {
    for (int i = 0; i < iterations; i++) {
        if (i > 0) {
            move(random);
        }
        assign();
    }
}

} // namespace gmm
