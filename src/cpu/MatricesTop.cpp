#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../ParallelFor.h"
#include "Matrices.h"

namespace gmm {

namespace {

using Ranked = std::pair<double, int32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// Blocks of rows for the threads, of so many rows at least.
constexpr size_t kBlocks = 64, kLeastRows = 16;

void keep_best(size_t m, std::vector<Ranked>& best) {
    std::partial_sort(
            best.begin(),
            best.begin() + m,
            best.end(),
            [](const Ranked& a, const Ranked& b) {
                return a.first > b.first ||
                        (a.first == b.first && a.second < b.second);
            });
    best.resize(m);
}

} // namespace

void CpuBackend::top_of_matrices(
        const Rows& x,
        size_t m,
        int64_t* components,
        double* log_joint,
        float* distances,
        float* log_prob,
        EStep order) {
    const size_t d = model.d, k = model.k;
    const bool is_full = model.covariance == Covariance::full;
    const bool by_distance = order == EStep::hard;
    const Scorer& nearest = scorer(EStep::hard);
    const FullScorer* full = is_full ? &matrix_scorer() : nullptr;
    const Scorer* soft = is_full ? nullptr : &scorer(EStep::soft);
    const double log_volume = d * std::log(double(frame.scale));

    // One block's rows, the m best of each in `best`.
    auto rank = [&](const FrameBlock& block,
                    size_t begin,
                    MatrixScratch& scratch,
                    std::vector<std::vector<Ranked>>& best) {
        const size_t n = block.norm.size();
        const bool wants_soft = !by_distance || log_prob ||
                (log_joint && !is_full); // which reads z
        if (is_full && wants_soft) {
            // Only the best itself is sure to be within reach.
            const bool all = !by_distance && m > 1;
            full->score(
                    n,
                    block.y.data(),
                    block.norm.data(),
                    all ? std::numeric_limits<double>::infinity()
                        : matrix_reach(k, kLeastResponsibility),
                    scratch.full);
            scratch.top.assign(n, -std::numeric_limits<double>::infinity());
            scratch.sum.assign(n, 0.0);
            for (const FullFound& f : scratch.full.found) {
                scratch.top[f.row] = std::max(scratch.top[f.row], f.value);
            }
            for (const FullFound& f : scratch.full.found) {
                scratch.sum[f.row] += std::exp(f.value - scratch.top[f.row]);
                if (!by_distance) {
                    best[f.row].emplace_back(f.value, f.component);
                }
            }
        }
        if (!is_full && wants_soft) {
            scratch.z.resize(n * d);
            scratch.norm.resize(n);
            whiten(n,
                   d,
                   precision_factor(model, 0),
                   block.y.data(),
                   scratch.z.data(),
                   scratch.norm.data());
        }
        for (const Scorer* scores : {soft, &nearest}) {
            const bool is_soft = scores == soft;
            if (!scores || !(is_soft ? wants_soft : by_distance)) {
                continue;
            }
            const float* rows = is_soft ? scratch.z.data() : block.y.data();
            const double* norm =
                    is_soft ? scratch.norm.data() : block.norm.data();
            scratch.v.resize(n * scores->stride);
            scores->multiply(n, rows, scratch.v.data());
            for (size_t i = 0; i < n; i++) {
                if (!std::isfinite(block.norm[i])) {
                    continue;
                }
                const float* y = rows + i * d;
                float* v = scratch.v.data() + i * scores->stride;
                const float largest = scores->finish(norm[i], v);
                if (is_soft && log_prob) {
                    scores->select(y, v, largest, scratch.candidates);
                    log_prob[begin + i] =
                            scratch.candidates.normalise() + log_volume;
                }
                if (is_soft == !by_distance) {
                    scores->select_best(
                            m, y, v, largest, scratch.candidates, best[i]);
                }
            }
        }
        for (size_t i = 0; i < n; i++) {
            if (!std::isfinite(block.norm[i])) {
                best[i].clear();
                if (log_prob) {
                    log_prob[begin + i] = -kInfinity;
                }
                continue;
            }
            if (is_full && log_prob) {
                log_prob[begin + i] =
                        scratch.top[i] + std::log(scratch.sum[i]) + log_volume;
            }
            keep_best(m, best[i]);
        }
    };

    const SerialBlas serial_blas;
    const size_t threads = size_t(omp_get_max_threads());
    // Not by the threads: the blocks of a product show in its last bits.
    const size_t rows = std::min(
            block_rows(k, d),
            std::max(kLeastRows, (x.n + kBlocks - 1) / kBlocks));
    std::vector<MatrixScratch> scratch(threads, MatrixScratch(k));
    parallel_for_workers((x.n + rows - 1) / rows, [&](size_t b, size_t w) {
        const size_t begin = b * rows;
        Rows part = x;
        part.n = std::min(rows, x.n - begin);
        part.data = static_cast<const std::byte*>(x.data) + begin * x.stride;
        FrameBlock block;
        block.load(part, frame);
        MatrixScratch& mine = scratch[w];
        std::vector<std::vector<Ranked>> best(part.n);
        rank(block, begin, mine, best);
        for (size_t i = 0; i < part.n; i++) {
            const float* y = block.y.data() + i * d;
            for (size_t r = 0; r < m; r++) {
                const size_t at = (begin + i) * m + r;
                const bool finite = !best[i].empty();
                const int64_t c = finite ? best[i][r].second : -1;
                components[at] = c;
                if (log_joint) {
                    const double value = !finite ? -kInfinity
                                                 : log_volume +
                                    (is_full ? full->exact(y, c)
                                             : soft->exact(
                                                       mine.z.data() + i * d,
                                                       c));
                    log_joint[at] = std::isnan(value) ? -kInfinity : value;
                }
                if (distances) {
                    distances[at] = finite
                            ? nearest.distance(y, c) / frame.scale / frame.scale
                            : kInfinity;
                }
            }
        }
    });
}

} // namespace gmm
