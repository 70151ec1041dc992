#include "Scorer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>

#include "../ParallelFor.h"

namespace gmm {

// Log-joints that may be wrong by more nats than this are computed again.
static constexpr double kTolerance = 5e-4;

// The same where responsibilities are spread, of the bound: errors of noise in
// 256 to 1536 dimensions are a thirtieth of it.
static constexpr double kDiffuseTolerance = 16 * kTolerance;

// Squared deviations a dimension; see loses_variance().
static constexpr double kFarDeviations2 = 100;
// Squares of what varies less, times responsibilities and the least weights
// that are summed, have few digits as floats.
static constexpr double kLeastSummed = 1e-16;

Candidates::Candidates(size_t k)
        : index(k), value((k + kLanes - 1) / kLanes * kLanes) {}

size_t Candidates::best() const {
    return std::max_element(value.begin(), value.begin() + n) - value.begin();
}

double Candidates::normalise() {
    const float top = value[best()];
    for (size_t i = 0; i < n; i++) {
        value[i] -= top;
    }
    best_kernels().exp(n, value.data());
    tail *= std::exp(-double(top));
    double sum = tail;
    for (size_t i = 0; i < n; i++) {
        sum += value[i];
    }
    for (size_t i = 0; i < n; i++) {
        value[i] /= sum;
    }
    tail /= sum;
    return shift + top + std::log(sum);
}

Scorer::Scorer(const GaussianMixture& model, EStep step, float least)
        : d(model.d), k(model.k),
          padded((model.k + kLanes - 1) / kLanes * kLanes), stride(padded),
          kernel(best_kernels()), step(step), means(model.means),
          bias(padded, -std::numeric_limits<float>::infinity()),
          precision(padded), log_norm(model.k), fixed_error(model.k),
          root_error(model.k) {
    rounding = std::ldexp(std::sqrt(double(d)) + 8, -24);
    const bool soft = step == EStep::soft;
    reach = soft ? -std::log(double(least)) : 0;
    visible = soft ? std::max(reach, -double(kNegligible)) : 0;
    if (soft && model.covariance == Covariance::diagonal) {
        prepare_diagonal(model);
    } else {
        prepare_product(model);
    }
    most_fixed = *std::max_element(fixed_error.begin(), fixed_error.end());
    most_root = *std::max_element(root_error.begin(), root_error.end());
    largest_log_norm = *std::max_element(log_norm.begin(), log_norm.end());
    if (soft) {
        find_unsure();
    }
}

// Whether sums of floats lose the component's variance, or that of a dimension
// (diagonal): it is too far from the origin, or varies too little.
bool Scorer::loses_variance(size_t c) const {
    const float* const mean = means.data() + c * d;
    if (!diagonal()) {
        return kernel.norm(d, mean) > kFarDeviations2 * double(d) * variance[c];
    }
    const float* const precision = precisions.data() + c * d;
    for (size_t j = 0; j < d; j++) {
        if (double(mean[j]) * mean[j] * precision[j] > kFarDeviations2 ||
            precision[j] > 1 / kLeastSummed) {
            return true;
        }
    }
    return false;
}

void Scorer::find_unsure() {
    // A component that is much narrower than most has its mean's log-joint far
    // above what any vector gets, and error_bound() would allow all for that.
    std::vector<double> sorted = log_norm;
    std::nth_element(sorted.begin(), sorted.begin() + k / 2, sorted.end());
    const double most_norm = sorted[k / 2] + kDiffuseTolerance / (8 * rounding);
    sure_log_norm = -std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < k; c++) {
        if (loses_variance(c) || fixed_error[c] > kDiffuseTolerance / 4 ||
            log_norm[c] > most_norm) {
            unsure.push_back(int32_t(c));
            continue;
        }
        sure_fixed = std::max(sure_fixed, fixed_error[c]);
        sure_root = std::max(sure_root, root_error[c]);
        sure_log_norm = std::max(sure_log_norm, log_norm[c]);
    }
}

