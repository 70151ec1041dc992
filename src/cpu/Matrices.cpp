#include "Matrices.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../Error.h"
#include "../ParallelFor.h"
#include "MomentSums.h"

namespace gmm {

/// Blocks that many threads may work on, if these have some 256 rows.
static constexpr size_t kBlocksTogether = 32;

double matrix_reach(size_t k, float least_responsibility) {
    return std::log(double(k)) - std::log(double(least_responsibility));
}

GaussianMixture whitened(const GaussianMixture& model) {
    const size_t d = model.d;
    const float* factor = precision_factor(model, 0);
    const double volume = -0.5 * log_determinant(d, factor);
    GaussianMixture out = model;
    out.covariance = Covariance::tied_spherical;
    out.precisions_cholesky.clear();
    out.variances = {1};
    for (size_t c = 0; c < model.k; c++) {
        std::vector<double> z(d);
        for (size_t i = 0; i < d; i++) {
            for (size_t j = i; j < d; j++) {
                z[j] += double(model.means[c * d + i]) * factor[i * d + j];
            }
        }
        std::copy(z.begin(), z.end(), out.means.begin() + c * d);
        out.log_weights[c] += volume;
    }
    return out;
}

void whiten(
        size_t n,
        size_t d,
        const float* factor,
        const float* y,
        float* z,
        double* norm) {
    // Row-major U is column-major U^T.
    sgemm("N", d, n, d, factor, d, y, d, z, d);
    for (size_t i = 0; i < n; i++) {
        norm[i] = best_kernels().norm(d, z + i * d);
    }
}

struct CpuBackend::MatrixBlock : ScoredBlock {
    std::vector<double> kept;    ///< tied: sum_c w_i r_ic of each row's entries
    std::vector<double> moments; ///< tied: sum_i kept_i y_i y_i^T, d * d

    /// Of tied covariances: moments of what was kept. Of w_i they would differ
    /// from n_k mu mu^T, since responsibilities are floats and the least are
    /// left out, by what is small beside these and not beside the covariance.
    void sum_moments(size_t d, std::vector<double>& rows) {
        moments.assign(d * d, 0.0);
        OuterProducts sum(d, rows, moments.data());
        for (size_t i = 0; i < norm.size(); i++) {
            sum.add(kept[i], y.data() + i * d);
        }
        sum.flush();
    }

