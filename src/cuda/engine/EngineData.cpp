#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/engine/BlockPlan.h"
#include "cuda/engine/Engine.h"
#include "cuda/operands/AugmentedOperands.h"

/** What an engine holds: its rows, all or a block at a time, and memory. */
namespace gmm::cuda {

namespace {

/// Largest |y| that the operands hold: their squares are fp16 numbers too.
float largest_value(bool squares) {
    return squares ? 240.f : 60000.f;
}

} // namespace

void Engine::bind(
        const VectorSource& source,
        size_t begin,
        size_t end,
        const float* weights,
        double weight_scale,
        const Frame& frame) {
    use_device();
    weight_scale_ = weight_scale;
    least_weight_ = 1;
    for (size_t i = begin; weights && i < end; i++) {
        const double w = weights[i] / weight_scale;
        least_weight_ = w > 0 ? std::min(least_weight_, w) : least_weight_;
    }
    rows_memory_.release();
    sparse_.release();
    dense_.release();
    resident_ = false;
    block_rows_ = 0;
    rows_changed();
    row_squares_ = nullptr;
    take_rows(source, begin, end, weights, frame, used_bytes());
    small_.reserve(source.d * sizeof(float) + 64);
    checks_host_.reserve(sizeof(RowChecks));
    check(cudaMemcpyAsync(
                  small_.as<char>(64),
                  frame_.center.data(),
                  source.d * sizeof(float),
                  cudaMemcpyHostToDevice,
                  stream_),
          "upload of the frame");
    clear_checks();
}

void Engine::clear_checks() {
    new (checks_host_.as<RowChecks>()) RowChecks;
    check(cudaMemcpyAsync(
                  small_.as<char>(),
                  checks_host_.as<char>(),
                  sizeof(RowChecks),
                  cudaMemcpyHostToDevice,
                  stream_),
          "clearing");
}

bool Engine::can_fuse() const {
    return score_.hopper && model_.folded &&
            largest_norm_ <= kAugmentedRowLimit &&
            model_.largest_score(largest_norm_) <= kAugmentedScoreLimit;
}

void Engine::check_rows() const {
    require_finite(checks_host_.as<RowChecks>()->first_bad);
}

bool Engine::lower_fp16_scale() {
    check(cudaMemcpyAsync(
                  checks_host_.as<char>(),
                  small_.as<char>(),
                  sizeof(RowChecks),
                  cudaMemcpyDeviceToHost,
                  stream_),
          "reading the checks");
    check(cudaStreamSynchronize(stream_), "conversion of rows");
    const RowChecks& found = *checks_host_.as<RowChecks>();
    const float largest = std::bit_cast<float>(found.largest);
    const float limit = largest_value(has_squares());
    largest_norm_ =
            std::max(largest_norm_, std::bit_cast<float>(found.largest_norm));
    if (largest * fp16_scale_ <= limit) {
        return false;
    }
    fp16_scale_ = std::exp2(std::floor(std::log2(limit / largest)));
    while (largest * fp16_scale_ > limit) { // the logarithm is rounded
        fp16_scale_ /= 2;
    }
    return true;
}

PrepareArgs Engine::prepare_args(
        const BlockUploader::Block& block, ElementType type) const {
    PrepareArgs args;
    args.input = block.data;
    args.type = type;
    args.stride = block.stride;
    args.rows = block.rows;
    args.d = int(shape_.d);
    args.center = small_.as<float>(64);
    args.scale = frame_.scale;
    args.fp16_scale = fp16_scale_;
    args.limit = largest_value(has_squares());
    args.row_begin = 0;
    args.row_number = int64_t(block.begin);
    args.squares = has_squares();
    args.lo = false;
    return args;
}

size_t Engine::used_bytes() const {
    return rows_memory_.bytes() + weight_memory_.bytes() + sparse_.bytes() +
            dense_.bytes() + long_.bytes() + sums_memory_.bytes() +
            small_.bytes() + top_memory_.bytes() +
            (feeder_ ? feeder_->bytes() : 0);
}

/// Decides between resident rows and blocks, and allocates for it.
void Engine::reserve(bool lo) {
    const size_t n = end_ - begin_;
    const size_t d = shape_.d, k = shape_.k;
    const bool squares = has_squares();
    // Second halves that are there already cost nothing.
    const bool stays =
            resident_ && resident_squares_ == squares && resident_lo_ >= lo;
    const int layout = planes(lo || (stays && resident_lo_));
    if (!stays) {
        resident_ = false; // also if what follows throws
    }
    sums_.k = int(k);
    sums_.d = int(d);
    const size_t doubles = k * (2 + d * (squares ? 2 : 1));
    sums_memory_.reserve((doubles + kTotals + 2 * kSumBlocks) * sizeof(double));
    totals_host_.reserve(kTotals * sizeof(double));
    sums_.n_k = sums_memory_.as<double>();
    sums_.constant = sums_.n_k + k;
    sums_.y = sums_.constant + k;
    sums_.y2 = squares ? sums_.y + k * d : nullptr;
    objective_ = sums_.n_k + doubles;
    dense_.reserve(model_.padded_k, int(d), layout, squares, lo, can_fuse());
    long_.reserve();

    const auto bytes_of_row = [&](int row_planes) {
        return prepared_row_bytes(int(d), row_planes) +
                (weights_ ? sizeof(float) : 0);
    };
    const size_t row_bytes = bytes_of_row(layout);
    const size_t raw_bytes = 2 * d * element_size(source_->type);
    const size_t fixed = dense_.bytes() + long_.bytes() + sums_memory_.bytes();
    const auto scratch_bytes = [&](int64_t rows) {
        return SparseScratch::bytes_for(int(rows), int(k), int(d), squares);
    };
    const BlockPlan plan = plan_blocks(
            {n,
             d,
             row_bytes,
             bytes_of_row(planes(true)),
             raw_bytes,
             fixed,
             budget_,
             SparseScratch::good_rows(int(k), int(d), squares)},
            scratch_bytes);
    const bool fits = plan.resident;
    // A smaller block is tried before memory is said to be short.
    for (int64_t block = plan.rows;;
         block = std::max<int64_t>(
                 block / 2 / kGatherTile * kGatherTile, 1024)) {
        const size_t others = fixed +
                (fits ? n * row_bytes
                      : size_t(block) * (row_bytes + raw_bytes));
        const size_t need = others + scratch_bytes(block);
        const bool smallest = block <= 1024;
        if (!fits && need > budget_) {
            if (!smallest) {
                continue;
            }
            throw OutOfMemory(
                    "CUDA: asked for " + std::to_string(need) +
                    " bytes of device memory for a block of " +
                    std::to_string(block) + " vectors; " +
                    std::to_string(budget_) +
                    " may be used (memory_limit, or nine tenths of what was "
                    "free)");
        }
        if (others + sparse_.bytes() > budget_) {
            sparse_.release(); // it was larger
        }
        try {
            sparse_.reserve(int(block), int(k), int(d), squares);
            if (!fits) {
                rows_memory_.reserve(
                        size_t(block) * row_bytes + kPreparedSlack);
                feeder_->reserve(int(block), d, source_->type);
            } else {
                rows_memory_.reserve(n * row_bytes + kPreparedSlack);
            }
            block_rows_ = int(block);
            break;
        } catch (const OutOfMemory&) {
            sparse_.release();
            if (smallest) {
                throw;
            }
        }
    }
    const int64_t capacity = fits ? int64_t(n) : block_rows_;
    rows_.lay_out(rows_memory_.as<char>(), capacity, int(d), layout);
    if (weights_) {
        weight_memory_.reserve(size_t(capacity) * sizeof(float));
        weight_staging_.reserve(size_t(block_rows_) * sizeof(float));
    }
    if (!fits) {
        resident_ = false;
    } else if (!stays) {
        make_resident(lo);
    }
}

void Engine::make_resident(bool lo) {
    bool more;
    do {
        clear_checks();
        feeder_->run(
                *source_,
                begin_,
                end_,
                std::min(block_rows_, kStagedBlock),
                stream_,
                [&](const BlockUploader::Block& block) {
                    PrepareArgs args = prepare_args(block, source_->type);
                    args.row_begin = int64_t(block.begin - begin_);
                    args.lo = lo;
                    prepare_rows(args, rows_, small_.as<RowChecks>(), stream_);
                });
        more = lower_fp16_scale();
        check_rows();
    } while (more);
    if (weights_) {
        std::vector<float> scaled(end_ - begin_);
        for (size_t i = 0; i < scaled.size(); i++) {
            scaled[i] = float(weights_[begin_ + i] / weight_scale_);
        }
        check(cudaMemcpyAsync(
                      weight_memory_.as<float>(),
                      scaled.data(),
                      scaled.size() * sizeof(float),
                      cudaMemcpyHostToDevice,
                      stream_),
              "upload of weights");
        check(cudaStreamSynchronize(stream_), "upload of weights");
    }
    resident_ = true;
    resident_lo_ = lo;
    resident_squares_ = has_squares();
}

} // namespace gmm::cuda
