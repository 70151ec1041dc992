#include "CpuBackend.h"

#include <algorithm>
#include <cmath>

#include "../Error.h"
#include "Matrices.h"

namespace gmm {

void FrameBlock::load(const Rows& rows, const Frame& frame) {
    const size_t d = rows.d;
    y.resize(rows.n * d);
    norm.resize(rows.n);
    rows.to_float(y.data());
    for (size_t i = 0; i < rows.n; i++) {
        float* row = y.data() + i * d;
        for (size_t j = 0; j < d; j++) {
            row[j] = (row[j] - frame.center[j]) * frame.scale;
        }
        norm[i] = best_kernels().norm(d, row);
    }
}

size_t block_rows(size_t k, size_t d) {
    const size_t rows = (size_t(1) << 18) / std::max(k, d);
    return std::clamp<size_t>(rows / 16 * 16, 128, 1024);
}

void CpuBackend::set_data(
        const VectorSource& new_source,
        const float* new_weights,
        const Frame& new_frame) {
    if (new_frame.center.size() != new_source.d) {
        throw_invalid(
                "frame.center.size() = %zu, expected source.d = %zu",
                new_frame.center.size(),
                new_source.d);
    }
    if (!(new_frame.scale > 0) || !std::isfinite(new_frame.scale)) {
        throw_invalid(
                "frame.scale = %g, expected a positive value", new_frame.scale);
    }
    source = &new_source;
    weights = new_weights;
    frame = new_frame;
    for (auto& scorer : scorers) {
        scorer.reset(); // how many vectors there are decides what counts
    }
}

void CpuBackend::load_block(
        size_t begin,
        size_t count,
        std::vector<std::byte>& raw,
        FrameBlock& block) const {
    block.load(source->rows(begin, count, raw), frame);
    for (size_t i = 0; i < count; i++) {
        if (std::isfinite(block.norm[i])) {
            continue;
        }
        if (!weights || weights[begin + i] != 0) {
            throw_invalid(
                    "source: row %zu has a value that is not finite",
                    source->given_row(begin + i));
        }
        std::fill_n(&block.y[i * source->d], source->d, 0.0f);
        block.norm[i] = 0;
    }
}

float CpuBackend::least() const {
    return least_kept > 0
            ? least_kept
            : least_responsibility(source ? source->n : 0, model.k);
}

void CpuBackend::set_model(const GaussianMixture& new_model) {
    new_model.validate();
    model = new_model;
    for (auto& scorer : scorers) {
        scorer.reset();
    }
    full_scorer.reset();
}

const Scorer& CpuBackend::scorer(EStep step) {
    std::lock_guard<std::mutex> lock(scorers_mutex);
    auto& wanted = scorers[step == EStep::hard];
    if (!wanted) {
        const bool tied = model.covariance == Covariance::tied;
        wanted = std::make_unique<const Scorer>(
                tied && step == EStep::soft ? whitened(model) : model,
                step,
                least());
    }
    return *wanted;
}

std::unique_ptr<Backend> make_cpu_backend() {
    return std::make_unique<CpuBackend>();
}

} // namespace gmm
