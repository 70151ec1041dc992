#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cuda/engine/Engine.h"
#include "cuda/engine/RowsSource.h"
#include "cuda/score/TopM.h"

namespace gmm::cuda {

namespace {

constexpr double kLn2 = 0.6931471805599453;
constexpr size_t kScoreBytes = size_t(256) << 20;

size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/// Longer lists than the device sorts: the same order, on the host.
void sort_list(
        size_t m,
        bool by_distance,
        uint32_t* components,
        double* log_joint,
        float* distances) {
    std::vector<uint32_t> order(m);
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        const double va = by_distance ? -distances[a] : log_joint[a];
        const double vb = by_distance ? -distances[b] : log_joint[b];
        return va != vb ? va > vb : components[a] < components[b];
    });
    auto apply = [&](auto* values) {
        std::vector<std::decay_t<decltype(*values)>> sorted(m);
        for (size_t i = 0; i < m; i++) {
            sorted[i] = values[order[i]];
        }
        std::copy(sorted.begin(), sorted.end(), values);
    };
    apply(components);
    apply(log_joint);
    apply(distances);
}

} // namespace

/** Scores come from split operands (near fp32), so that the choice is right;
 * what is returned for the chosen is evaluated from their differences. */
void Engine::top_components(
        const Rows& x,
        size_t m,
        int64_t* components,
        double* log_joint,
        float* distances,
        float* log_prob,
        EStep order) {
    use_device();
    if (x.n == 0) {
        return;
    }
    const bool hard = order == EStep::hard;
    const bool one = m == 1;
    const size_t d = shape_.d;
    const int layout = planes(true);
    const size_t padded_k = model_.padded_k;
    size_t block = std::clamp<size_t>(
            kScoreBytes / (one ? 1024 : padded_k * sizeof(float)), 128, 131072);
    block = std::max<size_t>(
            128, std::min(block, kScoreBytes / (m * 4 * sizeof(float))));
    block = std::min(block, x.n);

    const size_t units = (block + kUnitRows - 1) / kUnitRows;
    const size_t sizes[] = {
            aligned(block * prepared_row_bytes(int(d), layout) +
                    kPreparedSlack),
            aligned(block * sizeof(float)), // log-sum-exp
            aligned(block * m * sizeof(uint32_t)),
            aligned(block * m * sizeof(double)),
            aligned(block * m * sizeof(float)),
            one ? aligned(units * kUnitCapacity * 12) + aligned(block * 2) +
                            aligned(units * 8) + aligned(units * 4)
                : block * padded_k * sizeof(float)};
    top_memory_.reserve(
            std::accumulate(std::begin(sizes), std::end(sizes), size_t(0)));
    char* at = top_memory_.as<char>();
    auto take = [&, i = 0]() mutable {
        char* const p = at;
        at += sizes[i++];
        return p;
    };
    PreparedRows rows;
    rows.lay_out(take(), int64_t(block), int(d), layout);
    float* const lse = reinterpret_cast<float*>(take());
    TopArgs top;
    top.m = int(m);
    top.by_distance = hard;
    top.prepared = rows;
    top.components = reinterpret_cast<uint32_t*>(take());
    top.log_joint = reinterpret_cast<double*>(take());
    top.distances = reinterpret_cast<float*>(take());
    char* const scratch = take();

    std::vector<uint32_t> found(block * m);
    std::vector<double> joints(block * m);
    std::vector<float> squares(block * m), all(block), error(block);
    const double to_user = double(d) * std::log(double(frame_.scale));
    const double to_distance = 1. / (double(frame_.scale) * frame_.scale);

    // Training's ranges need not suit these vectors, nor theirs training.
    struct Restore {
        Engine& engine;
        float fp16_scale, largest_norm;
        ~Restore() {
            engine.fp16_scale_ = fp16_scale;
            engine.largest_norm_ = largest_norm;
        }
    } const restore{*this, fp16_scale_, largest_norm_};
    fp16_scale_ = has_squares() ? 1.f : 8.f;
    // Rows too far for that are done again by a scale that has too few digits
    // for the others.
    std::vector<char> done(x.n);
    const RowsSource source(x);
    auto use = [&](const BlockUploader::Block& b) {
        PrepareArgs prepare = prepare_args(b, x.type);
        prepare.lo = true;
        prepare_rows(prepare, rows, small_.as<RowChecks>(), stream_);

        // Also fills what the fp32 evaluation reads.
        model_.prepare({false, fp16_scale_, true, options_.tolerance}, stream_);
        auto score_args = [&] {
            ScoreArgs args = model_.score_args(true);
            args.rows_operand = rows.operand;
            args.rows = b.rows;
            if (model_.geometry == Geometry::product) {
                args.row_constant = rows.row_constant;
            }
            return args;
        };
        if (log_prob) {
            score_(score_args(), LseArgs{lse}, stream_);
        }
        if (hard) {
            model_.prepare(
                    {true, fp16_scale_, true, options_.tolerance}, stream_);
        }
        top.rows = b.rows;
        top.fp16_scale = fp16_scale_;
        top.scores = nullptr;
        if (one) {
            SelectArgs select{};
            select.values = reinterpret_cast<uint2*>(scratch);
            select.keys = reinterpret_cast<uint32_t*>(
                    scratch + units * kUnitCapacity * 8);
            char* rest = scratch + aligned(units * kUnitCapacity * 12);
            select.row_ranges = reinterpret_cast<uint16_t*>(rest);
            rest += aligned(block * 2);
            select.unit_counts = reinterpret_cast<uint64_t*>(rest);
            rest += aligned(units * 8);
            select.unit_dropped = reinterpret_cast<float*>(rest);
            // overwritten by choose_top
            select.row_lse = reinterpret_cast<float*>(top.log_joint);
            score_(score_args(), select, stream_);
            unpack_best(
                    select.keys,
                    select.row_ranges,
                    b.rows,
                    top.components,
                    stream_);
        } else {
            float* const scores = reinterpret_cast<float*>(scratch);
            score_(score_args(), LogitArgs{scores}, stream_);
            top.scores = scores;
        }
        choose_top(top, model_, stream_);

        const size_t count = size_t(b.rows) * m;
        auto read = [&](auto& to, const auto* from, size_t values) {
            check(cudaMemcpyAsync(
                          to.data(),
                          from,
                          values * sizeof(*from),
                          cudaMemcpyDeviceToHost,
                          stream_),
                  "reading the best components");
        };
        read(found, top.components, count);
        read(joints, top.log_joint, count);
        read(squares, top.distances, count);
        if (log_prob) {
            read(all, lse, b.rows);
        }
        read(error, rows.row_error, b.rows);
        check(cudaStreamSynchronize(stream_), "choosing components");
        if (m > kMaxSorted) {
            for (int i = 0; i < b.rows; i++) {
                sort_list(
                        m,
                        hard,
                        found.data() + i * m,
                        joints.data() + i * m,
                        squares.data() + i * m);
            }
        }
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        for (int i = 0; i < b.rows; i++) {
            const size_t row = b.begin + i;
            if (done[row]) {
                continue;
            }
            done[row] = !std::isinf(error[i]);
            const bool none = std::isnan(error[i]);
            for (size_t j = 0; j < m; j++) {
                const size_t from = i * m + j, to = row * m + j;
                components[to] = none ? -1 : int64_t(found[from]);
                if (log_joint) {
                    log_joint[to] =
                            none ? -kInfinity : kLn2 * joints[from] + to_user;
                }
                if (distances) {
                    distances[to] = none ? kInfinity
                                         : float(to_distance * squares[from]);
                }
            }
            if (log_prob) {
                log_prob[row] =
                        none ? -kInfinity : float(kLn2 * all[i] + to_user);
            }
        }
    };
    do {
        clear_checks();
        feeder_->run(source, 0, x.n, int(block), stream_, use);
    } while (lower_fp16_scale());
}

} // namespace gmm::cuda
