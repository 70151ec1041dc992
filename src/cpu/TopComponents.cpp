#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../Error.h"
#include "../ParallelFor.h"
#include "CpuBackend.h"

namespace gmm {

void CpuBackend::top_components(
        const Rows& x,
        size_t m,
        int64_t* components,
        double* log_joint,
        float* distances,
        float* log_prob,
        EStep order) {
    if (model.k == 0 || frame.center.size() != model.d || x.d != model.d) {
        throw_invalid(
                "x.d = %zu, expected the d of set_model (%zu) and of set_data "
                "(%zu)",
                x.d,
                model.d,
                frame.center.size());
    }
    if (m == 0 || m > model.k) {
        throw_invalid("m = %zu, expected 1 to k = %zu", m, model.k);
    }
    check_array("x.data", x.data, x.n);
    check_array("components", components, x.n);
    if (has_matrices(model.covariance)) {
        top_of_matrices(
                x, m, components, log_joint, distances, log_prob, order);
        return;
    }
    const size_t d = model.d;
    const Scorer& soft = scorer(EStep::soft);
    const Scorer& ranking = scorer(order);
    const double scale = frame.scale;
    const double log_volume = d * std::log(scale);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();

    // The order's m best components of a row.
    auto write_best = [&](size_t i,
                          const float* y,
                          const std::vector<std::pair<double, int32_t>>& best) {
        for (size_t r = 0; r < m; r++) {
            const bool finite = !best.empty();
            const int64_t c = finite ? best[r].second : -1;
            components[i * m + r] = c;
            if (log_joint) {
                log_joint[i * m + r] =
                        finite ? soft.exact(y, c) + log_volume : -kInfinity;
            }
            if (distances) {
                distances[i * m + r] = finite
                        ? soft.distance(y, c) / scale / scale
                        : kInfinity;
            }
        }
    };

    // One scorer's part of a block that begins with row `begin`.
    auto score = [&](const Scorer& scorer,
                     const FrameBlock& block,
                     size_t begin,
                     Scratch& scratch) {
        std::vector<std::pair<double, int32_t>> best;
        const size_t n = block.norm.size();
        scratch.v.resize(n * scorer.stride);
        scorer.multiply(n, block.y.data(), scratch.v.data());
        for (size_t i = 0; i < n; i++) {
            const float* y = block.y.data() + i * d;
            float* v = scratch.v.data() + i * scorer.stride;
            const bool finite = std::isfinite(block.norm[i]);
            const float largest = finite ? scorer.finish(block.norm[i], v) : 0;
            if (log_prob && &scorer == &soft) {
                float& out = log_prob[begin + i];
                out = -kInfinity;
                if (finite) {
                    scorer.select(y, v, largest, scratch.candidates);
                    out = scratch.candidates.normalise() + log_volume;
                }
            }
            if (&scorer == &ranking) {
                best.clear();
                if (finite) {
                    scorer.select_best(
                            m, y, v, largest, scratch.candidates, best);
                }
                write_best(begin + i, y, best);
            }
        }
    };

    const size_t threads = size_t(omp_get_max_threads());
    const size_t rows = std::clamp<size_t>(
            (x.n + threads - 1) / threads, 1, block_rows(model.k, d));
    std::vector<Scratch> scratch(threads, Scratch(model.k));
    parallel_for_workers((x.n + rows - 1) / rows, [&](size_t b, size_t w) {
        const size_t begin = b * rows;
        Rows part = x;
        part.n = std::min(rows, x.n - begin);
        part.data = static_cast<const std::byte*>(x.data) + begin * x.stride;
        FrameBlock block;
        block.load(part, frame);
        Scratch& mine = scratch[w];
        if (log_prob && &ranking != &soft) {
            score(soft, block, begin, mine);
        }
        score(ranking, block, begin, mine);
    });
}

} // namespace gmm
