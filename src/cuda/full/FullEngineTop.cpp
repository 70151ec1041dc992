#include "cuda/full/FullEngine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/engine/RowsSource.h"

namespace gmm::cuda {

using namespace full;

namespace {

constexpr size_t kTopBytes = size_t(256) << 20; ///< of a block's answers

size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

} // namespace

/** Which components a row's best are is decided by log-joints as the E-step has
 * them (order hard: by distances); what is returned is computed in double. */
void FullEngine::top_components(
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
    reserve();
    const bool hard = order == EStep::hard;
    const size_t d = d_;
    const int64_t block = std::min<int64_t>(
            {block_rows_,
             65536,
             std::max<int64_t>(kBoundRows, int64_t(kTopBytes / (m * 24))),
             int64_t(x.n + kBoundRows - 1) / kBoundRows * kBoundRows});
    const size_t rows_whole =
            size_t(block + kBoundRows - 1) / kBoundRows * kBoundRows;
    const size_t row_floats = size_t(pitch_) + kLead + 2;
    const size_t sizes[] = {
            aligned(rows_whole * row_floats * sizeof(float)),
            aligned(rows_whole * m * sizeof(int32_t)),
            aligned(rows_whole * m * sizeof(float)),
            aligned(rows_whole * m * sizeof(double)),
            aligned(rows_whole)};
    size_t all = 0;
    for (size_t bytes : sizes) {
        all += bytes;
    }
    top_memory_.reserve(all);
    check(cudaMemsetAsync(top_memory_.as<char>(), 0, all, stream_), "clearing");
    size_t at = 0, i = 0;
    auto take = [&] {
        void* const p = top_memory_.as<char>(at);
        at += sizes[i++];
        return p;
    };
    FullRows rows = rows_;
    rows.d = d_;
    rows.pitch = pitch_;
    rows.y = static_cast<float*>(take());
    rows.lead = rows.y + rows_whole * pitch_;
    rows.slack = rows.lead + rows_whole * kLead;
    rows.spread = rows.slack + rows_whole;
    auto* const found = static_cast<int32_t*>(take());
    auto* const squares = static_cast<float*>(take());
    auto* const joints = static_cast<double*>(take());
    auto* const bad = static_cast<uint8_t*>(take());

    std::vector<int32_t> host_found(block * m);
    std::vector<float> host_squares(block * m);
    std::vector<double> host_joints(block * m), host_prob(block);
    std::vector<uint8_t> host_bad(block);
    const double to_user = double(d) * std::log(double(frame_.scale));
    const double to_distance = 1. / (double(frame_.scale) * frame_.scale);

    // Ranks by one model's values; log_prob is left in totals_ if soft.
    auto rank = [&](const FullModelView& model,
                    int64_t count,
                    EStep step,
                    bool wants_order) {
        const bool soft = step == EStep::soft;
        screens_ = false;
        no_marks();
        auto use = [&](int64_t first, int64_t part, uint32_t pairs) {
            if (wants_order && m == 1) {
                find_best(lists_, pairs, totals_, stream_);
                best_components(lists_, totals_, first, part, found, stream_);
            } else if (wants_order) {
                select_components(lists_, first, part, int(m), found, stream_);
            }
            if (soft) {
                responsibilities(
                        lists_,
                        pairs,
                        first,
                        part,
                        nullptr,
                        0,
                        false,
                        totals_,
                        pass_,
                        stream_);
            }
        };
        if (m == 1 || !wants_order) {
            score_block(model, rows, count, reach_of(step), use);
            return;
        }
        // All pairs.
        const int64_t words = (count + 63) / 64;
        start_rows(totals_, words * 64, stream_);
        set_least(totals_, words * 64, HUGE_VALF, stream_);
        check(cudaMemsetAsync(
                      pairs_.bits,
                      0xff,
                      size_t(k_) * pairs_.words * sizeof(uint64_t),
                      stream_),
              "clearing");
        each_list(
                0,
                words,
                [&](int64_t begin,
                    int64_t end,
                    uint32_t pairs,
                    uint32_t tiles) {
                    evaluate_pairs(
                            model, rows, lists_, tiles, totals_, stream_);
                    evaluate_exactly(
                            model,
                            rows,
                            lists_,
                            tiles,
                            totals_,
                            float(options_.tolerance),
                            stream_);
                    const int64_t first = begin * 64;
                    use(first, std::min(end * 64, count) - first, pairs);
                });
    };

    const RowsSource source(x);
    feeder_.run(source, 0, x.n, int(block), stream_, [&](const Block& b) {
        LoadArgs args = load_args(b, x.type);
        args.first_bad = small_.as<unsigned long long>(32);
        args.bad = bad;
        load_rows(args, rows, stream_);
        project_rows(rows, directions(), b.rows, stream_);
        if (hard) {
            rank(prepare(EStep::hard), b.rows, EStep::hard, true);
        }
        const FullModelView model = prepare(EStep::soft);
        if (!hard || log_prob) {
            rank(model, b.rows, EStep::soft, !hard);
        }
        describe_components(
                model, rows, b.rows, int(m), found, squares, joints, stream_);
        const size_t count = size_t(b.rows) * m;
        copy(host_found.data(), found, count, stream_);
        copy(host_squares.data(), squares, count, stream_);
        copy(host_joints.data(), joints, count, stream_);
        copy(host_bad.data(), bad, b.rows, stream_);
        if (log_prob) {
            copy(host_prob.data(), totals_.log_prob, b.rows, stream_);
        }
        check(cudaStreamSynchronize(stream_), "choosing components");
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        for (size_t e = 0; e < count; e++) {
            const bool none = host_bad[e / m];
            const size_t to = b.begin * m + e;
            components[to] = none ? -1 : host_found[e];
            if (log_joint) {
                log_joint[to] = none ? -kInfinity : host_joints[e] + to_user;
            }
            if (distances) {
                distances[to] =
                        none ? kInfinity : float(to_distance * host_squares[e]);
            }
        }
        for (int r = 0; log_prob && r < b.rows; r++) {
            log_prob[b.begin + r] =
                    host_bad[r] ? -kInfinity : float(host_prob[r] + to_user);
        }
    });
}

} // namespace gmm::cuda
