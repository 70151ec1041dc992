#pragma once

#include <cstddef>

namespace faiss_ext {

/// Weights w that fit target ~ w.x by least squares with a small ridge.
/// rows of `width` terms; target, size n.
void fit_linear(
        size_t n,
        size_t width,
        const float* rows,
        const float* target,
        float* w);

/// The same for logit(target) ~ w.x by maximum likelihood (Newton's method),
/// targets in [0, 1].
void fit_logistic(
        size_t n,
        size_t width,
        const float* rows,
        const float* target,
        float* w);

} // namespace faiss_ext
