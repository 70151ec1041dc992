#include "FullScorer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "../FullCovariance.h"
#include "../ParallelFor.h"
#include "Blas.h"

namespace gmm {

// Columns of the bound that every row and component gets; 16 tell most
// components apart and cost as little as a distance in 128 dimensions.
static constexpr size_t kLead = 16;

// Rows of one matrix product: their differences stay in the second-level cache.
static constexpr size_t kProductRows = 256;

static constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of each dimension what one over its deviation, given the others, is for most
// components.
static std::vector<float> units_of(const GaussianMixture& model) {
    const size_t d = model.d,
                 factors = model.precisions_cholesky.size() / d / d;
    std::vector<double> sum(d);
    for (size_t row = 0; row < factors * d; row++) {
        const float* const u = model.precisions_cholesky.data() + row * d;
        sum[row % d] += std::log2(best_kernels().norm(d, u));
    }
    std::vector<float> out(d);
    for (size_t j = 0; j < d; j++) {
        out[j] = std::exp2(std::round(float(0.5 * sum[j] / factors)));
    }
    return out;
}

FullScorer::FullScorer(const GaussianMixture& model)
        : d(model.d), k(model.k), kernel(best_kernels()),
          lead(std::min(kLead, model.d)), unit(units_of(model)),
          means(model.means), lead_terms(lead * lead * k), lead_shift(lead * k),
          half_norm(k), log_norm(k), spectrum(k), mean_norm(k) {
    const size_t last = (d + kLanes - 1) / kLanes - 1;
    each = panel_at(last) + depth(last) * kLanes;
    panels.resize(k * each);
    const auto prepare = [&](size_t c) {
        const std::vector<float> own = scaled_factor(model, c);
        const float* factor = own.data();
        for (size_t p = 0; p <= last; p++) {
            float* out = panels.data() + c * each + panel_at(p);
            const size_t first = p * kLanes;
            for (size_t i = 0; i < depth(p); i++) {
                std::copy_n(
                        factor + i * d + first,
                        std::min(kLanes, d - first),
                        out + i * kLanes);
            }
        }
        float* const mean = means.data() + c * d;
        for (size_t j = 0; j < d; j++) {
            mean[j] *= unit[j];
        }
        log_norm[c] = model.log_weights[c] -
                0.5 *
                        (d * std::log(2 * std::numbers::pi) +
                         log_determinant(d, precision_factor(model, c)));
        const double norm = kernel.norm(d, mean);
        mean_norm[c] = std::sqrt(norm);
        half_norm[c] = 0.5 * norm;
        spectrum[c] = std::sqrt(kernel.norm(d * d, factor));
        for (size_t j = 0; j < lead; j++) {
            double shift = 0;
            for (size_t i = 0; i <= j; i++) {
                shift += double(mean[i]) * factor[i * d + j];
                lead_terms[(i * lead + j) * k + c] = factor[i * d + j];
            }
            lead_shift[j * k + c] = shift;
        }
    };
    parallel_for(k, prepare, worth_threads(double(k) * d * d));
    rounding = std::ldexp(std::sqrt(double(d)) + 8, -24);
    if (is_small()) {
        prepare_small(model);
    }
}

std::vector<float> FullScorer::scaled_factor(
        const GaussianMixture& model, size_t c) const {
    const float* const factor = precision_factor(model, c);
    std::vector<float> out(factor, factor + d * d);
    for (size_t i = 0; i < d * d; i++) {
        out[i] /= unit[i / d];
    }
    return out;
}

size_t FullScorer::block_rows() const {
    if (is_small()) { // responsibilities stay in the second-level cache
        return std::clamp<size_t>((size_t(1) << 15) / k / 16 * 16, 64, 512);
    }
    return std::clamp<size_t>((size_t(1) << 20) / k / 16 * 16, 256, 4096);
}

double FullScorer::exact(const float* y, size_t c) const {
    const float* mean = means.data() + c * d;
    double square = 0;
    for (size_t p = 0; p * kLanes < d; p++) {
        const float* u = panel(c, p);
        double sum[kLanes] = {};
        for (size_t i = 0; i < depth(p); i++) {
            const double diff = double(y[i]) * unit[i] - mean[i];
            for (size_t l = 0; l < kLanes; l++) {
                sum[l] += diff * u[i * kLanes + l];
            }
        }
        for (double v : sum) {
            square += v * v;
        }
    }
    return log_norm[c] - 0.5 * square;
}

// The first bounds of all pairs, and two guesses of each row's component: the
// one with the nearest mean and the one with the best bound.
void FullScorer::guess(
        size_t n, const float* y, const double* norm, Scratch& scratch) const {
    scratch.bounds.resize(n * k);
    scratch.guess.resize(2 * n);
    const size_t step = 64;
    scratch.product.resize(step * lead * k);
    for (size_t begin = 0; begin < n; begin += step) {
        const size_t count = std::min(step, n - begin);
        const float* rows = y + begin * d;
        float* dot = scratch.product.data();
        sgemm("T", k, count, d, means.data(), d, rows, d, dot, k);
        for (size_t i = 0; i < count; i++) {
            const float* row = dot + i * k;
            size_t nearest = 0;
            float largest = -std::numeric_limits<float>::infinity();
            for (size_t c = 0; c < k; c++) {
                const float value = row[c] - half_norm[c];
                nearest = value > largest ? c : nearest;
                largest = std::max(largest, value);
            }
            scratch.guess[2 * (begin + i)] = int32_t(nearest);
        }
        const size_t width = lead * k;
        sgemm("N",
              width,
              count,
              lead,
              lead_terms.data(),
              width,
              rows,
              d,
              dot,
              width);
        for (size_t i = 0; i < count; i++) {
            float* bound = scratch.bounds.data() + (begin + i) * k;
            std::fill_n(bound, k, 0.0f);
            for (size_t j = 0; j < lead; j++) {
                const float* part = dot + i * width + j * k;
                const float* shift = lead_shift.data() + j * k;
#pragma omp simd
                for (size_t c = 0; c < k; c++) {
                    const float diff = part[c] - shift[c];
                    bound[c] += diff * diff;
                }
            }
            size_t best = 0;
            double largest = -kInfinity;
            for (size_t c = 0; c < k; c++) {
                const double value = log_norm[c] - 0.5 * bound[c];
                best = value > largest ? c : best;
                largest = std::max(largest, value);
            }
            scratch.guess[2 * (begin + i) + 1] = int32_t(best);
        }
    }
    for (size_t i = 0; i < n; i++) {
        int32_t* pair = scratch.guess.data() + 2 * i;
        if (!std::isfinite(norm[i])) {
            pair[0] = pair[1] = -1;
        } else if (pair[0] == pair[1]) {
            pair[1] = -1;
        }
    }
}

// The squared length that a vector of length at most sqrt(square) may seem to
// have where rounding moves it by up to error: 2 a b <= a^2 / t + t b^2.
static float most_computed(float square, float error) {
    return std::max(square, 0.0f) * 1.001f + 1001 * error * error;
}

void FullScorer::list_guesses(size_t n, int which, Scratch& scratch) const {
    scratch.component.clear();
    for (size_t i = 0; i < n; i++) {
        scratch.of_row[i] = int32_t(scratch.component.size());
        if (const int32_t c = scratch.guess[2 * i + which]; c >= 0) {
            scratch.component.push_back(c);
        }
    }
    group(n, scratch);
}

// All pairs whose bound is not too low, but for those that were guessed.
void FullScorer::list_others(size_t n, double reach, Scratch& scratch) const {
    scratch.component.clear();
    scratch.limit.resize(k);
    float* limit = scratch.limit.data();
    for (size_t i = 0; i < n; i++) {
        scratch.of_row[i] = int32_t(scratch.component.size());
        const int32_t* pair = scratch.guess.data() + 2 * i;
        if (pair[0] < 0) {
            continue;
        }
        const float length = float(scratch.length[i]);
        const double least = scratch.best[i] - reach;
#pragma omp simd
        for (size_t c = 0; c < k; c++) {
            const float error =
                    float(rounding) * spectrum[c] * (length + mean_norm[c]);
            limit[c] = most_computed(2 * float(log_norm[c] - least), error);
        }
        const float* bound = scratch.bounds.data() + i * k;
        for (size_t c = 0; c < k; c++) {
            if (!(bound[c] > limit[c]) && int32_t(c) != pair[0] &&
                int32_t(c) != pair[1]) {
                scratch.component.push_back(int32_t(c));
            }
        }
    }
    group(n, scratch);
}

// From the components of each row to the rows of each component.
void FullScorer::group(size_t n, Scratch& scratch) const {
    scratch.of_row[n] = int32_t(scratch.component.size());
    scratch.offset.assign(k + 2, 0);
    for (int32_t c : scratch.component) {
        scratch.offset[c + 2]++;
    }
    for (size_t c = 0; c < k; c++) {
        scratch.offset[c + 2] += scratch.offset[c + 1];
    }
    scratch.list.resize(scratch.component.size());
    for (size_t i = 0; i < n; i++) {
        for (int32_t e = scratch.of_row[i]; e < scratch.of_row[i + 1]; e++) {
            scratch.list[scratch.offset[scratch.component[e] + 1]++] =
                    int32_t(i);
        }
    }
}

void FullScorer::evaluate_all(
        const float* y, double reach, Scratch& scratch) const {
    for (size_t c = 0; c < k; c++) {
        const size_t end = scratch.offset[c + 1];
        for (size_t begin = scratch.offset[c]; begin < end;
             begin += kProductRows) {
            evaluate(
                    c,
                    scratch.list.data() + begin,
                    std::min(kProductRows, end - begin),
                    y,
                    reach,
                    scratch);
        }
    }
}

float FullScorer::in_unit(float y, size_t j) const {
    constexpr float kMost = std::numeric_limits<float>::max();
    return std::clamp(y * unit[j], -kMost, kMost);
}

void FullScorer::score(
        size_t n,
        const float* rows,
        const double* norm,
        double reach,
        Scratch& scratch) const {
    scratch.y.resize(n * d);
    scratch.length.resize(n);
    for (size_t i = 0; i < n; i++) {
        float* const to = scratch.y.data() + i * d;
        for (size_t j = 0; j < d; j++) {
            to[j] = in_unit(rows[i * d + j], j);
        }
        scratch.length[i] = std::sqrt(kernel.norm(d, to));
    }
    const float* const y = scratch.y.data();
    scratch.found.clear();
    scratch.best.assign(n, -kInfinity);
    scratch.of_row.resize(n + 1);
    guess(n, y, norm, scratch);
    for (int which : {0, 1}) {
        list_guesses(n, which, scratch);
        evaluate_all(y, reach, scratch);
    }
    list_others(n, reach, scratch);
    evaluate_all(y, reach, scratch);
    refine(rows, reach, scratch);
}

void FullScorer::evaluate(
        size_t c,
        const int32_t* rows,
        size_t count,
        const float* y,
        double reach,
        Scratch& scratch) const {
    const float* mean = means.data() + c * d;
    scratch.rows.assign(rows, rows + count);
    scratch.v.resize(count * d);
    scratch.q.assign(count, 0.0f);
    scratch.norm.resize(count);
    float* v = scratch.v.data();
    for (size_t i = 0; i < count; i++) {
        scratch.norm[i] = std::sqrt(
                kernel.subtract(d, y + size_t(rows[i]) * d, mean, v + i * d));
    }
    size_t left = count;
    for (size_t p = 0; p * kLanes < d && left > 0; p++) {
        kernel.squares(left, depth(p), v, d, panel(c, p), scratch.q.data());
        if (depth(p) == d) {
            break;
        }
        size_t kept = 0;
        for (size_t i = 0; i < left; i++) {
            const float q = scratch.q[i];
            const int32_t row = scratch.rows[i];
            const float error = float(rounding) * scratch.norm[i] * spectrum[c];
            const float most = most_computed(
                    float(2 * (log_norm[c] - scratch.best[row] + reach)),
                    error);
            if (q > most) {
                continue;
            }
            if (kept < i) {
                std::copy_n(v + i * d, d, v + kept * d);
                scratch.rows[kept] = row;
                scratch.norm[kept] = scratch.norm[i];
            }
            scratch.q[kept++] = q;
        }
        left = kept;
    }
    for (size_t i = 0; i < left; i++) {
        const int32_t row = scratch.rows[i];
        const double length = std::sqrt(scratch.q[i]);
        const double error = rounding * scratch.norm[i] * spectrum[c];
        const double nats = error * (length + 0.5 * error);
        const double value = log_norm[c] - 0.5 * length * length;
        scratch.best[row] = std::max(scratch.best[row], value - nats);
        scratch.found.push_back({int32_t(c), row, value, float(nats)});
    }
}

// Replaces log-joints that may matter and may be wrong by exact ones.
void FullScorer::refine(const float* y, double reach, Scratch& scratch) const {
    std::vector<FullFound>& found = scratch.found;
    std::vector<size_t> wrong;
    for (size_t begin = 0, end; begin < found.size(); begin = end) {
        const size_t c = found[begin].component;
        wrong.clear();
        for (end = begin; end < found.size() && wrong.size() < kProductRows &&
             found[end].component == int32_t(c);
             end++) {
            const FullFound& f = found[end];
            if (!(f.error <= kMostWrong) &&
                !(f.value + f.error < scratch.best[f.row] - reach)) {
                wrong.push_back(end);
            }
        }
        const size_t n = wrong.size();
        if (n == 0) {
            continue;
        }
        std::vector<double>& v = scratch.exact_v;
        v.resize(n * d);
        scratch.exact_y.resize(n * kLanes);
        for (size_t i = 0; i < n; i++) {
            const float* row = y + size_t(found[wrong[i]].row) * d;
            for (size_t j = 0; j < d; j++) {
                v[i * d + j] = double(row[j]) * unit[j] - means[c * d + j];
            }
            found[wrong[i]].value = log_norm[c];
            found[wrong[i]].error = 0;
        }
        for (size_t p = 0; p * kLanes < d; p++) {
            const float* u = panel(c, p);
            scratch.exact_panel.assign(u, u + depth(p) * kLanes);
            double* part = scratch.exact_y.data();
            dgemm(kLanes,
                  n,
                  depth(p),
                  scratch.exact_panel.data(),
                  kLanes,
                  v.data(),
                  d,
                  0,
                  part,
                  kLanes);
            for (size_t i = 0; i < n; i++) {
                double sum = 0;
                for (size_t l = 0; l < kLanes; l++) {
                    sum += part[i * kLanes + l] * part[i * kLanes + l];
                }
                found[wrong[i]].value -= 0.5 * sum;
            }
        }
    }
}

} // namespace gmm
