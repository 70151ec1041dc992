#include "Screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "Kernels.h"

namespace gmm {

#ifdef GMM_X86_64
extern const ByteKernels kernels_vnni;
#endif

const ByteKernels* byte_kernels() {
#ifdef GMM_X86_64
    if (&best_kernels() == kernels(InstructionSet::avx512) &&
        __builtin_cpu_supports("avx512vnni")) {
        return &kernels_vnni;
    }
#endif
    return nullptr;
}

// Below these a product is too small a part of a row's work.
static constexpr size_t kLeastComponents = 128, kLeastDimensions = 32;
// Of more, sums of products of bytes are no 32-bit numbers.
static constexpr size_t kMostDimensions = (size_t(1) << 31) / (127 * 127);

Screen::Screen(size_t n, size_t width, const float* factors) {
    kernel = byte_kernels();
    if (!kernel || n < kLeastComponents || width < kLeastDimensions ||
        width > kMostDimensions) {
        return;
    }
    k = n;
    d = width;
    const size_t panels = (k + kLanes - 1) / kLanes;
    means.assign(panels * quads() * 4 * kLanes, 128);
    scales.resize(panels * kLanes);
    errors.resize(panels * kLanes);
    norms.resize(panels * kLanes);
    std::vector<int8_t> bytes(d);
    for (size_t c = 0; c < k; c++) {
        uint8_t* panel = means.data() + c / kLanes * quads() * 4 * kLanes;
        const float* f = factors + c * d;
        const auto done = kernel->quantise(d, f, bytes.data());
        for (size_t j = 0; j < d; j++) {
            panel[(j / 4 * kLanes + c % kLanes) * 4 + j % 4] =
                    uint8_t(bytes[j] + 128);
        }
        scales[c] = done.scale;
        errors[c] = done.error;
        norms[c] = std::sqrt(best_kernels().norm(d, f));
    }
}

double Screen::distance_error() const {
    // Each addition, and three operations on each difference.
    return std::ldexp(double(d) / kLanes + 8, -24);
}

void Screen::multiply(
        size_t n,
        const float* y,
        Scratch& scratch,
        float* v,
        size_t stride) const {
    constexpr size_t kRows = ByteKernels::kRows;
    const size_t tiles = (n + kRows - 1) / kRows;
    const size_t panels = (k + kLanes - 1) / kLanes;
    const size_t tile = quads() * 4 * kRows;
    scratch.q.assign(tiles * tile, 0);
    scratch.offset.assign(tiles * kRows, 0);
    scratch.bytes.assign(quads() * 4, 0);
    scratch.scale.resize(n);
    scratch.error.resize(n);
    for (size_t i = 0; i < n; i++) {
        int8_t* to = scratch.q.data() + i / kRows * tile + i % kRows * 4;
        const auto done = kernel->quantise(d, y + i * d, scratch.bytes.data());
        for (size_t j = 0; j < quads(); j++) {
            std::memcpy(to + j * 4 * kRows, scratch.bytes.data() + 4 * j, 4);
        }
        scratch.offset[i] = 128 * done.sum;
        scratch.scale[i] = done.scale;
        scratch.error[i] = done.error;
    }
    // Two panels serve all rows before the next two come.
    for (size_t p = 0; p < panels; p += 2) {
        for (size_t t = 0; t < tiles; t++) {
            kernel->product(
                    std::min(kRows, n - t * kRows),
                    quads(),
                    scratch.q.data() + t * tile,
                    scratch.offset.data() + t * kRows,
                    std::min<size_t>(2, panels - p),
                    means.data() + p * quads() * 4 * kLanes,
                    v + t * kRows * stride + p * kLanes,
                    stride);
        }
    }
}

float Screen::bounds(
        size_t i,
        double norm,
        const float* bias,
        const float* precision,
        const Scratch& scratch,
        float* v) const {
    // Infinity times the padding's 0 would leave a NaN there.
    constexpr double kMost = std::numeric_limits<float>::max();
    ByteKernels::Terms terms;
    terms.scale = scratch.scale[i];
    terms.error = float(std::min<double>(scratch.error[i], kMost));
    terms.norm = float(std::min(std::sqrt(norm) + scratch.error[i], kMost));
    terms.half_norm = float(std::min(0.5 * norm, kMost));
    terms.scales = scales.data();
    terms.errors = errors.data();
    terms.norms = norms.data();
    terms.bias = bias;
    terms.precision = precision;
    return kernel->bounds(scales.size(), terms, v);
}

} // namespace gmm
