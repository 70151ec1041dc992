#include "faiss_ext/codes/Rotation.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// Vectors whose rounds take turns: those of one wait for each other.
constexpr size_t kTogether = 8;

/// out = scale (x - centre)
FAISS_EXT_SIMD_CLONES
void centre_and_scale(
        size_t d,
        const float* __restrict x,
        const float* __restrict centre,
        float scale,
        float* __restrict out) {
    for (size_t j = 0; j < d; j++) {
        out[j] = scale * (x[j] - (centre ? centre[j] : 0));
    }
}

} // namespace

Rotation::Rotation(size_t d_in)
        : d(d_in), power(d_in > 0 ? 1 : 0), signs(kRounds * d_in) {
    while (power > 0 && 2 * power <= d) {
        power *= 2;
    }
    std::mt19937 rng(1234);
    for (float& s : signs) {
        s = rng() >> 31 ? -1.0f : 1.0f;
    }
    if (power < d) {
        order.resize(d);
        std::iota(order.begin(), order.end(), 0);
        for (size_t j = d; j > 1; j--) { // Fisher and Yates
            std::swap(order[j - 1], order[rng() % j]);
        }
    }
}

void Rotation::apply(
        size_t n,
        const float* x,
        const float* centre,
        float scale,
        float* out,
        const uint32_t* rows) const {
    const CodeKernels& kernels = best_code_kernels();
    std::vector<float> before(order.empty() ? 0 : d);
    for (size_t i0 = 0; i0 < n; i0 += kTogether) {
        const size_t i1 = std::min(n, i0 + kTogether);
        for (size_t i = i0; i < i1; i++) {
            const float* xi = x + (rows ? rows[i] : i) * d;
            centre_and_scale(d, xi, centre, scale, out + i * d);
        }
        for (size_t round = 0; round < kRounds; round++) {
            const float* s = signs.data() + round * d;
            const size_t begin = round % 2 ? d - power : 0;
            for (size_t i = i0; i < i1; i++) {
                float* y = out + i * d;
                if (round == kRounds / 2 && !order.empty()) {
                    std::copy(y, y + d, before.begin());
                    for (size_t j = 0; j < d; j++) {
                        y[j] = before[order[j]];
                    }
                }
                for (size_t j = 0; j < begin; j++) {
                    y[j] *= s[j];
                }
                kernels.hadamard(y + begin, s + begin, power);
                for (size_t j = begin + power; j < d; j++) {
                    y[j] *= s[j];
                }
            }
        }
    }
}

void Rotation::apply_inverse(size_t n, const float* y, float* out) const {
    const CodeKernels& kernels = best_code_kernels();
    std::vector<float> after(order.empty() ? 0 : d);
    std::copy(y, y + n * d, out);
    for (size_t i = 0; i < n; i++) {
        float* x = out + i * d;
        for (size_t round = kRounds; round-- > 0;) {
            const float* s = signs.data() + round * d;
            kernels.hadamard( // its own inverse
                    x + (round % 2 ? d - power : 0),
                    nullptr,
                    power);
            for (size_t j = 0; j < d; j++) {
                x[j] *= s[j];
            }
            if (round == kRounds / 2 && !order.empty()) {
                std::copy(x, x + d, after.begin());
                for (size_t j = 0; j < d; j++) {
                    x[order[j]] = after[j];
                }
            }
        }
    }
}

} // namespace faiss_ext
