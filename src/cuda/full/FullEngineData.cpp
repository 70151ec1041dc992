#include <algorithm>
#include <cmath>

#include "cuda/full/FullEngine.h"
#include "cuda/full/LeadBasis.h"

/** What an engine holds: its rows, all or a block at a time, and memory. */
namespace gmm::cuda {

using namespace full;

namespace {

constexpr int64_t kSampleRows = 65536; ///< that the basis is found from
constexpr int64_t kMostRows = int64_t(1) << 20;     ///< of a block
constexpr size_t kBitBytes = size_t(64) << 20;      ///< of a block
constexpr size_t kMostPairs = size_t(32) << 20;     ///< evaluated at a time
constexpr size_t kPairBytes = 4 + 8 + 4 + 4;        ///< PairLists
constexpr size_t kRowBytes = 4 + 4 + 8 + 8 + 8 + 4; ///< RowTotals

int64_t whole(int64_t rows) {
    return (rows + kBoundRows - 1) / kBoundRows * kBoundRows;
}

} // namespace

void FullEngine::bind(
        const VectorSource& source,
        size_t begin,
        size_t end,
        const float* weights,
        double weight_scale,
        const Frame& frame) {
    use_device();
    rows_memory_.release();
    bits_.release();
    lists_memory_.release();
    row_memory_.release();
    sums_memory_.release();
    pieces_memory_.release();
    whitened_.release();
    weight_scale_ = weight_scale;
    resident_ = stays_ = has_basis_ = has_totals_ = whitens_ = false;
    block_rows_ = 0;
    pass_.dropped_unit = std::ldexp(1 / weight_scale, 40);
    take_rows(source, begin, end, weights, frame, used_bytes());
    small_.reserve(
            64 + PassTotals::kPartials * sizeof(double) +
            source.d * sizeof(float));
    pass_.objective = small_.as<double>();
    pass_.dropped = small_.as<unsigned long long>(8);
    pass_.kept = small_.as<unsigned long long>(16);
    pass_.partial = small_.as<double>(64);
    check(cudaMemcpyAsync(
                  small_.as<char>(64 + PassTotals::kPartials * sizeof(double)),
                  frame_.center.data(),
                  source.d * sizeof(float),
                  cudaMemcpyHostToDevice,
                  stream_),
          "upload of the frame");
    check(cudaMemsetAsync(small_.as<char>(24), 0xff, 8, stream_), "clearing");
    host_.reserve(256);
    check(cudaStreamSynchronize(stream_), "upload of the frame");
}

size_t FullEngine::used_bytes() const {
    size_t sum = feeder_.bytes() + whitened_.bytes();
    for (const DeviceMemory* m :
         {&means_,
          &factors_,
          &log_weights_,
          &identity_,
          &bounds_,
          &prepare_scratch_,
          &rows_memory_,
          &row_weights_,
          &basis_,
          &screen_,
          &bits_,
          &lists_memory_,
          &row_memory_,
          &small_,
          &top_memory_,
          &sums_memory_,
          &pieces_memory_,
          &total_memory_}) {
        sum += m->bytes();
    }
    return sum;
}

void FullEngine::reserve() {
    const int64_t n = int64_t(end_ - begin_);
    const size_t k = size_t(k_), d = size_t(d_);
    const bool moments = covariance_ == Covariance::full;
    const MomentSums sums{nullptr, k_, d_, moments};
    small_shape_ = moments && has_small_shape(k_, d_, device_);
    const int pieces =
            small_shape_ ? kSmallPieces : moment_pieces(k_, d_, moments);
    const size_t triangle = MomentSums{nullptr, 1, d_, true}.size();
    const size_t total_pieces = size_t(moment_pieces(1, d_, true));
    sums_memory_.reserve(sums.size() * sizeof(double));
    pieces_memory_.reserve(
            std::max(
                    pieces > 1 ? pieces * sums.size() : 0,
                    total_pieces * triangle) *
            sizeof(double));
    total_memory_.reserve(triangle * sizeof(double));
    basis_.reserve(d * (kLead + 1) * sizeof(float));
    if (d_ > kLead && d_ <= kScreenDimension) {
        screen_.reserve(k * screen_bytes(d_));
    }
    prepare_scratch_.reserve(bound_scratch_bytes(d_));
    identity_.reserve(d * size_t(pitch_) * sizeof(float));
    bounds_.reserve(
            (k + 3) / 4 *
            (256 * sizeof(uint4) + 32 * sizeof(float2) +
             4 * (sizeof(BoundTerms) + sizeof(ComponentTerms))));
    sums_ = sums;
    sums_.sums = sums_memory_.as<double>();
    pieces_ = pieces;

    const size_t row_bytes = (size_t(pitch_) + kLead + 2) * sizeof(float) +
            (weights_ ? sizeof(float) : 0);
    const size_t raw_bytes = 2 * d * element_size(source_->type);
    const size_t fixed = used_bytes() - rows_memory_.bytes() -
            row_weights_.bytes() - bits_.bytes() - lists_memory_.bytes() -
            row_memory_.bytes() - feeder_.bytes() - whitened_.bytes();
    int64_t block = whole(std::min(
            {std::max<int64_t>(n, 1),
             kMostRows,
             std::max<int64_t>(int64_t(kBitBytes * 8 / k), kBoundRows)}));
    size_t pairs = 0;
    // All rows of a word, whatever they need.
    const size_t least_pairs = 64 * k;
    auto fit = [&](bool resident) {
        const int64_t rows = resident ? whole(n) : block;
        const size_t need = fixed + size_t(rows) * row_bytes +
                size_t(block) * (kRowBytes + k / 8 + 1) +
                (resident ? std::min(rows, block) : rows) * raw_bytes;
        const size_t all =
                std::max(least_pairs, std::min(size_t(block) * k, kMostPairs));
        pairs = need > budget_ ? 0
                               : std::min(all, (budget_ - need) / kPairBytes);
        return pairs >= std::max(least_pairs, std::min(all, size_t(1) << 22));
    };
    stays_ = fit(true);
    while (!stays_ && !fit(false)) {
        if (block == kBoundRows) {
            throw OutOfMemory(
                    "CUDA: " + std::to_string(budget_) +
                    " bytes of device memory (memory_limit, or nine tenths of "
                    "what was free) do not hold a block of " +
                    std::to_string(block) + " vectors beside " +
                    std::to_string(fixed) + " bytes of model and statistics");
        }
        block = whole(block / 2);
    }
    resident_ &= stays_;
    block_rows_ = block;
    most_pairs_ = pairs;
    const int64_t rows = stays_ ? whole(n) : block;
    const bool moved = rows_memory_.bytes() <
            size_t(rows) * (size_t(pitch_) + kLead + 2) * sizeof(float);
    rows_memory_.reserve(
            size_t(rows) * (size_t(pitch_) + kLead + 2) * sizeof(float));
    if (moved) {
        resident_ = false;
        check(cudaMemsetAsync(
                      rows_memory_.as<char>(),
                      0,
                      rows_memory_.bytes(),
                      stream_),
              "clearing");
    }
    rows_.d = d_;
    rows_.pitch = pitch_;
    rows_.y = rows_memory_.as<float>();
    rows_.lead = rows_.y + rows * pitch_;
    rows_.slack = rows_.lead + rows * kLead;
    rows_.spread = rows_.slack + rows;
    if (weights_) {
        row_weights_.reserve(size_t(rows) * sizeof(float));
    }

    pairs_.words = block / 64;
    bits_.reserve(k * size_t(pairs_.words) * sizeof(uint64_t));
    pairs_.bits = bits_.as<uint64_t>();
    const int segments = segments_of(pairs_.words);
    const size_t counts = k * size_t(segments) + 1;
    lists_.k = k_;
    lists_.segments = segments;
    lists_.scratch_bytes = list_scratch_bytes(k_, segments);
    const size_t list_bytes[] = {
            pairs * sizeof(double),
            pairs * 4,
            pairs * 4,
            pairs * 4,
            counts * 4,
            counts * 4,
            (k + 1) * 4,
            (k + 1) * 4,
            lists_.scratch_bytes};
    auto aligned = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
    size_t all = 0;
    for (size_t bytes : list_bytes) {
        all += aligned(bytes);
    }
    lists_memory_.reserve(all);
    size_t at = 0, i = 0;
    auto take = [&]() {
        void* const p = lists_memory_.as<char>(at);
        at += aligned(list_bytes[i++]);
        return p;
    };
    lists_.value = static_cast<double*>(take());
    lists_.row = static_cast<int32_t*>(take());
    lists_.error = static_cast<float*>(take());
    lists_.r = static_cast<float*>(take());
    lists_.counts = static_cast<uint32_t*>(take());
    lists_.begin = static_cast<uint32_t*>(take());
    lists_.tiles = static_cast<uint32_t*>(take());
    lists_.tile_begin = static_cast<uint32_t*>(take());
    lists_.scratch = take();

    row_memory_.reserve(size_t(block) * kRowBytes);
    totals_.top = row_memory_.as<unsigned long long>();
    totals_.sum = totals_.top + block;
    totals_.log_prob = reinterpret_cast<double*>(totals_.sum + block);
    totals_.best = reinterpret_cast<int*>(totals_.log_prob + block);
    totals_.least = reinterpret_cast<float*>(totals_.best + block);
    totals_.winner = reinterpret_cast<uint32_t*>(totals_.least + block);
}

LoadArgs FullEngine::load_args(const Block& block, ElementType type) const {
    LoadArgs args;
    args.input = block.data;
    args.type = type;
    args.stride = block.stride;
    args.rows = block.rows;
    args.center = small_.as<float>(64 + PassTotals::kPartials * sizeof(double));
    args.scale = frame_.scale;
    args.row_number = int64_t(block.begin);
    args.first_bad = small_.as<unsigned long long>(24);
    args.bad = nullptr;
    return args;
}

/// Rows of the source, and their weights, to where row `to` is.
void FullEngine::load(const Block& block, int64_t to) {
    const LoadArgs args = load_args(block, source_->type);
    load_rows(args, rows_.from(to), stream_);
    if (weights_) {
        check(cudaMemcpyAsync(
                      row_weights_.as<float>() + to,
                      weights_ + block.begin,
                      size_t(block.rows) * sizeof(float),
                      cudaMemcpyHostToDevice,
                      stream_),
              "upload of weights");
    }
}

void FullEngine::check_rows() {
    auto* const found = host_.as<unsigned long long>(64);
    check(cudaMemcpyAsync(
                  found,
                  small_.as<char>(24),
                  sizeof(*found),
                  cudaMemcpyDeviceToHost,
                  stream_),
          "reading the checks");
    check(cudaStreamSynchronize(stream_), "conversion of rows");
    require_finite(*found);
}

void FullEngine::find_basis(int64_t count) {
    const MomentSums sums{total_memory_.as<double>(), 1, d_, true};
    check(cudaMemsetAsync(sums.sums, 0, sums.size() * sizeof(double), stream_),
          "clearing");
    add_all_moments(
            rows_,
            std::min(count, kSampleRows),
            nullptr,
            sums,
            moment_pieces(1, d_, true),
            pieces_memory_.as<double>(),
            stream_);
    std::vector<double> host(sums.size());
    check(cudaMemcpyAsync(
                  host.data(),
                  sums.sums,
                  host.size() * sizeof(double),
                  cudaMemcpyDeviceToHost,
                  stream_),
          "reading moments");
    check(cudaStreamSynchronize(stream_), "moments");
    std::vector<float> basis = lead_basis(d_, host.data() + 1 + d_);
    std::vector<double> variances(d_);
    double mean = 0;
    for (size_t j = 0; j < size_t(d_); j++) {
        variances[j] = host[1 + d_ + j * (j + 3) / 2] / host[0];
        mean += variances[j] / d_;
    }
    for (double v : variances) { // none is 0
        basis.push_back(float(std::sqrt(std::max(v, 1e-6 * mean) + 1e-30)));
    }
    check(cudaMemcpyAsync(
                  basis_.as<float>(),
                  basis.data(),
                  basis.size() * sizeof(float),
                  cudaMemcpyHostToDevice,
                  stream_),
          "upload of the basis");
    check(cudaStreamSynchronize(stream_), "upload of the basis");
    has_basis_ = true;
    check(cudaMemsetAsync(sums.sums, 0, sums.size() * sizeof(double), stream_),
          "clearing");
}

Directions FullEngine::directions() const {
    if (!has_basis_) {
        return {nullptr, nullptr};
    }
    return {basis_.as<float>(), basis_.as<float>() + d_ * kLead};
}

void FullEngine::add_totals(int64_t first, int64_t count) {
    add_all_moments(
            rows_.from(first),
            count,
            weights_ ? row_weights_.as<float>() + first : nullptr,
            {total_memory_.as<double>(), 1, d_, true},
            moment_pieces(1, d_, true),
            pieces_memory_.as<double>(),
            stream_);
}

} // namespace gmm::cuda
