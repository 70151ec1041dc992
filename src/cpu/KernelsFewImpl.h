// Part of KernelsImpl.h: what full covariances of few dimensions need.

#include "Kernels.h"

namespace gmm {
namespace {

size_t select(
        size_t n, const float* x, float least, int32_t* index, float* rest) {
    const V above = V::all(least);
    V others = V::all(0);
    size_t found = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const V values = V::load(x + i);
        uint32_t bits = at_least(values, above);
        others = others + without(values, bits);
        for (; bits != 0; bits &= bits - 1) {
            index[found++] = int32_t(i + size_t(__builtin_ctz(bits)));
        }
    }
    float lanes[kLanes], sum = 0;
    others.store(lanes);
    for (float lane : lanes) {
        sum += lane;
    }
    for (; i < n; i++) {
        if (x[i] >= least) {
            index[found++] = int32_t(i);
        } else {
            sum += x[i];
        }
    }
    *rest = sum;
    return found;
}

// T vectors of rows: enough sums on their way.
template <size_t T>
void mahalanobis_rows(
        size_t stride,
        size_t d,
        const float* y,
        const float* mean,
        const float* u,
        size_t pitch,
        float* square,
        float* length) {
    V diff[kFewDimensions][T], sum[T], norm[T];
    for (size_t t = 0; t < T; t++) {
        sum[t] = norm[t] = V::all(0);
    }
    for (size_t j = 0; j < d; j++) {
        const V center = V::all(mean[j]);
        for (size_t t = 0; t < T; t++) {
            diff[j][t] = V::load(y + j * stride + t * kLanes) - center;
            norm[t] = fma(diff[j][t], diff[j][t], norm[t]);
        }
    }
    for (size_t first = 0; first < d; first += 4) {
        V part[4][T];
        for (auto& column : part) {
            for (V& v : column) {
                v = V::all(0);
            }
        }
        const size_t depth = first + 4 < d ? first + 4 : d;
        for (size_t i = 0; i < depth; i++) {
            const float* const row = u + i * pitch + first;
            for (size_t c = 0; c < 4; c++) {
                const V factor = V::all(row[c]);
                for (size_t t = 0; t < T; t++) {
                    part[c][t] = fma(diff[i][t], factor, part[c][t]);
                }
            }
        }
        for (auto& column : part) {
            for (size_t t = 0; t < T; t++) {
                sum[t] = fma(column[t], column[t], sum[t]);
            }
        }
    }
    for (size_t t = 0; t < T; t++) {
        sum[t].store(square + t * kLanes);
        norm[t].store(length + t * kLanes);
    }
}

void mahalanobis(
        size_t rows,
        size_t d,
        const float* y,
        const float* mean,
        const float* u,
        size_t pitch,
        float* square,
        float* length) {
    constexpr size_t kStep = kRowVectors * kLanes;
    size_t i = 0;
    for (; i + kStep <= rows; i += kStep) {
        mahalanobis_rows<kRowVectors>(
                rows, d, y + i, mean, u, pitch, square + i, length + i);
    }
    for (; i < rows; i += kLanes) {
        mahalanobis_rows<1>(
                rows, d, y + i, mean, u, pitch, square + i, length + i);
    }
}

// In doubles: what is left of a column that nearly follows from others is
// smaller than the rounding of the products.
void moments(
        size_t n,
        size_t d,
        const float* const* y,
        const float* mean,
        const float* r,
        double* first,
        double* second) {
    typedef double W __attribute__((vector_size(sizeof(V))));
    constexpr size_t kWide = sizeof(W) / sizeof(double), kTall = kMomentTall;
    static_assert(kFewDimensions % kWide == 0 && kFewDimensions % kTall == 0);
    alignas(W) double diff[kMomentRows][kFewDimensions];
    double weighted[kMomentRows][kFewDimensions];
    constexpr size_t kPadded = kWide > kTall ? kWide : kTall;
    for (size_t i = 0; i < n; i++) {
        const float* const row = y[i];
        const double weight = r[i];
        for (size_t j = 0; j < d; j++) {
            const double x = double(row[j]) - mean[j];
            diff[i][j] = x;
            weighted[i][j] = weight * x;
        }
        for (size_t j = d; j < (d + kPadded - 1) / kPadded * kPadded; j++) {
            diff[i][j] = weighted[i][j] = 0;
        }
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            first[j] += weighted[i][j];
        }
    }
    for (size_t x = 0; x < d; x += kTall) {
        for (size_t j = 0; j < x + kTall && j < d; j += kWide) {
            W tile[kTall] = {};
            for (size_t i = 0; i < n; i++) {
                const W right = *reinterpret_cast<const W*>(diff[i] + j);
                for (size_t a = 0; a < kTall; a++) {
                    tile[a] += weighted[i][x + a] * right;
                }
            }
            for (size_t a = 0; a < kTall && x + a < d; a++) {
                double* const out = second + (x + a) * d + j;
                for (size_t l = 0; l < kWide && j + l <= x + a; l++) {
                    out[l] += tile[a][l];
                }
            }
        }
    }
}

} // namespace
} // namespace gmm
