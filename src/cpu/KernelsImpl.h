// Included by one source file for each instruction set, which first defines the
// vector type V, the number of V that sums of a product may take in registers
// and the rows that they are of at most, and which is compiled with that set's
// flags. Standard headers with inline functions stay out: the linker might keep
// the copy that was compiled for a newer processor than the one the program
// runs on.

#include "Kernels.h"
#include "KernelsFewImpl.h"

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
    const V floors = V::all(floor);
    V sum = V::all(0);
    size_t n = 0;
    for (size_t i = 0; i < k; i += kLanes) {
        const V values = V::load(v + i);
        if (at_least(values, lowest) == 0) {
            continue;
        }
        uint32_t selected = at_least(values, above);
        // exp_lanes() ends at e^-87, which is too much of what is far below
        // where the shift turns out to be hundreds of nats too high
        const uint32_t below = ~at_least(values, floors);
        sum = sum + without(exp_lanes(values - shifts), selected | below);
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

double exponentials(size_t k, float threshold, float shift, float* v) {
    const V shifts = V::all(shift), above = V::all(threshold);
    V sum = V::all(0);
    for (size_t i = 0; i < k; i += kLanes) {
        const V x = V::load(v + i);
        const V e = without(exp_lanes(x - shifts), ~at_least(x, above));
        e.store(v + i);
        sum = sum + e;
    }
    float lanes[kLanes];
    sum.store(lanes);
    double out = 0;
    for (float lane : lanes) {
        out += lane;
    }
    return out;
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

float subtract(size_t d, const float* y, const float* mean, float* out) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < d; j++) {
        const float diff = y[j] - mean[j];
        out[j] = diff;
        sum += diff * diff;
    }
    return sum;
}

// One block of rows: their sums stay in registers.
template <int Rows>
void squares_of(
        size_t depth,
        const float* v,
        size_t stride,
        const float* u,
        float* square) {
    V sum[Rows];
    for (int r = 0; r < Rows; r++) {
        sum[r] = V::all(0);
    }
    for (size_t i = 0; i < depth; i++) {
        const V column = V::load(u + i * kLanes);
        for (int r = 0; r < Rows; r++) {
            sum[r] = fma(V::all(v[r * stride + i]), column, sum[r]);
        }
    }
    for (int r = 0; r < Rows; r++) {
        float lanes[kLanes], total = 0;
        (sum[r] * sum[r]).store(lanes);
#pragma omp simd reduction(+ : total)
        for (size_t l = 0; l < kLanes; l++) {
            total += lanes[l];
        }
        square[r] += total;
    }
}

void squares(
        size_t rows,
        size_t depth,
        const float* v,
        size_t stride,
        const float* u,
        float* square) {
    size_t r = 0;
    for (; r + kSquareRows <= rows; r += kSquareRows) {
        squares_of<kSquareRows>(depth, v + r * stride, stride, u, square + r);
    }
    for (; r + 4 <= rows; r += 4) {
        squares_of<4>(depth, v + r * stride, stride, u, square + r);
    }
    for (; r < rows; r++) {
        squares_of<1>(depth, v + r * stride, stride, u, square + r);
    }
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

// The product of M rows and P panels, held in registers; with shifts, half the
// negative squares of scaled differences.
template <size_t M, size_t P, bool Shifts>
void product_tile(
        size_t d,
        const float* q,
        const float* means,
        const float* shifts,
        float* out,
        size_t stride) {
    V sum[M][P];
    for (auto& row : sum) {
        for (V& s : row) {
            s = V::all(0);
        }
    }
    for (size_t j = 0; j < d; j++) {
        V mean[P], shift[P];
        for (size_t p = 0; p < P; p++) {
            mean[p] = V::load(means + (p * d + j) * kLanes);
            if constexpr (Shifts) {
                shift[p] = V::load(shifts + (p * d + j) * kLanes);
            }
        }
        for (size_t i = 0; i < M; i++) {
            const V y = V::all(q[j * M + i]);
            for (size_t p = 0; p < P; p++) {
                if constexpr (Shifts) {
                    const V off = fms(y, mean[p], shift[p]);
                    sum[i][p] = fma(off, off, sum[i][p]);
                } else {
                    sum[i][p] = fma(y, mean[p], sum[i][p]);
                }
            }
        }
    }
    for (size_t i = 0; i < M; i++) {
        for (size_t p = 0; p < P; p++) {
            if constexpr (Shifts) {
                sum[i][p] = V::all(-0.5f) * sum[i][p];
            }
            sum[i][p].store(out + i * stride + p * kLanes);
        }
    }
}

// Few rows take more panels at a time, to have enough sums on their way.
template <size_t M, size_t P, bool Shifts>
void product_panels(
        size_t d,
        const float* q,
        size_t panels,
        const float* means,
        const float* shifts,
        float* out,
        size_t stride) {
    if constexpr (M * P <= kProductSums) {
        size_t p = 0;
        for (; p + P <= panels; p += P) {
            const size_t at = p * d * kLanes;
            product_tile<M, P, Shifts>(
                    d,
                    q,
                    means + at,
                    Shifts ? shifts + at : nullptr,
                    out + p * kLanes,
                    stride);
        }
        panels -= p;
        means += p * d * kLanes;
        shifts += Shifts ? p * d * kLanes : 0;
        out += p * kLanes;
    }
    if constexpr (P > 1) {
        product_panels<M, P / 2, Shifts>(
                d, q, panels, means, shifts, out, stride);
    }
}

template <size_t M, bool Shifts>
void product_rows(
        size_t rows,
        size_t d,
        const float* q,
        size_t panels,
        const float* means,
        const float* shifts,
        float* out,
        size_t stride) {
    if (rows == M) {
        product_panels<M, 8, Shifts>(d, q, panels, means, shifts, out, stride);
    } else if constexpr (M > 1) {
        product_rows<M - 1, Shifts>(
                rows, d, q, panels, means, shifts, out, stride);
    }
}

void product(
        size_t rows,
        size_t d,
        const float* q,
        size_t panels,
        const float* means,
        float* out,
        size_t stride) {
    product_rows<kProductRows, false>(
            rows, d, q, panels, means, nullptr, out, stride);
}

void exponents(
        size_t rows,
        size_t d,
        const float* q,
        size_t panels,
        const float* scales,
        const float* shifts,
        float* out,
        size_t stride) {
    product_rows<kProductRows, true>(
            rows, d, q, panels, scales, shifts, out, stride);
}

constexpr Kernels table = {
        finish,
        split,
        select,
        exponentials,
        lane_max,
        exp_all,
        distance,
        subtract,
        squares,
        mahalanobis,
        moments,
        norm,
        add,
        add_squares,
        kProductRows,
        product,
        exponents,
};

} // namespace
} // namespace gmm