void Scorer::prepare_diagonal(const GaussianMixture& model) {
    std::vector<float> scale(k * d), shift(k * d);
    precisions.resize(k * d);
#pragma omp parallel for if (worth_threads(double(k) * d))
    for (size_t c = 0; c < k; c++) {
        double log_det = 0, norm = 0;
        for (size_t j = 0; j < d; j++) {
            const size_t i = c * d + j;
            const double var = model.variances[i];
            scale[i] = 1 / std::sqrt(var);
            const double at = double(means[i]) * scale[i];
            shift[i] = at;
            norm += at * at;
            precisions[i] = 1 / var;
            log_det += std::log(var);
        }
        log_norm[c] = model.log_weights[c] -
                0.5 * (d * std::log(2 * std::numbers::pi) + log_det);
        bias[c] = log_norm[c];
        fixed_error[c] =
                std::ldexp(std::fabs(log_norm[c]), -23) + std::ldexp(norm, -49);
        root_error[c] = std::ldexp(std::sqrt(0.5 * norm), -23);
    }
    scales = PackedMeans(k, d, scale.data());
    shifts = PackedMeans(k, d, shift.data());
}

void Scorer::prepare_product(const GaussianMixture& model) {
    const bool soft = step == EStep::soft;
    variance.resize(k);
    std::vector<double> half_norm(k);
    for (size_t c = 0; c < k; c++) {
        variance[c] = soft ? model.variance(c, 0) : 1;
        half_norm[c] = 0.5 * kernel.norm(d, means.data() + c * d) / variance[c];
        if (soft) {
            log_norm[c] = model.log_weights[c] -
                    0.5 * double(d) *
                            std::log(2 * std::numbers::pi * variance[c]);
        }
        fixed_error[c] = 3 * rounding * half_norm[c];
    }
    const double most = soft ? kNarrow : most_of_near_means();
    std::vector<float> factors(k * d);
#pragma omp parallel for if (worth_threads(double(k) * d))
    for (size_t c = 0; c < k; c++) {
        if (fixed_error[c] > most) {
            continue; // below
        }
        for (size_t j = 0; j < d; j++) {
            factors[c * d + j] = means[c * d + j] / variance[c];
        }
        bias[c] = log_norm[c] - half_norm[c];
        precision[c] = 1 / variance[c];
    }
    std::vector<float> narrow_means;
    for (size_t c = 0; c < k; c++) {
        if (fixed_error[c] > most) {
            const float* const mean = means.data() + c * d;
            narrow.push_back(int32_t(c));
            narrow_means.insert(narrow_means.end(), mean, mean + d);
            fixed_error[c] = std::ldexp(std::fabs(log_norm[c]), -23);
        }
    }
    const std::vector<float> ones(narrow.size() * d, 1.0f);
    scales = PackedMeans(narrow.size(), d, ones.data());
    shifts = PackedMeans(narrow.size(), d, narrow_means.data());
    stride += scales.panels() * kLanes;
    products = PackedMeans(k, d, factors.data());
    screen = Screen(k, d, factors.data());
}

void Scorer::multiply(size_t n, const float* y, float* v) const {
    for (size_t i = 0; i < n; i++) {
        std::fill(v + i * stride + k, v + i * stride + padded, 0.0f);
    }
    if (diagonal()) {
        exponents(scales, shifts, n, y, v, stride, kernel);
        return;
    }
    inner_products(products, n, y, v, stride, kernel);
    multiply_narrow(n, y, v);
}

void Scorer::multiply_bytes(
        size_t n, const float* y, Screen::Scratch& scratch, float* v) const {
    screen.multiply(n, y, scratch, v, stride);
    multiply_narrow(n, y, v);
}

void Scorer::multiply_narrow(size_t n, const float* y, float* v) const {
    if (!narrow.empty()) {
        exponents(scales, shifts, n, y, v + padded, stride, kernel);
    }
}

// The narrow components' values, and the largest of these and the others.
float Scorer::put_narrow(float largest, float* v) const {
    for (size_t i = 0; i < narrow.size(); i++) {
        const size_t c = narrow[i];
        v[c] = float(log_norm[c] + double(v[padded + i]) / variance[c]);
        largest = std::max(largest, v[c]);
    }
    return largest;
}

