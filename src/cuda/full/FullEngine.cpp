#include "cuda/full/FullEngine.h"

#include <algorithm>
#include <cmath>

namespace gmm::cuda {

using namespace full;

namespace {

constexpr int64_t kStagedRows = 200000; ///< on their way to where they stay

} // namespace

FullEngine::~FullEngine() {
    finish();
}

void FullEngine::set_model(const GaussianMixture& model) {
    use_device();
    if (k_ != int(model.k) || model.covariance != Covariance::tied) {
        whitened_.release(); // the pass may need its memory
        whitens_ = false;
    }
    covariance_ = model.covariance;
    k_ = int(model.k);
    d_ = int(model.d);
    pitch_ = (d_ + 3) / 4 * 4;
    const auto send = [&](const std::vector<float>& from, DeviceMemory& to) {
        to.reserve(from.size() / d_ * pitch_ * sizeof(float));
        staging_.upload(to.as<float>(), from, d_, pitch_, stream_);
    };
    send(model.means, means_);
    send(model.precisions_cholesky, factors_);
    log_weights_.reserve(model.k * sizeof(float));
    staging_.upload(log_weights_.as<float>(), model.log_weights, 1, 1, stream_);
    if (covariance_ == Covariance::tied) {
        whitened_.set_model(
                model, means_.as<float>(), factors_.as<float>(), stream_);
    }
}

FullModelView FullEngine::prepare(EStep step) {
    const size_t groups = (k_ + 3) / 4;
    const bool hard = step == EStep::hard;
    FullModelView model;
    model.k = k_;
    model.d = d_;
    model.pitch = pitch_;
    model.means = means_.as<float>();
    model.factors = hard ? identity_.as<float>() : factors_.as<float>();
    model.factor_stride =
            hard || covariance_ == Covariance::tied ? 0 : int64_t(d_) * pitch_;
    model.bound_factors = bounds_.as<uint4>();
    model.bound_shifts =
            reinterpret_cast<float2*>(model.bound_factors + groups * 256);
    model.bound_terms =
            reinterpret_cast<BoundTerms*>(model.bound_shifts + groups * 32);
    model.terms =
            reinterpret_cast<ComponentTerms*>(model.bound_terms + groups * 4);
    if (hard) {
        std::vector<float> unit(size_t(d_) * d_);
        for (int i = 0; i < d_; i++) {
            unit[size_t(i) * (d_ + 1)] = 1;
        }
        identity_.reserve(size_t(d_) * pitch_ * sizeof(float));
        staging_.upload(identity_.as<float>(), unit, d_, pitch_, stream_);
        model.factors = identity_.as<float>();
    }
    prepare_model(
            model,
            hard ? nullptr : log_weights_.as<float>(),
            directions(),
            prepare_scratch_.as<double>(),
            stream_);
    return model;
}

void FullEngine::accumulate(EStep step) {
    use_device();
    reserve();
    HostTotals* const host = host_.as<HostTotals>();
    check(cudaMemsetAsync(
                  sums_.sums, 0, sums_.size() * sizeof(double), stream_),
          "clearing");
    check(cudaMemsetAsync(pass_.objective, 0, 3 * sizeof(double), stream_),
          "clearing");
    report = {};
    clear_marks();
    screens_ = false;
    const size_t n = end_ - begin_;
    auto is_first = [&](int64_t count) {
        if (!has_basis_ && d_ > kLead) {
            find_basis(count);
        }
    };
    if (stays_ && !resident_ && n > 0) { // a device may have no rows
        feeder_.run(
                *source_,
                begin_,
                end_,
                int(std::min(block_rows_, kStagedRows)),
                stream_,
                [&](const Block& b) { load(b, int64_t(b.begin - begin_)); });
        check_rows();
        is_first(int64_t(n));
        project_rows(rows_, directions(), int64_t(n), stream_);
        resident_ = true;
    }
    check(cudaEventRecord(started_, stream_), "recording an event");
    const bool wants_totals = covariance_ == Covariance::tied && !has_totals_;
    if (wants_totals) {
        check(cudaMemsetAsync(
                      total_memory_.as<char>(),
                      0,
                      total_memory_.bytes(),
                      stream_),
              "clearing");
    }
    FullModelView model = {};
    whitens_ = false;
    if (resident_) {
        const auto each_block = [&](const auto& use) {
            for (int64_t at = 0; at < int64_t(n); at += block_rows_) {
                use(at, std::min(block_rows_, int64_t(n) - at));
            }
        };
        if (wants_totals) {
            each_block(
                    [&](int64_t at, int64_t count) { add_totals(at, count); });
        }
        whitens_ = accumulate_whitened(step);
        if (!whitens_) {
            model = prepare(step);
            each_block([&](int64_t at, int64_t count) {
                use_block(model, at, count, step);
            });
        }
    } else {
        feeder_.run(
                *source_,
                begin_,
                end_,
                int(block_rows_),
                stream_,
                [&](const Block& b) {
                    load(b, 0);
                    check_rows();
                    is_first(b.rows);
                    if (model.k == 0) {
                        model = prepare(step);
                    }
                    project_rows(rows_, directions(), b.rows, stream_);
                    if (wants_totals) {
                        add_totals(0, b.rows);
                    }
                    use_block(model, 0, b.rows, step);
                });
    }
    has_totals_ |= wants_totals;
    check(cudaEventRecord(finished_, stream_), "recording an event");
    copy(reinterpret_cast<char*>(&host->objective),
         reinterpret_cast<const char*>(pass_.objective),
         3 * sizeof(double),
         stream_);
    check(cudaStreamSynchronize(stream_), "the pass over the data");
    read_times();
    if (whitens_) {
        const double all = report.kernel_ms;
        report = whitened_.engine->report;
        report.kernel_ms = all;
    } else {
        report.responsibilities = host->kept;
        report.exact = options_.precision == Precision::exact;
    }
    report.resident = resident_;
    report.device_bytes = used_bytes();
}

bool FullEngine::accumulate_whitened(EStep step) {
    const size_t n = end_ - begin_;
    if (covariance_ != Covariance::tied || step == EStep::hard || n == 0) {
        return false;
    }
    try {
        if (whitened_.bound() != rows_.y) {
            whitened_.release();
            const size_t limit = options_.memory_limit;
            const size_t used = used_bytes() + n * sizeof(float); // squares
            if (limit && limit <= used) {
                return false;
            }
            whitened_.bind(
                    *source_,
                    begin_,
                    end_,
                    weights_,
                    weight_scale_,
                    rows_,
                    limit ? limit - used : 0,
                    stream_);
        }
        return whitened_.accumulate();
    } catch (const OutOfMemory&) { // the other way needs no more than it has
        whitened_.release();
        return false;
    }
}

void FullEngine::read_sums(EStep step, bool add, SufficientStats& stats) {
    use_device();
    const size_t k = k_, d = d_;
    auto read = [&](const double* from, size_t n, auto&& use) {
        staging_.download(
                from,
                n,
                stream_,
                [&](size_t begin, size_t end, const double* values) {
#pragma omp parallel for schedule(static) if (end - begin > 100000)
                    for (int64_t i = int64_t(begin); i < int64_t(end); i++) {
                        use(i, values[i - begin]);
                    }
                });
    };
    auto put = [add](std::vector<double>& to, size_t i, double x) {
        to[i] = (add ? to[i] : 0.) + x;
    };
    if (covariance_ == Covariance::tied) {
        read(total_memory_.as<double>() + 1 + d,
             d * (d + 1) / 2,
             [&](size_t i, double x) { put(stats.sum_x2, k + i, x); });
    }
    if (whitens_) {
        whitened_.read_sums(add, stats);
        return;
    }
    read(sums_.sums, k, [&](size_t i, double x) { put(stats.n_k, i, x); });
    read(sums_.sums + k, k * d, [&](size_t i, double x) {
        put(stats.sum_x, i, x);
    });
    const double* const moments = sums_.sums + k * (1 + d);
    if (sums_.moments) {
        read(moments, k * sums_.per(), [&](size_t i, double x) {
            put(stats.sum_x2, i, x);
        });
    } else {
        std::vector<double> squares(k * d);
        read(moments, k * d, [&](size_t i, double x) { squares[i] = x; });
        for (size_t c = 0; c < k; c++) {
            double sum = 0;
            for (size_t j = 0; j < d; j++) {
                sum += squares[c * d + j];
            }
            put(stats.sum_x2, c, sum);
        }
    }
    const double weight = total_weight();
    if (!add) {
        stats.weight = stats.objective = stats.dropped_mass = 0;
    }
    const HostTotals& host = *host_.as<HostTotals>();
    stats.weight += weight;
    stats.objective += host.objective;
    if (step == EStep::soft) {
        stats.dropped_mass += double(host.dropped) / pass_.dropped_unit;
    }
}

std::vector<float> FullEngine::row_log_prob() const {
    if (whitens_) {
        return whitened_.row_log_prob();
    }
    use_device();
    std::vector<double> all(last_rows_);
    check(cudaMemcpy(
                  all.data(),
                  totals_.log_prob,
                  all.size() * sizeof(double),
                  cudaMemcpyDeviceToHost),
          "reading the rows' log-likelihoods");
    return {all.begin(), all.end()};
}

} // namespace gmm::cuda
