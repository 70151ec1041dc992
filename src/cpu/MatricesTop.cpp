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

/// One thread's blocks of rows.
struct CpuBackend::MatrixTop {
    const GaussianMixture& model;
    const Scorer& nearest;
    const FullScorer* full; ///< nullptr: tied
    const Scorer* soft;     ///< nullptr: full
    const double log_volume;
    const bool by_distance;
    const size_t m;
    MatrixScratch scratch;
    FrameBlock block = {};
    std::vector<std::vector<Ranked>> best = {}; ///< the m best of each row

    size_t rows() const {
        return block.norm.size();
    }

    /// @param log_prob  of the block, or nullptr
    void rank(bool wants_log_joint, float* log_prob);
    double log_joint(size_t i, int64_t c) const;

private:
    void find_full(); // of full covariances, whatever is near
    void find_by(const Scorer& scores, float* log_prob);
};

void CpuBackend::MatrixTop::find_full() {
    const size_t n = rows();
    // Only the best itself is sure to be within reach.
    const bool all = !by_distance && m > 1;
    full->score(
            n,
            block.y.data(),
            block.norm.data(),
            all ? std::numeric_limits<double>::infinity()
                : matrix_reach(model.k, kLeastResponsibility),
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

void CpuBackend::MatrixTop::find_by(const Scorer& scores, float* log_prob) {
    const size_t n = rows(), d = model.d;
    const bool is_soft = &scores == soft;
    const float* y = is_soft ? scratch.z.data() : block.y.data();
    const double* norm = is_soft ? scratch.norm.data() : block.norm.data();
    scratch.v.resize(n * scores.stride);
    scores.multiply(n, y, scratch.v.data());
    for (size_t i = 0; i < n; i++, y += d) {
        if (!std::isfinite(block.norm[i])) {
            continue;
        }
        float* v = scratch.v.data() + i * scores.stride;
        const float largest = scores.finish(norm[i], v);
        if (is_soft && log_prob) {
            scores.select(y, v, largest, scratch.candidates);
            log_prob[i] = scratch.candidates.normalise() + log_volume;
        }
        if (is_soft == !by_distance) {
            scores.select_best(m, y, v, largest, scratch.candidates, best[i]);
        }
    }
}

void CpuBackend::MatrixTop::rank(bool wants_log_joint, float* log_prob) {
    const size_t n = rows(), d = model.d;
    best.assign(n, {});
    const bool wants_soft = !by_distance || log_prob ||
            (wants_log_joint && !full); // which reads z
    if (full && wants_soft) {
        find_full();
    } else if (wants_soft) {
        scratch.z.resize(n * d);
        scratch.norm.resize(n);
        whiten(n,
               d,
               precision_factor(model, 0),
               block.y.data(),
               scratch.z.data(),
               scratch.norm.data());
        find_by(*soft, log_prob);
    }
    if (by_distance) {
        find_by(nearest, nullptr);
    }
    for (size_t i = 0; i < n; i++) {
        if (!std::isfinite(block.norm[i])) {
            best[i].clear();
            if (log_prob) {
                log_prob[i] = -kInfinity;
            }
            continue;
        }
        if (full && log_prob) {
            log_prob[i] =
                    scratch.top[i] + std::log(scratch.sum[i]) + log_volume;
        }
        keep_best(m, best[i]);
    }
}

double CpuBackend::MatrixTop::log_joint(size_t i, int64_t c) const {
    const size_t at = i * model.d;
    const double value = log_volume +
            (full ? full->exact(block.y.data() + at, c)
                  : soft->exact(scratch.z.data() + at, c));
    return std::isnan(value) ? -kInfinity : value;
}

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
    const MatrixTop fresh{
            model,
            scorer(EStep::hard),
            is_full ? &matrix_scorer() : nullptr,
            is_full ? nullptr : &scorer(EStep::soft),
            d * std::log(double(frame.scale)),
            order == EStep::hard,
            m,
            MatrixScratch(k)};
    const SerialBlas serial_blas;
    // Not by the threads: the blocks of a product show in its last bits.
    const size_t rows = std::min(
            block_rows(k, d),
            std::max(kLeastRows, (x.n + kBlocks - 1) / kBlocks));
    std::vector<MatrixTop> tops(size_t(omp_get_max_threads()), fresh);
    parallel_for_workers((x.n + rows - 1) / rows, [&](size_t b, size_t w) {
        const size_t begin = b * rows;
        Rows part = x;
        part.n = std::min(rows, x.n - begin);
        part.data = static_cast<const std::byte*>(x.data) + begin * x.stride;
        MatrixTop& top = tops[w];
        top.block.load(part, frame);
        top.rank(log_joint != nullptr, log_prob ? log_prob + begin : nullptr);
        for (size_t i = 0; i < part.n; i++) {
            const bool finite = !top.best[i].empty();
            for (size_t r = 0; r < m; r++) {
                const size_t at = (begin + i) * m + r;
                const int64_t c = finite ? top.best[i][r].second : -1;
                components[at] = c;
                if (log_joint) {
                    log_joint[at] = finite ? top.log_joint(i, c) : -kInfinity;
                }
                if (distances) {
                    const float* y = top.block.y.data() + i * d;
                    distances[at] = finite ? top.nearest.distance(y, c) /
                                    frame.scale / frame.scale
                                           : kInfinity;
                }
            }
        }
    });
}

} // namespace gmm
