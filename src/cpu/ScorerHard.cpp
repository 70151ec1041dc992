#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "Scorer.h"

/// EStep::hard: means may be anywhere beside how far apart they are.
namespace gmm {

// At most one mean of so many is narrow for being so many times as far away
// (squared) as the others.
static constexpr size_t kFarShare = 16;
static constexpr double kFarError = 16;

// Where more than this share of the means are a row's candidates, on average,
// those of bounds and those of products, the next way takes less time.
static constexpr size_t kScreenedShare = 16, kComparedShare = 8;

/** EStep::hard: beyond which error a mean is narrow. Few means far away, at
 * vectors that are, would have all others compared exactly: distances are in no
 * unit that says what is small. */
double Scorer::most_of_near_means() const {
    std::vector<double> sorted = fixed_error;
    const auto near = sorted.begin() + (k - 1 - k / kFarShare);
    std::nth_element(sorted.begin(), near, sorted.end());
    return std::min(kNarrow, kFarError * *near);
}

/// In doubles: log-joints are floats beside the best one's, which products of
/// vectors far from the origin are wrong by.
int32_t Scorer::nearest_of(const float* y, const Candidates& candidates) const {
    int32_t best = candidates.index[0];
    double least = candidates.n > 1 ? distance(y, best) : 0;
    for (size_t i = 1; i < candidates.n; i++) {
        const int32_t c = candidates.index[i];
        const double other = distance(y, c);
        if (other < least) {
            least = other;
            best = c;
        }
    }
    return best;
}

void Scorer::nearest(
        const HardRows& rows, HardScratch& scratch, int32_t* out) const {
    scratch.v.resize(rows.n * stride);
    size_t done = 0;
    if (screens()) {
        done = nearest_by_bytes(rows, scratch, out);
    }
    if (done < rows.n) {
        const HardRows rest = rows.from(done, d);
        done += nearest_by_products(rest, scratch, out + done);
    }
    if (done < rows.n) {
        nearest_by_differences(rows.from(done, d), scratch, out + done);
    }
}

size_t Scorer::nearest_by_bytes(
        const HardRows& rows, HardScratch& scratch, int32_t* out) const {
    multiply_bytes(rows.n, rows.y, scratch.screen, scratch.v.data());
    Candidates& candidates = scratch.candidates;
    size_t budget = k; // some rows' before any has saved
    for (size_t i = 0; i < rows.n; i++) {
        if (rows.skips(i)) {
            continue;
        }
        budget += k / kScreenedShare;
        if (!select_screened(
                    i,
                    rows.norm[i],
                    budget,
                    rows.y + i * d,
                    scratch.screen,
                    scratch.v.data() + i * stride,
                    candidates)) {
            return i;
        }
        budget -= candidates.n;
        out[i] = nearest_of(rows.y + i * d, candidates);
    }
    return rows.n;
}

size_t Scorer::nearest_by_products(
        const HardRows& rows, HardScratch& scratch, int32_t* out) const {
    multiply(rows.n, rows.y, scratch.v.data());
    Candidates& candidates = scratch.candidates;
    size_t budget = k;
    for (size_t i = 0; i < rows.n; i++) {
        if (rows.skips(i)) {
            continue;
        }
        float* const v = scratch.v.data() + i * stride;
        const float largest = finish(rows.norm[i], v);
        const double error = row_error(largest);
        budget += 1 + k / kComparedShare;
        if (!(error < kUseless)) {
            return i;
        }
        split_row(v, largest, error, candidates);
        if (candidates.n > budget) {
            return i;
        }
        budget -= candidates.n;
        out[i] = nearest_of(rows.y + i * d, candidates);
    }
    return rows.n;
}

/* Products tell little where means are far closer to each other than to the
 * origin. In squares of differences nothing cancels: errors are in proportion,
 * and 0 is the mean itself. */
void Scorer::nearest_by_differences(
        const HardRows& rows, HardScratch& scratch, int32_t* out) const {
    std::call_once(differences_ready, [&] {
        const std::vector<float> ones(k * d, 1.0f);
        difference_scales = PackedMeans(k, d, ones.data());
        difference_shifts = PackedMeans(k, d, means.data());
    });
    float* v = scratch.v.data();
    exponents(
            difference_scales,
            difference_shifts,
            rows.n,
            rows.y,
            v,
            stride,
            kernel);
    Candidates& candidates = scratch.candidates;
    for (size_t i = 0; i < rows.n; i++, v += stride) {
        if (rows.skips(i)) {
            continue;
        }
        std::fill(v + k, v + padded, -std::numeric_limits<float>::infinity());
        float lanes[kLanes];
        kernel.lane_max(padded, v, lanes);
        const float largest = *std::max_element(lanes, lanes + kLanes);
        const float* const y = rows.y + i * d;
        if (largest == 0) {
            out[i] = int32_t(std::find(v, v + k, largest) - v);
            continue;
        }
        if (std::isfinite(largest)) {
            const double error = error_bound(-double(largest), 0, 0);
            split_row(v, largest, error, candidates);
        } else {
            candidates.n = k;
            std::iota(candidates.index.begin(), candidates.index.end(), 0);
        }
        out[i] = nearest_of(y, candidates);
    }
}

} // namespace gmm