// How far a float log-joint may be off. A product's terms are |y|^2 p / 2 <= 2
// q + 2 m and |y mu| p <= 2 q + 3 m (Cauchy and Schwarz), where q = |y - mu|^2
// p / 2 and m = |mu|^2 p / 2; rounding errors of a sum of d terms grow with
// sqrt(d) (Higham and Mary 2019, "A new approach to probabilistic rounding
// error analysis"). The rounding of a component's coefficients is added with
// more weight: it is the same for all vectors, so that n_k does not average it
// out. So 2 r q + 3 r m for the unit r.
//
// Squares of differences: 2 r q and the constant's rounding. Diagonal: each
// shift mu_j / sd_j is off by a 2^-24th of it, together 2^-24 sqrt(2 m), times
// the differences' length sqrt(2 q).
double Scorer::error_bound(
        double mahalanobis, double fixed, double root) const {
    return 2 * rounding * mahalanobis + root * std::sqrt(mahalanobis) + fixed;
}

// The bound for every component that may come close to the largest log-joint.
double Scorer::row_error(float largest) const {
    if (!std::isfinite(largest)) {
        return HUGE_VAL;
    }
    const double mahalanobis =
            std::max(largest_log_norm - largest, 0.0) + visible;
    return error_bound(mahalanobis, most_fixed, most_root);
}

double Scorer::distance(const float* y, size_t c) const {
    return kernel.distance(d, y, means.data() + c * d, nullptr);
}

double Scorer::exact(const float* y, size_t c) const {
    const double mahalanobis = diagonal()
            ? kernel.distance(
                      d, y, means.data() + c * d, precisions.data() + c * d)
            : distance(y, c) / variance[c];
    return log_norm[c] - 0.5 * mahalanobis;
}

float Scorer::finish(double norm, float* v) const {
    // Infinity times the padding's 0 would leave a NaN there.
    const double half_norm =
            std::min<double>(0.5 * norm, std::numeric_limits<float>::max());
    return put_narrow(
            kernel.finish(padded, half_norm, bias.data(), precision.data(), v),
            v);
}

void Scorer::select(
        const float* y, const float* v, float largest, Candidates& out) const {
    const double error = row_error(largest);
    if (!(error < kUseless)) {
        all_exact(y, out);
        return;
    }
    split_row(v, largest, error, out);
    if (error > kTolerance) {
        refine(y, kTolerance, out);
    }
}

void Scorer::split_row(
        const float* v, float largest, double error, Candidates& out) const {
    out.shift = largest;
    out.n = kernel.split(
            padded,
            v,
            largest - reach - 2 * error,
            largest,
            out.index.data(),
            out.value.data(),
            &out.tail);
}

double Scorer::exponentials(float* v, float largest) const {
    const auto error = [&](double log_norm, double fixed, double root) {
        const double mahalanobis = std::max(log_norm - largest, 0.0) + visible;
        return error_bound(mahalanobis, fixed, root);
    };
    if (!(error(sure_log_norm, sure_fixed, sure_root) <= kDiffuseTolerance)) {
        return 0;
    }
    for (int32_t c : unsure) {
        const double wrong = error(log_norm[c], fixed_error[c], root_error[c]);
        if (v[c] >= largest - visible - 2 * wrong) {
            return 0;
        }
    }
    return kernel.exponentials(padded, largest - visible, largest, v);
}

bool Scorer::select_screened(
        size_t i,
        double norm,
        size_t most,
        const float* y,
        const Screen::Scratch& scratch,
        float* v,
        Candidates& out) const {
    const float largest = put_narrow(
            screen.bounds(i, norm, bias.data(), precision.data(), scratch, v),
            v);
    const double error = row_error(largest);
    if (!(error < kUseless)) {
        return false;
    }
    const double below = visible + 2 * error;
    out.tail = 0; // what is left is negligible
    out.n = screen.select(v, largest - below, out.index.data());
    // The likeliest first: its log-joint may leave fewer of the others.
    int32_t* const index = out.index.data();
    const int32_t likeliest =
            *std::max_element(index, index + out.n, [&](int32_t p, int32_t q) {
                return v[p] < v[q];
            });
    out.shift = std::max<double>(exact(y, likeliest), largest);
    const float least = out.shift - below;
    out.n = std::remove_if(
                    index,
                    index + out.n,
                    [&](int32_t c) { return v[c] < least; }) -
            index;
    if (out.n > most) {
        return false;
    }
    for (size_t e = 0; step == EStep::soft && e < out.n; e++) {
        const size_t c = index[e];
        const double half =
                0.5 * screen.distance(y, means.data() + c * d) / variance[c];
        const double value = log_norm[c] - half - out.shift;
        const double wrong = half * screen.distance_error();
        out.value[e] = wrong <= kTolerance || value + wrong < -below
                ? value
                : exact(y, c) - out.shift;
    }
    return true;
}

