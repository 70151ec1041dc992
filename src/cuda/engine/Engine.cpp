#include "cuda/engine/Engine.h"

#include <algorithm>
#include <cmath>

#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Fp16ErrorModel.h"

namespace gmm::cuda {

namespace {

constexpr double kLn2 = 0.6931471805599453;

/// Components are listed while all that are not weigh less than 2^-bits of a
/// row together; of the listed, `fast` sums those that weigh 2^-kKeptBits of it
/// and more: less is below what rounding costs.
double list_bits(Precision precision) {
    return precision == Precision::exact ? 14 : 10;
}
constexpr float kKeptBits = 12;
/// n_k that a narrow component may have of rows of the dense path before these
/// are summed with second halves: no row of such a component is among them.
constexpr double kNarrowMass = 1. / 128;
/// Clusters have responsibilities times weights in fp16, of 2^15: below this
/// weight they are too coarse.
constexpr double kCtaClusterWeight = 1. / (1 << 20);

float default_fp16_scale(bool squares) {
    return squares ? 1.f : 8.f;
}

} // namespace

Engine::Engine(int device, const CudaOptions& options)
        : device_(device), options_(options) {
    check(cudaSetDevice(device), "choosing the device");
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(
                  &major, cudaDevAttrComputeCapabilityMajor, device),
          "device attributes");
    check(cudaDeviceGetAttribute(
                  &minor, cudaDevAttrComputeCapabilityMinor, device),
          "device attributes");
    const bool can = major == 9 && minor == 0;
    if (options.kernel == Kernel::hopper && !can) {
        throw DeviceError(
                "CUDA: the Hopper kernel was asked for on a device of compute "
                "capability " +
                std::to_string(major) + "." + std::to_string(minor));
    }
    score_.hopper = options.kernel == Kernel::portable ? false : can;
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
          "creating a stream");
    check(cudaEventCreate(&started_), "creating an event");
    check(cudaEventCreate(&finished_), "creating an event");
    for (cudaEvent_t& e : steps_) {
        check(cudaEventCreate(&e), "creating an event");
    }
    feeder_ = std::make_unique<BlockUploader>();
}

Engine::~Engine() {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
    feeder_.reset();
    cudaEventDestroy(started_);
    cudaEventDestroy(finished_);
    for (cudaEvent_t e : steps_) {
        cudaEventDestroy(e);
    }
    cudaStreamDestroy(stream_);
}

bool Engine::has_squares() const {
    return shape_.covariance == Covariance::diagonal;
}

int Engine::planes(bool lo) const {
    return (has_squares() ? 2 : 1) * (lo ? 2 : 1);
}

void Engine::set_model(const GaussianMixture& model) {
    check(cudaSetDevice(device_), "choosing the device");
    shape_.covariance = model.covariance;
    shape_.k = model.k;
    shape_.d = model.d;
    model_.upload(model, stream_);
    explained_ = explained_variances(model);
}

Engine::Precisions Engine::prepare_model(EStep step) {
    const bool hard = step == EStep::hard;
    const bool exact = options_.precision == Precision::exact;
    // The diagonal kind's estimates go by dimension.
    const double uneven = model_.covariance == Covariance::diagonal
            ? 1
            : fp16_error_factor(frame_.variances, explained_);
    Precisions p;
    p.tolerance = options_.tolerance / uneven;
    model_.prepare(hard, fp16_scale_, exact, p.tolerance, stream_);
    p.lo = p.all = p.sums_lo = p.dense_lo = exact;
    p.refine = exact && !hard;
    if (hard) {
        return p;
    }
    const ModelErrors errors = model_.errors(stream_);
    p.error = errors.worst * uneven / kLn2;
    p.narrow = errors.narrow > 0;
    // Range bought with resolution: small values may have lost theirs.
    const bool squeezed = fp16_scale_ < default_fp16_scale(has_squares()) / 128;
    // The estimate is a component's; some of its rows lie further out.
    if (!exact && (errors.worst > p.tolerance / 2 || squeezed)) {
        model_.prepare(hard, fp16_scale_, true, p.tolerance, stream_);
        p.lo = p.refine = true;
        p.all = squeezed;
        p.sums_lo = squeezed || errors.worst > 4 * p.tolerance || has_squares();
        // Rows of the dense path are seldom of a narrow component, unless that
        // is what most are. Whether they were shows afterwards; where many are
        // narrow, the first rows tell.
        p.many = errors.narrow > model_.k / 8;
        p.dense_lo =
                squeezed || has_squares() || errors.narrow > model_.k / 4 * 3;
    }
    return p;
}

