#include "cuda/engine/Engine.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Fp16ErrorModel.h"

namespace gmm::cuda {

namespace {

constexpr double kLn2 = 0.6931471805599453;

float default_fp16_scale(bool squares) {
    return squares ? 1.f : 8.f;
}

/// to = by * x, past the caches: what is written is not read soon, and to
/// fetch its lines first takes as long as to write them.
void scale(double* to, double by, const double* x, int64_t n) {
    int64_t i = 0;
#ifdef __SSE2__
    for (; i < n && reinterpret_cast<uintptr_t>(to + i) % 16; i++) {
        to[i] = by * x[i];
    }
    const __m128d factor = _mm_set1_pd(by);
    for (; i + 2 <= n; i += 2) {
        _mm_stream_pd(to + i, _mm_mul_pd(factor, _mm_loadu_pd(x + i)));
    }
    _mm_sfence();
#endif
    for (; i < n; i++) {
        to[i] = by * x[i];
    }
}

} // namespace

Engine::Engine(int device, const CudaOptions& options)
        : DeviceShare(device, options),
          feeder_(std::make_unique<BlockUploader>()) {
    score_.hopper = hopper_;
}

Engine::~Engine() {
    finish();
}

bool Engine::has_squares() const {
    return shape_.covariance == Covariance::diagonal;
}

int Engine::planes(bool lo) const {
    return (has_squares() ? 2 : 1) * (lo ? 2 : 1);
}

void Engine::set_model(const GaussianMixture& model) {
    use_device();
    shape_.covariance = model.covariance;
    shape_.k = model.k;
    shape_.d = model.d;
    model_.upload(model, staging_, stream_);
}

Engine::Precisions Engine::prepare_model(EStep step, bool widen) {
    const bool hard = step == EStep::hard;
    const bool exact = options_.precision == Precision::exact;
    model_.survey.wait(stream_);
    // The diagonal kind's estimates go by dimension.
    const double uneven = model_.covariance == Covariance::diagonal
            ? 1
            : fp16_error_factor(frame_.variances, model_.survey.explained);
    Precisions p;
    p.tolerance = options_.tolerance / uneven;
    // What the estimates are does not depend on it, and one model of a training
    // needs mostly what the one before did.
    const bool with_lo = exact || (!hard && needed_lo_);
    ModelUse use{hard, fp16_scale_, with_lo, p.tolerance, widen, largest_norm_};
    model_.prepare(use, stream_);
    p.lo = p.all = p.sums_lo = p.dense_lo = exact;
    p.refine = exact && !hard;
    if (hard) {
        model_.collapsed = false;
        return p;
    }
    ModelErrors errors = model_.errors(stream_);
    if (model_.least_variance > 0 && errors.collapsed > model_.k / 8) {
        use.widen = false; // too many rows are near one of them
        model_.prepare(use, stream_);
        errors = model_.errors(stream_);
    }
    p.error = errors.worst * uneven / kLn2;
    p.narrow = errors.narrow > 0;
    // Range bought with resolution: small values may have lost theirs.
    const bool squeezed = fp16_scale_ < default_fp16_scale(has_squares()) / 128;
    // The estimate is a component's; some of its rows lie further out.
    const bool needs_lo = exact || errors.worst > p.tolerance / 2 || squeezed ||
            errors.collapsed > 0;
    if (needs_lo != with_lo) {
        use.lo = needs_lo;
        model_.prepare(use, stream_);
    }
    model_.collapsed = errors.collapsed > 0;
    p.widened = model_.collapsed && model_.least_variance > 0;
    needed_lo_ = needs_lo;
    if (!exact && needs_lo) {
        p.lo = p.refine = true;
        p.all = squeezed;
        p.sums_lo = squeezed || errors.as_is > 4 * p.tolerance || has_squares();
        // Rows of the dense path are seldom of a narrow component, unless that
        // is what most are. Whether they were shows afterwards; where many are
        // narrow, the first rows tell.
        p.many = errors.narrow > model_.k / 8;
        p.dense_lo =
                squeezed || has_squares() || errors.narrow > model_.k / 4 * 3;
    }
    return p;
}

void Engine::accumulate(EStep step) {
    use_device();
    if (fp16_scale_ == 0 || scaled_squares_ != has_squares()) {
        scaled_squares_ = has_squares();
        fp16_scale_ = default_fp16_scale(scaled_squares_);
        resident_ = false;
    }
    bool started = false;
    for (bool dense_lo = false, widen = true;;) {
        Precisions p = prepare_model(step, widen);
        p.dense_lo |= dense_lo;
        const float fp16_scale = fp16_scale_;
        const bool fused = can_fuse();
        const auto least = [&] {
            return step == EStep::hard
                    ? 0
                    : model_.least_foldable(fp16_scale_, largest_norm_);
        };
        const double least_variance = least();
        const auto ranges_hold = [&] {
            return fp16_scale_ == fp16_scale && can_fuse() == fused &&
                    least() == least_variance;
        };
        reserve(p.lo);
        if (!ranges_hold()) {
            continue; // rows have been seen
        }
        const size_t doubles = sums_.count() + kTotals;
        check(cudaMemsetAsync(sums_.n_k, 0, doubles * sizeof(double), stream_),
              "clearing");
        dense_.begin();
        clear_marks();
        report.rows = report.long_rows = report.dense_rows = 0;
        report.responsibilities = 0;
        if (!started) { // passes that are repeated count
            check(cudaEventRecord(started_, stream_), "recording an event");
            started = true;
        }
        rows_.row_value = row_squares_;
        if (resident_) {
            const size_t n = end_ - begin_;
            for (size_t at = 0; at < n; at += block_rows_) {
                use_block(
                        rows_,
                        int64_t(at),
                        int(std::min<size_t>(block_rows_, n - at)),
                        weights_ ? weight_memory_.as<float>() + at : nullptr,
                        step,
                        p);
            }
        } else {
            clear_checks();
            feeder_->run(
                    *source_,
                    begin_,
                    end_,
                    block_rows_,
                    stream_,
                    [&](const BlockUploader::Block& block) {
                        PrepareArgs args = prepare_args(block, source_->type);
                        args.lo = p.lo;
                        prepare_rows(
                                args, rows_, small_.as<RowChecks>(), stream_);
                        if (row_squares_) {
                            rows_.row_value =
                                    row_squares_ + (block.begin - begin_);
                        }
                        if (weights_) {
                            // use_block has waited since the last copy.
                            float* const w = weight_staging_.as<float>();
                            for (int i = 0; i < block.rows; i++) {
                                w[i] =
                                        float(weights_[block.begin + i] /
                                              weight_scale_);
                            }
                            check(cudaMemcpyAsync(
                                          weight_memory_.as<float>(),
                                          w,
                                          block.rows * sizeof(float),
                                          cudaMemcpyHostToDevice,
                                          stream_),
                                  "upload of weights");
                        }
                        use_block(
                                rows_,
                                0,
                                block.rows,
                                weights_ ? weight_memory_.as<float>() : nullptr,
                                step,
                                p);
                    });
        }
        // Sums of second halves are good but for those of widened components.
        const bool doubtful = p.lo && (!p.dense_lo || p.widened);
        if (doubtful) {
            dense_.find_narrow(
                    model_,
                    p.dense_lo ? Model::kCollapsed : 1,
                    objective_ + 2,
                    stream_);
        }
        dense_.collect(sums_, stream_);
        check(cudaEventRecord(finished_, stream_), "recording an event");
        copy(totals_host_.as<double>(), objective_, kTotals, stream_);
        check(cudaStreamSynchronize(stream_), "the pass over the data");
        bool left_range = false;
        if (!resident_) {
            lower_fp16_scale();
            left_range = !ranges_hold();
            check_rows();
        }
        if (doubtful && narrow_have_mass()) {
            dense_lo = true;
            widen = false;
            continue;
        }
        if (!left_range) {
            report.exact = p.refine || report.long_rows > 0 ||
                    options_.precision == Precision::exact;
            break;
        }
    }
    read_times();
    report.resident = resident_;
    report.device_bytes = used_bytes();
}

std::vector<float> Engine::row_log_prob() const {
    use_device();
    std::vector<float> out(last_rows_);
    check(cudaMemcpy(
                  out.data(),
                  sparse_.row_lse,
                  out.size() * sizeof(float),
                  cudaMemcpyDeviceToHost),
          "reading the rows' log-likelihoods");
    for (float& x : out) {
        x = float(x * kLn2);
    }
    return out;
}

void Engine::read_sums(EStep step, bool add, SufficientStats& stats) {
    use_device();
    const size_t k = shape_.k, d = shape_.d;
    const double w = weight_scale_;
    const double to_x = w / fp16_scale_, to_x2 = to_x / fp16_scale_;
    // What lies one after the other in sums_, and where it goes.
    struct Part {
        double* to;
        size_t size;
        double scale;
    };
    const bool squares = has_squares();
    const Part parts[] = {
            {stats.n_k.data(), k, w},
            {squares ? nullptr : stats.sum_x2.data(),
             k,
             row_squares_ ? w : -2 * to_x2},
            {stats.sum_x.data(), k * d, to_x},
            {stats.sum_x2.data(), squares ? k * d : 0, to_x2}};
    constexpr int64_t kChunk = 8192;
    const auto add_scaled =
            [add](double* to, double by, const double* x, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 100000)
                for (int64_t begin = 0; begin < n; begin += kChunk) {
                    const int64_t end = std::min(begin + kChunk, n);
                    if (!add) {
                        scale(to + begin, by, x + begin, end - begin);
                        continue;
                    }
                    for (int64_t i = begin; i < end; i++) {
                        to[i] += by * x[i];
                    }
                }
            };
    const auto use = [&](size_t begin, size_t end, const double* values) {
        size_t at = 0; // where a part begins
        for (const Part& part : parts) {
            const size_t from = std::max(begin, at);
            const int64_t n =
                    int64_t(std::min(end, at + part.size)) - int64_t(from);
            if (part.to && n > 0) {
                add_scaled(
                        part.to + (from - at),
                        part.scale,
                        values + (from - begin),
                        n);
            }
            at += part.size;
        }
    };
    staging_.download(sums_.n_k, sums_.count(), stream_, use);
    const double* const totals = totals_host_.as<double>();
    const double sum = totals[0];
    const double weight = total_weight();
    if (!add) {
        stats.weight = stats.objective = stats.dropped_mass = 0;
    }
    stats.weight += weight;
    if (step == EStep::hard) {
        stats.objective += 2 * to_x2 * sum; // scores are -|Y - M|^2 / 2
    } else {
        stats.objective += w * kLn2 * sum;
        // What was listed and left out is known; what was never listed has
        // only its bound.
        stats.dropped_mass += w * totals[1] +
                weight * std::exp2(-list_bits(options_.precision));
    }
}

} // namespace gmm::cuda
