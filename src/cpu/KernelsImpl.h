// Included by one source file for each instruction set, which defines the
// vector type V first and is compiled with that set's flags. Standard headers
// with inline functions stay out: the linker might keep the copy that was
// compiled for a newer processor than the one the program runs on.

#include "Kernels.h"

namespace gmm {
namespace {

// exp(x) = 2^n exp(r) with n = round(x / log 2), |r| <= log(2) / 2, and
// Taylor's polynomial of degree 6: relative error below 2e-7.
V exp_lanes(V x) {
    x = max(x, V::all(-87.0f));
    const V n = round(x * V::all(1.44269504f));
    V r = fma(n, V::all(-0.693145752f), x);
    r = fma(n, V::all(-1.42860677e-6f), r);
    V p = V::all(1.0f / 720);
    p = fma(p, r, V::all(1.0f / 120));
    p = fma(p, r, V::all(1.0f / 24));
    p = fma(p, r, V::all(1.0f / 6));
    p = fma(p, r, V::all(0.5f));
    p = fma(p, r, V::all(1.0f));
    p = fma(p, r, V::all(1.0f));
    return times_power_of_two(p, n);
}

float finish(
        size_t k,
        float half_norm,
        const float* bias,
        const float* precision,
        float* v) {
    const V minus_half_norm = V::all(-half_norm);
    V largest = V::all(-__builtin_inff());
    for (size_t i = 0; i < k; i += kLanes) {
        const V value =
                fma(minus_half_norm,
                    V::load(precision + i),
                    V::load(v + i) + V::load(bias + i));
        value.store(v + i);
        largest = max(largest, value);
    }
    float lanes[kLanes], out = -__builtin_inff();
    largest.store(lanes);
    for (float lane : lanes) {
        out = lane > out ? lane : out;
    }
    return out;
}

size_t split(
        size_t k,
        const float* v,
        float threshold,
        float shift,
        int32_t* index,
        float* value,
        double* tail) {
    // Nearly every group of lanes is negligible and costs one comparison.
    const float floor = shift + kNegligible;
    const V lowest = V::all(threshold < floor ? threshold : floor);
    const V above = V::all(threshold), shifts = V::all(shift);
    V sum = V::all(0);
    size_t n = 0;
    for (size_t i = 0; i < k; i += kLanes) {
        const V values = V::load(v + i);
        if (at_least(values, lowest) == 0) {
            continue;
        }
        uint32_t selected = at_least(values, above);
        sum = sum + without(exp_lanes(values - shifts), selected);
        for (; selected != 0; selected &= selected - 1) {
            const size_t at = i + size_t(__builtin_ctz(selected));
            index[n] = int32_t(at);
            value[n] = v[at] - shift;
            n++;
        }
    }
    float lanes[kLanes];
    sum.store(lanes);
    *tail = 0;
    for (float lane : lanes) {
        *tail += lane;
    }
    return n;
}

void lane_max(size_t k, const float* v, float* largest) {
    V out = V::load(v);
    for (size_t i = kLanes; i < k; i += kLanes) {
        out = max(out, V::load(v + i));
    }
    out.store(largest);
}

void exp_all(size_t n, float* x) {
    for (size_t i = 0; i < n; i += kLanes) {
        exp_lanes(V::load(x + i)).store(x + i);
    }
}

double distance(
        size_t d, const float* y, const float* mean, const float* precision) {
    double sum = 0;
    if (precision) {
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < d; j++) {
            const double diff = double(y[j]) - double(mean[j]);
            sum += diff * diff * double(precision[j]);
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < d; j++) {
            const double diff = double(y[j]) - double(mean[j]);
            sum += diff * diff;
        }
    }
    return sum;
}

double norm(size_t d, const float* y) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < d; j++) {
        sum += double(y[j]) * double(y[j]);
    }
    return sum;
}

void add(size_t d, double r, const float* y, double* sum) {
#pragma omp simd
    for (size_t j = 0; j < d; j++) {
        sum[j] += r * double(y[j]);
    }
}

void add_squares(size_t d, double r, const float* y, double* sum) {
#pragma omp simd
    for (size_t j = 0; j < d; j++) {
        sum[j] += r * double(y[j]) * double(y[j]);
    }
}

constexpr Kernels table = {
        finish,
        split,
        lane_max,
        exp_all,
        distance,
        norm,
        add,
        add_squares,
};

} // namespace
} // namespace gmm
