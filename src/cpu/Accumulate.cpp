#include <omp.h>

#include <algorithm>
#include <cmath>

#include "../Error.h"
#include "../ParallelFor.h"
#include "CpuBackend.h"

namespace gmm {

void ScoredBlock::sort(const std::vector<Found>& found, size_t k) {
    offset.assign(k + 2, 0);
    int32_t* next = offset.data() + 1;
    for (const Found& f : found) {
        next[f.component + 1]++;
    }
    for (size_t c = 0; c < k; c++) {
        next[c + 1] += next[c];
    }
    entries.resize(found.size());
    for (const Found& f : found) {
        entries[next[f.component]++] = {f.row, f.r};
    }
}

// Where more than this share of the components are candidates, computing them
// one by one takes longer than the whole product.
static constexpr size_t kCandidateShare = 16;

// A block is diffuse if its first rows have responsibilities for more than this
// share of the components: to sum them one by one takes longer than a product
// with all. Its sums are kept, so they must not be too many.
static constexpr size_t kFirstRows = 8, kDiffuseShare = 8;
static constexpr size_t kDiffuseSums = size_t(1) << 20;
// Weights that sums of floats hold, whatever the vectors.
static constexpr float kLeastWeight = 1e-20f, kMostWeight = 1e20f;

// How many sums of squares a component has.
static size_t num_squares(const GaussianMixture& model) {
    return model.covariance == Covariance::diagonal ? model.d : 1;
}

static bool can_be_diffuse(const GaussianMixture& model) {
    const size_t sums = std::max(model.d, 2 * num_squares(model));
    return model.k >= 64 && model.k * sums <= kDiffuseSums;
}

// The sums over rows whose scale is above 0, of which scratch.v holds
// exponentials.
static void sum_diffuse(
        const Scorer& scorer,
        size_t squares,
        Scratch& scratch,
        ScoredBlock& block) {
    const size_t n = block.norm.size(), d = scorer.d, k = scorer.k;
    const size_t sums = d + 1 + squares;
    scratch.scaled.resize(sums * n);
    for (size_t i = 0; i < n; i++) {
        const float scale = scratch.scale[i];
        float* const to = scratch.scaled.data() + i;
        const float* const y = block.y.data() + i * d;
        if (scale == 0) { // log-joints, which may be infinite
            std::fill_n(&scratch.v[i * scorer.stride], k, 0.0f);
        }
        for (size_t j = 0; j < d; j++) {
            to[j * n] = scale * y[j];
        }
        to[d * n] = scale;
        float* const to_squares = to + (d + 1) * n;
        if (squares == 1) {
            *to_squares = scale == 0 ? 0 : float(scale * block.norm[i]);
            continue;
        }
        for (size_t j = 0; j < squares; j++) {
            to_squares[j * n] = scale == 0 ? 0 : scale * y[j] * y[j];
        }
    }
    scratch.shares.assign_transposed(k, n, scratch.v.data(), scorer.stride);
    block.diffuse.resize(sums * k);
    inner_products(
            scratch.shares,
            sums,
            scratch.scaled.data(),
            block.diffuse.data(),
            k);
}

void CpuBackend::score(
        EStep step,
        const Scorer& scorer,
        size_t begin,
        size_t count,
        Scratch& scratch,
        ScoredBlock& block) const {
    load_block(begin, count, scratch.raw, block);
    if (step == EStep::hard) {
        score_hard(scorer, begin, scratch, block);
        return;
    }
    if (!scorer.screens() || !score_rows(scorer, true, begin, scratch, block)) {
        score_rows(scorer, false, begin, scratch, block);
    }
    block.sort(scratch.found, scorer.k);
}

void CpuBackend::score_hard(
        const Scorer& scorer,
        size_t begin,
        Scratch& scratch,
        ScoredBlock& block) const {
    const size_t count = block.norm.size();
    const float* const rows = block.y.data();
    scratch.nearest.resize(count);
    scorer.nearest(
            {count,
             rows,
             block.norm.data(),
             weights ? weights + begin : nullptr},
            scratch,
            scratch.nearest.data());
    scratch.found.clear();
    block.diffuse.clear();
    block.weight = block.objective = block.dropped_mass = 0;
    for (size_t i = 0; i < count; i++) {
        const float weight = weight_of(begin + i);
        if (weight == 0) {
            continue;
        }
        const int32_t c = scratch.nearest[i];
        block.weight += weight;
        block.objective -= weight * scorer.distance(rows + i * scorer.d, c);
        scratch.found.push_back({c, int32_t(i), weight});
    }
    block.sort(scratch.found, scorer.k);
}

// False if too many components were candidates.
bool CpuBackend::score_rows(
        const Scorer& scorer,
        bool screened,
        size_t begin,
        Scratch& scratch,
        ScoredBlock& block) const {
    const size_t count = block.norm.size();
    scratch.found.clear();
    block.diffuse.clear();
    block.weight = block.objective = block.dropped_mass = 0;
    const float* rows = block.y.data();
    scratch.v.resize(count * scorer.stride);
    if (screened) {
        scorer.multiply_bytes(count, rows, scratch.screen, scratch.v.data());
    } else {
        scorer.multiply(count, rows, scratch.v.data());
    }
    Candidates& candidates = scratch.candidates;
    const float least_r = least();
    size_t budget = scorer.k; // some rows' before any has saved
    size_t first_rows = 0;
    bool diffuse = false, any_summed = false;
    scratch.scale.assign(count, 0.0f);
    for (size_t i = 0; i < count; i++) {
        const float weight = weight_of(begin + i);
        if (weight == 0) {
            continue;
        }
        const float* y = rows + i * scorer.d;
        float* v = scratch.v.data() + i * scorer.stride;
        if (screened) {
            budget += scorer.k / kCandidateShare;
            if (!scorer.select_screened(
                        i,
                        block.norm[i],
                        budget,
                        y,
                        scratch.screen,
                        v,
                        candidates)) {
                return false;
            }
            budget -= candidates.n;
        } else {
            const float largest = scorer.finish(block.norm[i], v);
            const bool summed =
                    diffuse && weight > kLeastWeight && weight < kMostWeight;
            const double sum = summed ? scorer.exponentials(v, largest) : 0;
            if (sum > 0) {
                scratch.scale[i] = float(weight / sum);
                any_summed = true;
                block.weight += weight;
                block.objective += weight * (largest + std::log(sum));
                continue;
            }
            scorer.select(y, v, largest, candidates);
        }
        block.weight += weight;

        block.objective += weight * candidates.normalise();
        double dropped = candidates.tail;
        for (size_t e = 0; e < candidates.n; e++) {
            const float r = candidates.value[e];
            if (r < least_r) {
                dropped += r;
            } else {
                scratch.found.push_back(
                        {candidates.index[e], int32_t(i), weight * r});
            }
        }
        block.dropped_mass += weight * dropped;
        if (++first_rows == kFirstRows && !screened) {
            diffuse = can_be_diffuse(model) &&
                    scratch.found.size() >
                            kFirstRows * scorer.k / kDiffuseShare;
        }
    }
    if (any_summed) {
        sum_diffuse(scorer, num_squares(model), scratch, block);
    }
    return true;
}

// Adds a block to the sums of components [first, last). A component's sums are
// formed in the order of the rows, so that neither the number of threads nor
// their schedule shows in the bits.
static void add_entries(
        const ScoredBlock& block,
        size_t first,
        size_t last,
        SufficientStats& stats) {
    const Kernels& kernel = best_kernels();
    const size_t d = stats.d;
    for (size_t c = first; c < last; c++) {
        for (int32_t e = block.offset[c]; e < block.offset[c + 1]; e++) {
            const auto [row, r] = block.entries[e];
            const float* y = block.y.data() + row * d;
            stats.n_k[c] += r;
            kernel.add(d, r, y, stats.sum_x.data() + c * d);
            if (stats.covariance == Covariance::diagonal) {
                kernel.add_squares(d, r, y, stats.sum_x2.data() + c * d);
            } else {
                stats.sum_x2[c] += r * block.norm[row];
            }
        }
    }
    if (block.diffuse.empty()) {
        return;
    }
    const size_t k = stats.k, squares = stats.sum_x2.size() / k;
    const float* const sums = block.diffuse.data();
    for (size_t c = first; c < last; c++) {
        for (size_t j = 0; j < d; j++) {
            stats.sum_x[c * d + j] += sums[j * k + c];
        }
        stats.n_k[c] += sums[d * k + c];
        for (size_t j = 0; j < squares; j++) {
            stats.sum_x2[c * squares + j] += sums[(d + 1 + j) * k + c];
        }
    }
}

void CpuBackend::accumulate(EStep step, SufficientStats& stats) {
    if (!source || source->d != model.d) {
        throw_invalid(
                "accumulate: set_data (d = %zu) and set_model (d = %zu) must "
                "come first and agree",
                source ? source->d : 0,
                model.d);
    }
    if (has_matrices(model.covariance)) {
        accumulate_matrices(step, stats);
        return;
    }
    const Scorer& scores = scorer(step);
    const size_t n = source->n, k = model.k, d = model.d;
    stats = SufficientStats(model.covariance, k, d);

    const size_t threads = size_t(omp_get_max_threads());
    const size_t rows = std::min(block_rows(k, d), n);
    const size_t n_blocks = (n + rows - 1) / rows;
    std::vector<Scratch> scratch(threads, Scratch(k));
    // Enough blocks at a time that no thread waits long for the last.
    std::vector<ScoredBlock> blocks(std::min(8 * threads, n_blocks));
    const size_t chunk = (k + 8 * threads - 1) / (8 * threads);

    for (size_t first = 0; first < n_blocks; first += blocks.size()) {
        blocks.resize(std::min(blocks.size(), n_blocks - first));
        parallel_for_workers(blocks.size(), [&](size_t b, size_t w) {
            const size_t begin = (first + b) * rows;
            score(step,
                  scores,
                  begin,
                  std::min(rows, n - begin),
                  scratch[w],
                  blocks[b]);
        });
        const auto add_chunk = [&](size_t i) {
            const size_t begin = i * chunk, end = std::min(begin + chunk, k);
            for (const ScoredBlock& block : blocks) {
                add_entries(block, begin, end, stats);
            }
        };
        parallel_for(
                (k + chunk - 1) / chunk,
                add_chunk,
                worth_threads(double(n) * d));
        for (const ScoredBlock& block : blocks) {
            stats.weight += block.weight;
            stats.objective += block.objective;
            stats.dropped_mass += block.dropped_mass;
        }
    }
}

} // namespace gmm