void Scorer::refine(const float* y, double tolerance, Candidates& out) const {
    for (size_t i = 0; i < out.n; i++) {
        const size_t c = out.index[i];
        const double mahalanobis =
                std::max(log_norm[c] - (out.shift + out.value[i]), 0.0);
        if (error_bound(mahalanobis, fixed_error[c], root_error[c]) >
            tolerance) {
            out.value[i] = exact(y, c) - out.shift;
        }
    }
}

void Scorer::all_exact(const float* y, Candidates& out) const {
    // Twice, so that no row of doubles is kept.
    out.n = k;
    out.tail = 0;
    out.shift = -std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < k; c++) {
        out.shift = std::max(out.shift, exact(y, c));
    }
    // Of a row too far for any density the first component takes all.
    const bool none = !(out.shift > -std::numeric_limits<double>::infinity());
    for (size_t c = 0; c < k; c++) {
        out.index[c] = int32_t(c);
        out.value[c] = !none ? exact(y, c) - out.shift
                : c == 0     ? 0
                             : -std::numeric_limits<float>::infinity();
    }
}

// A lower bound of the m-th largest value: the m-th largest of the maxima of
// at least m groups.
static float mth_largest_bound(
        const Kernels& kernel,
        size_t m,
        size_t padded,
        const float* v,
        std::vector<float>& maxima) {
    const size_t rows = padded / kLanes;
    const size_t groups = std::min(rows, 2 * (m / kLanes + 1));
    maxima.resize(groups * kLanes);
    for (size_t g = 0; g < groups; g++) {
        const size_t begin = g * rows / groups, end = (g + 1) * rows / groups;
        kernel.lane_max(
                (end - begin) * kLanes,
                v + begin * kLanes,
                maxima.data() + g * kLanes);
    }
    std::nth_element(
            maxima.begin(),
            maxima.begin() + (m - 1),
            maxima.end(),
            std::greater<>());
    return maxima[m - 1];
}

void Scorer::select_best(
        size_t m,
        const float* y,
        const float* v,
        float largest,
        Candidates& scratch,
        std::vector<std::pair<double, int32_t>>& best) const {
    best.clear();
    double error = row_error(largest);
    if (error < kUseless) {
        std::vector<float>& values = scratch.work;
        const float bound = mth_largest_bound(kernel, m, padded, v, values);
        // The m-th best may lie far below the best, and so have a larger error.
        error = row_error(bound);
        if (error < kUseless) {
            scratch.n = kernel.split(
                    padded,
                    v,
                    bound - 2 * error,
                    largest,
                    scratch.index.data(),
                    scratch.value.data(),
                    &scratch.tail);
            values.assign(
                    scratch.value.begin(), scratch.value.begin() + scratch.n);
            double least = HUGE_VAL;
            if (scratch.n >= m) {
                std::nth_element(
                        values.begin(),
                        values.begin() + (m - 1),
                        values.end(),
                        std::greater<>());
                least = values[m - 1] - 2 * error;
            }
            for (size_t i = 0; i < scratch.n; i++) {
                if (scratch.value[i] >= least) {
                    const int32_t c = scratch.index[i];
                    best.emplace_back(exact(y, c), c);
                }
            }
        }
    }
    if (best.size() < m) { // floats say too little, or are NaN
        best.clear();
        for (size_t c = 0; c < k; c++) {
            best.emplace_back(exact(y, c), int32_t(c));
        }
    }
    std::partial_sort(
            best.begin(),
            best.begin() + m,
            best.end(),
            [](const auto& a, const auto& b) {
                return a.first > b.first ||
                        (a.first == b.first && a.second < b.second);
            });
    best.resize(m);
}

} // namespace gmm