    /// Takes over what is not negligible of all responsibilities.
    void take_all(
            const FullScorer::SmallScratch& from,
            const float* weights,
            size_t k,
            float least,
            std::vector<int32_t>& index) {
        const size_t n = norm.size();
        index.resize(n);
        offset.resize(k + 1);
        entries.resize(std::max(entries.size(), k * n)); // offset[k] count
        Entry* to = entries.data();
        for (size_t c = 0; c < k; c++) {
            offset[c] = int32_t(to - entries.data());
            const float* const r = from.r.data() + c * from.padded;
            float rest;
            const size_t found =
                    best_kernels().select(n, r, least, index.data(), &rest);
            if (!weights) {
                dropped_mass += rest;
                for (size_t e = 0; e < found; e++) {
                    *to++ = {index[e], r[index[e]]};
                }
                continue;
            }
            for (size_t i = 0; i < n; i++) {
                if (r[i] < least) {
                    dropped_mass += double(weights[i]) * r[i];
                } else if (weights[i] != 0) {
                    *to++ = {int32_t(i), weights[i] * r[i]};
                }
            }
        }
        offset[k] = int32_t(to - entries.data());
    }
};

const FullScorer& CpuBackend::matrix_scorer() {
    std::lock_guard<std::mutex> lock(scorers_mutex);
    if (!full_scorer) {
        full_scorer = std::make_unique<const FullScorer>(model);
    }
    return *full_scorer;
}

void CpuBackend::score_matrices(
        EStep step,
        size_t begin,
        size_t count,
        MatrixScratch& scratch,
        MatrixBlock& block) {
    load_block(begin, count, scratch.raw, block);
    block.weight = block.objective = block.dropped_mass = 0;
    for (size_t i = 0; i < count; i++) {
        block.weight += weight_of(begin + i);
    }
    if (step == EStep::hard) {
        score_hard(scorer(step), begin, scratch, block);
        block.kept.resize(count);
        for (size_t i = 0; i < count; i++) {
            block.kept[i] = weight_of(begin + i);
        }
    } else if (model.covariance == Covariance::tied) {
        score_tied(begin, scratch, block);
    } else if (matrix_scorer().is_small()) {
        score_small(begin, scratch, block);
    } else {
        score_full(begin, scratch, block);
    }
}

// Full covariances in few dimensions.
void CpuBackend::score_small(
        size_t begin, MatrixScratch& scratch, MatrixBlock& block) {
    const size_t count = block.norm.size();
    FullScorer::SmallScratch& small = scratch.small;
    matrix_scorer().evaluate_small(
            count, block.y.data(), matrix_reach(model.k, least()), small);
    for (size_t i = 0; i < count; i++) {
        const float weight = weight_of(begin + i);
        block.objective += weight != 0 ? weight * small.log_prob[i] : 0.0;
    }
    block.take_all(
            small,
            weights ? weights + begin : nullptr,
            model.k,
            least(),
            scratch.index);
}

void CpuBackend::score_full(
        size_t begin, MatrixScratch& scratch, MatrixBlock& block) {
    const size_t count = block.norm.size();
    const float least_r = least();
    std::vector<FullFound>& near = scratch.full.found;
    matrix_scorer().score(
            count,
            block.y.data(),
            block.norm.data(),
            matrix_reach(model.k, least_r),
            scratch.full);
    scratch.top.assign(count, -std::numeric_limits<double>::infinity());
    scratch.sum.assign(count, 0.0);
    for (const FullFound& f : near) {
        scratch.top[f.row] = std::max(scratch.top[f.row], f.value);
    }
    for (FullFound& f : near) {
        f.value = std::exp(f.value - scratch.top[f.row]);
        scratch.sum[f.row] += f.value;
    }
    for (size_t i = 0; i < count; i++) {
        const float weight = weight_of(begin + i);
        if (weight != 0) {
            block.objective +=
                    weight * (scratch.top[i] + std::log(scratch.sum[i]));
        }
    }
    scratch.found.clear();
    for (const FullFound& f : near) {
        const double r = f.value / scratch.sum[f.row];
        const float weight = weight_of(begin + f.row);
        if (r < least_r) {
            block.dropped_mass += weight * r;
        } else if (weight != 0) {
            scratch.found.push_back({f.component, f.row, float(weight * r)});
        }
    }
    block.sort(scratch.found, model.k);
}

// By distances, since one matrix serves all.
void CpuBackend::score_tied(
        size_t begin, MatrixScratch& scratch, MatrixBlock& block) {
    const size_t count = block.norm.size(), d = model.d;
    const float least_r = least();
    const Scorer& scores = scorer(EStep::soft);
    scratch.z.resize(count * d);
    scratch.norm.resize(count);
    whiten(count,
           d,
           precision_factor(model, 0),
           block.y.data(),
           scratch.z.data(),
           scratch.norm.data());
    const float* const rows = scratch.z.data();
    const double* const norm = scratch.norm.data();
    block.kept.assign(count, 0.0);
    scratch.v.resize(count * scores.stride);
    scores.multiply(count, rows, scratch.v.data());
    Candidates& candidates = scratch.candidates;
    scratch.found.clear();
    for (size_t i = 0; i < count; i++) {
        const float weight = weight_of(begin + i);
        if (weight == 0) {
            continue;
        }
        const float* y = rows + i * d;
        float* v = scratch.v.data() + i * scores.stride;
        const float largest = scores.finish(norm[i], v);
        scores.select(y, v, largest, candidates);
        block.objective += weight * candidates.normalise();
        block.dropped_mass += weight * candidates.tail;
        for (size_t e = 0; e < candidates.n; e++) {
            const float r = candidates.value[e];
            if (r < least_r) {
                block.dropped_mass += weight * r;
            } else {
                scratch.found.push_back(
                        {candidates.index[e], int32_t(i), weight * r});
                block.kept[i] += weight * r;
            }
        }
    }
    block.sort(scratch.found, model.k);
}

/// Adds to the statistics those of component c of full covariances in few
/// dimensions.
template <class Block>
static void add_few(
        const std::vector<Block>& blocks, size_t c, SufficientStats& stats) {
    const size_t d = stats.d;
    FewMoments sum(d);
    for (const Block& block : blocks) {
        for (int32_t e = block.offset[c]; e < block.offset[c + 1]; e++) {
            const auto [row, r] = block.entries[e];
            sum.add(r, block.y.data() + size_t(row) * d);
        }
    }
    sum.finish(
            &stats.n_k[c],
            stats.sum_x.data() + c * d,
            stats.sum_x2.data() + c * num_moments(Covariance::full, 1, d));
}

/// The same in any number, also of tied covariances.
template <class Block>
static void add_component(
        const std::vector<Block>& blocks,
        size_t c,
        std::vector<double>& rows,
        SufficientStats& stats) {
    const size_t d = stats.d;
    const bool is_full = stats.covariance == Covariance::full;
    std::vector<double> square(is_full ? d * d : 0);
    OuterProducts sum(d, rows, square.data());
    for (const Block& block : blocks) {
        for (int32_t e = block.offset[c]; e < block.offset[c + 1]; e++) {
            const auto [row, r] = block.entries[e];
            const float* y = block.y.data() + size_t(row) * d;
            stats.n_k[c] += r;
            best_kernels().add(d, r, y, stats.sum_x.data() + c * d);
            if (is_full) {
                sum.add(r, y);
            } else {
                stats.sum_x2[c] += r * block.norm[row];
            }
        }
    }
    if (is_full) {
        sum.flush();
        add_packed(
                d,
                square.data(),
                stats.sum_x2.data() + c * num_moments(Covariance::full, 1, d));
    }
}

void CpuBackend::accumulate_matrices(EStep step, SufficientStats& stats) {
    const size_t n = source->n, k = model.k, d = model.d;
    const bool is_full = model.covariance == Covariance::full;
    stats = SufficientStats(model.covariance, k, d);

    const SerialBlas serial_blas;
    const size_t threads = size_t(omp_get_max_threads());
    // A component's rows make one product for many blocks together; how many
    // does not depend on the threads, since it shows in the bits. 16 MB of
    // vectors, and 256 MB of responsibilities if none is negligible.
    const bool few = is_full && d <= kFewDimensions;
    const size_t group = (size_t(1) << (few ? 20 : 22)) / std::max(d, k / 8);
    size_t rows = block_rows(k, d);
    if (is_full && step == EStep::soft) {
        const size_t for_threads = group / kBlocksTogether / 16 * 16;
        rows = std::min(
                matrix_scorer().block_rows(),
                std::max<size_t>(for_threads, 256));
    }
    rows = std::min(rows, n);
    const size_t n_blocks = (n + rows - 1) / rows;
    std::vector<MatrixBlock> blocks(
            std::clamp<size_t>(group / rows, 1, n_blocks));
    std::vector<MatrixScratch> scratch(threads, MatrixScratch(k));
    std::vector<double> total(is_full ? 0 : d * d);

    for (size_t first = 0; first < n_blocks; first += blocks.size()) {
        blocks.resize(std::min(blocks.size(), n_blocks - first));
        parallel_for_workers(blocks.size(), [&](size_t b, size_t w) {
            const size_t begin = (first + b) * rows;
            MatrixScratch& mine = scratch[w];
            MatrixBlock& block = blocks[b];
            score_matrices(step, begin, std::min(rows, n - begin), mine, block);
            if (!is_full) {
                block.sum_moments(d, mine.rows);
            }
        });
        const auto add_entries = [&](size_t c, size_t w) {
            if (few) {
                add_few(blocks, c, stats);
            } else {
                add_component(blocks, c, scratch[w].rows, stats);
            }
        };
        parallel_for_workers(k, add_entries, worth_threads(double(n) * d * d));
        for (const MatrixBlock& block : blocks) {
            stats.weight += block.weight;
            stats.objective += block.objective;
            stats.dropped_mass += block.dropped_mass;
            for (size_t i = 0; i < total.size(); i++) {
                total[i] += block.moments[i];
            }
        }
    }
    if (!is_full) {
        add_packed(d, total.data(), stats.sum_x2.data() + k);
    }
}

} // namespace gmm