void Engine::use_block(
        const PreparedRows& rows,
        int64_t row_begin,
        int count,
        const float* weight,
        EStep step,
        Precisions& p) {
    const bool hard = step == EStep::hard;
    auto mark = [this, first = report.rows == 0, i = 0]() mutable {
        if (first) {
            check(cudaEventRecord(steps_[i++], stream_), "recording an event");
        }
    };
    mark();
    ScoreArgs args = model_.score_args(hard && p.lo);
    args.rows_operand = rows.operand;
    args.row_begin = row_begin;
    args.rows = count;
    if (model_.geometry == Geometry::product) {
        args.row_constant =
                (hard && p.lo ? rows.row_constant : rows.row_constant_hi) +
                row_begin;
    }
    args.folded.row_slots = {
            rows.row_slots, rows.operand.rows, kAugmentedSlots, 1};
    // What is not listed weighs at most k 2^-bound of a row.
    const float bound =
            float(std::log2(double(model_.k)) + list_bits(options_.precision));
    // Four standard deviations of both scores compared.
    const float slack = p.refine ? float(std::min(8 * p.error, 64.)) : 0.f;
    SelectArgs select;
    select.bound = hard ? 0.f : bound + slack;
    select.keep_bound =
            p.all ? select.bound : std::min(bound, kKeptBits) + slack;
    select.unit_dropped = sparse_.unit_dropped;
    select.row_weight = weight;
    select.keys = sparse_.keys;
    select.values = sparse_.values;
    select.row_ranges = sparse_.row_ranges;
    select.unit_counts = sparse_.unit_counts;
    select.row_lse = sparse_.row_lse;
    const bool clusters = !hard && !p.dense_lo && !p.many &&
            dense_.has_clusters() && least_weight_ >= kCtaClusterWeight;
    // A narrow component's rows must be found: by lists, if not by a cluster.
    if (score_.hopper && args.folded.components.data &&
        (!p.narrow || clusters) && !p.all) {
        select.pilot = sparse_.pilot;
        check(cudaMemsetAsync(select.pilot, 0, sizeof(uint64_t), stream_),
              "clearing");
    }
    score_(args, select, stream_);
    mark();
    SparseStep sparse;
    sparse.place(sparse_, count, stream_);
    if (p.refine) {
        refine(sparse_,
               count,
               rows,
               row_begin,
               fp16_scale_,
               weight,
               model_,
               p.all,
               float(p.tolerance),
               stream_);
    } else {
        sparse.compact(sparse_, count, stream_);
    }
    mark();
    sparse.wait(sparse_);
    int together = 0;
    if (clusters && count >= kCtaClusterRows &&
        sparse.overflowed >= count / 4 * 3) {
        const DenseRows block{
                rows,
                row_begin,
                count,
                weight,
                nullptr,
                sparse_.row_lse,
                false};
        dense_.add_by_cta_cluster(
                model_,
                block,
                fp16_scale_,
                p.narrow ? model_.narrow : nullptr,
                slack,
                bound,
                stream_);
        together = sparse.overflowed;
        sparse.compact_again(sparse_, count, stream_);
        together -= sparse.overflowed;
    }
    mark();
    NumberedRows rest{
            rows,
            row_begin,
            fp16_scale_,
            weight,
            sparse_.row_lse,
            sparse_.overflowed,
            sparse.overflowed};
    const TripleRoom room = sparse_.room(count, uint32_t(sparse.entries));
    if (!hard && rest.count && can_take_all_pairs(rest.count, room)) {
        sparse.entries += exact_all_pairs(model_, rest, room, stream_);
        rest.count = 0;
    } else if (
            p.refine && rest.count &&
            (p.all || together || rest.count <= count / 4)) {
        sparse.entries += long_.run(
                score_, model_, rest, bound, slack, room, dense_, stream_);
    }
    sparse.accumulate(
            sparse_,
            rows,
            row_begin,
            count,
            p.sums_lo,
            p.all ? nullptr : model_.narrow,
            sums_,
            stream_);
    mark();
    const int dense = rest.count;
    const bool again = dense && p.many && !p.dense_lo && report.rows == 0 &&
            !first_halves_do(rest);
    p.dense_lo |= again;
    if (rest.count) {
        // Rows in place must not have the log-sum-exp of first halves.
        dense_.accumulate(
                score_, model_, rest, again ? 0 : count, p.dense_lo, stream_);
    }
    mark();
    last_rows_ = count;
    double* const scratch = objective_ + kTotals;
    uint32_t* const done = reinterpret_cast<uint32_t*>(objective_ + 3);
    sum_values(
            {sparse_.row_lse, weight, count, objective_, scratch, done},
            {sparse_.unit_dropped,
             nullptr,
             hard ? 0 : units_of(count),
             objective_ + 1,
             scratch + kSumBlocks,
             done + 1},
            stream_);
    report.rows += count;
    report.long_rows += sparse.overflowed - dense;
    report.dense_rows += together + dense;
    report.responsibilities += sparse.entries;
}

