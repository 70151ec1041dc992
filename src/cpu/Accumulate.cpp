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

void CpuBackend::score(
        EStep step,
        const Scorer& scorer,
        size_t begin,
        size_t count,
        Scratch& scratch,
        ScoredBlock& block) const {
    load_block(begin, count, scratch.raw, block);
    if (!scorer.screens() ||
        !score_rows(step, scorer, true, begin, scratch, block)) {
        score_rows(step, scorer, false, begin, scratch, block);
    }
    block.sort(scratch.found, scorer.k);
}

// False if too many components were candidates.
bool CpuBackend::score_rows(
        EStep step,
        const Scorer& scorer,
        bool screened,
        size_t begin,
        Scratch& scratch,
        ScoredBlock& block) const {
    const size_t count = block.norm.size();
    scratch.found.clear();
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
    for (size_t i = 0; i < count; i++) {
        const float weight = weights ? weights[begin + i] : 1;
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
            scorer.select(y, v, largest, candidates);
        }
        block.weight += weight;

        if (step == EStep::hard) {
            const size_t nearest = candidates.best();
            const int32_t c = candidates.index[nearest];
            block.objective -= weight * scorer.distance(y, c);
            scratch.found.push_back({c, int32_t(i), weight});
            continue;
        }
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