bool Engine::first_halves_do(NumberedRows& rows) {
    NumberedRows first = rows;
    first.count = std::min(rows.count, kDenseRows);
    dense_.accumulate(score_, model_, first, 0, false, stream_);
    dense_.find_narrow(model_, objective_ + 2, stream_);
    check(cudaMemcpyAsync(
                  sums_host_.as<double>() + sums_.count() + 2,
                  objective_ + 2,
                  sizeof(double),
                  cudaMemcpyDeviceToHost,
                  stream_),
          "reading sums of narrow components");
    check(cudaStreamSynchronize(stream_), "the dense path");
    if (narrow_have_mass()) {
        dense_.begin();
        return false;
    }
    rows.numbers += first.count;
    rows.count -= first.count;
    return true;
}

bool Engine::narrow_have_mass() const {
    return sums_host_.as<double>()[sums_.count() + 2] >
            kNarrowMass * least_weight_;
}

void Engine::accumulate(EStep step) {
    check(cudaSetDevice(device_), "choosing the device");
    if (fp16_scale_ == 0 || scaled_squares_ != has_squares()) {
        scaled_squares_ = has_squares();
        fp16_scale_ = default_fp16_scale(scaled_squares_);
        resident_ = false;
    }
    bool started = false;
    for (bool dense_lo = false;;) {
        Precisions p = prepare_model(step);
        p.dense_lo |= dense_lo;
        const float fp16_scale = fp16_scale_;
        const bool fused = can_fuse();
        reserve(p.lo);
        if (fp16_scale_ != fp16_scale || can_fuse() != fused) {
            continue; // rows have been seen to leave a range
        }
        const size_t doubles = sums_.count() + kTotals;
        check(cudaMemsetAsync(sums_.n_k, 0, doubles * sizeof(double), stream_),
              "clearing");
        dense_.begin();
        report.rows = report.long_rows = report.dense_rows = 0;
        report.responsibilities = 0;
        if (!started) { // passes that are repeated count
            check(cudaEventRecord(started_, stream_), "recording an event");
            started = true;
        }
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
        if (p.lo && !p.dense_lo) {
            dense_.find_narrow(model_, objective_ + 2, stream_);
        }
        dense_.collect(sums_, stream_);
        check(cudaEventRecord(finished_, stream_), "recording an event");
        check(cudaMemcpyAsync(
                      sums_host_.as<double>(),
                      sums_.n_k,
                      doubles * sizeof(double),
                      cudaMemcpyDeviceToHost,
                      stream_),
              "reading the statistics");
        check(cudaStreamSynchronize(stream_), "the pass over the data");
        bool left_range = false;
        if (!resident_) {
            left_range = lower_fp16_scale() || can_fuse() != fused;
            require_finite();
        }
        if (p.lo && !p.dense_lo && narrow_have_mass()) {
            dense_lo = true;
            continue;
        }
        if (!left_range) {
            report.exact = p.refine || report.long_rows > 0 ||
                    options_.precision == Precision::exact;
            break;
        }
    }
    float ms = 0;
    check(cudaEventElapsedTime(&ms, started_, finished_), "timing");
    report.kernel_ms = ms;
    report.steps_ms.assign(kSteps, 0.);
    for (int i = 0; i < kSteps && report.rows; i++) {
        check(cudaEventElapsedTime(&ms, steps_[i], steps_[i + 1]), "timing");
        report.steps_ms[i] = ms;
    }
    report.resident = resident_;
    report.device_bytes = used_bytes();
}

std::vector<float> Engine::row_log_prob() const {
    check(cudaSetDevice(device_), "choosing the device");
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

void Engine::read_sums(EStep step, bool add, SufficientStats& stats) const {
    const size_t k = shape_.k, d = shape_.d;
    const double* const n_k = sums_host_.as<double>();
    const double* const constant = n_k + k;
    const double* const y = constant + k;
    const double* const y2 = y + k * d;
    const double w = weight_scale_;
    const double to_x = w / fp16_scale_, to_x2 = to_x / fp16_scale_;
    const auto scale =
            [=](std::vector<double>& to, double by, const double* x) {
                const int64_t n = int64_t(to.size());
#pragma omp parallel for schedule(static) if (n > 1000000)
                for (int64_t i = 0; i < n; i++) {
                    to[i] = (add ? to[i] : 0.) + by * x[i];
                }
            };
    scale(stats.n_k, w, n_k);
    scale(stats.sum_x, to_x, y);
    if (has_squares()) {
        scale(stats.sum_x2, to_x2, y2);
    } else {
        scale(stats.sum_x2, -2 * to_x2, constant);
    }
    const double sum = n_k[sums_.count()];
    double weight = 0;
    if (weights_) {
        for (size_t i = begin_; i < end_; i++) {
            weight += weights_[i];
        }
    } else {
        weight = double(end_ - begin_);
    }
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
        stats.dropped_mass += w * n_k[sums_.count() + 1] +
                weight * std::exp2(-list_bits(options_.precision));
    }
}

} // namespace gmm::cuda
