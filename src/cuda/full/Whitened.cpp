#include "cuda/full/Whitened.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "FullCovariance.h"
#include "ParallelFor.h"

namespace gmm::cuda {

using namespace full;

namespace {

/// The variance v in z. d log(2 pi v), hundreds of nats elsewhere, is next to
/// 0: scores are floats. So is Model::half_inverse; by the deviation of z it is
/// exact.
constexpr float kVariance = float(0.5 / std::numbers::pi);
constexpr double kHalfLog2e = 0.5 * std::numbers::log2e;
const double kDeviation = std::sqrt(kHalfLog2e / float(kHalfLog2e / kVariance));
/// Deviations of a coordinate of a mean: rows near it are off by 2^-22 of that.
constexpr float kFarthestMean = 64;
/// Of a row, all of whose distances are off alike.
constexpr float kFarthestRow = 4096;

} // namespace

Rows Whitened::Rows::rows(
        size_t begin, size_t count, std::vector<std::byte>&) const {
    const size_t pitch = size_t(from.pitch);
    DeviceMemory& to = buffers[turn];
    turn ^= 1;
    to.reserve(count * pitch * sizeof(float));
    whiten_rows(
            from.y + (begin - first) * pitch,
            int64_t(count),
            factor,
            from.d,
            from.pitch,
            kDeviation,
            to.as<float>(),
            largest,
            stream);
    return {to.as<float>(),
            ElementType::f32,
            count,
            size_t(from.d),
            pitch * sizeof(float)};
}

void Whitened::bind(
        const VectorSource& source,
        size_t begin,
        size_t end,
        const float* weights,
        double weight_scale,
        const FullRows& rows,
        size_t memory_limit,
        cudaStream_t stream) {
    release();
    CudaOptions options = options_;
    // All that is kept of a row sums to 1 then: second moments are of w_i.
    options.precision = Precision::exact;
    options.memory_limit = memory_limit;
    auto made = std::make_unique<Engine>(device_, options);
    rows_.n = source.n;
    rows_.d = source.d;
    rows_.first = begin;
    rows_.from = rows;
    rows_.stream = made->stream();
    small_.reserve(sizeof(unsigned int));
    rows_.largest = small_.as<unsigned int>();
    // To whole tiles, for bulk copies.
    squares_.reserve((end - begin + kGatherTile) * sizeof(float));
    square_norms(rows, int64_t(end - begin), squares_.as<float>(), stream);
    check(cudaStreamSynchronize(stream), "norms of rows");
    Frame frame;
    frame.center.assign(source.d, 0);
    made->bind(rows_, begin, end, weights, weight_scale, frame);
    made->set_row_squares(squares_.as<float>());
    if (near_) {
        made->set_model(model_);
    }
    engine = std::move(made);
}

void Whitened::release() {
    engine.reset();
    for (DeviceMemory& m : rows_.buffers) {
        m.release();
    }
    squares_.release();
}

void Whitened::set_model(
        const GaussianMixture& model,
        const float* means,
        const float* factor,
        cudaStream_t stream) {
    const size_t k = model.k, d = model.d, pitch = (d + 3) / 4 * 4;
    factor_ = model.precisions_cholesky;
    model_.covariance = Covariance::tied_spherical;
    model_.k = k;
    model_.d = d;
    model_.variances = {kVariance};
    model_.log_weights = model.log_weights;
    volume_ = 0.5 *
            (double(d) * std::log(double(kVariance)) -
             log_determinant(d, factor_.data()));
    DeviceMemory z;
    z.reserve(k * pitch * sizeof(float));
    small_.reserve(sizeof(unsigned int));
    whiten_rows(
            means,
            int64_t(k),
            factor,
            int(d),
            int(pitch),
            kDeviation,
            z.as<float>(),
            small_.as<unsigned int>(),
            stream);
    model_.means.resize(k * d);
    check(cudaMemcpy2DAsync(
                  model_.means.data(),
                  d * sizeof(float),
                  z.as<float>(),
                  pitch * sizeof(float),
                  d * sizeof(float),
                  k,
                  cudaMemcpyDeviceToHost,
                  stream),
          "reading means");
    check(cudaStreamSynchronize(stream), "reading means");
    near_ = std::all_of(model_.means.begin(), model_.means.end(), [](float z) {
        return std::fabs(z) <= kFarthestMean * kDeviation;
    });
    rows_.factor = factor;
    if (near_ && engine) {
        engine->set_model(model_);
    }
}

size_t Whitened::bytes() const {
    return (engine ? engine->report.device_bytes : 0) +
            rows_.buffers[0].bytes() + rows_.buffers[1].bytes() +
            squares_.bytes() + small_.bytes();
}

bool Whitened::accumulate() {
    if (!near_) {
        return false;
    }
    check(cudaMemsetAsync(
                  rows_.largest, 0, sizeof(*rows_.largest), rows_.stream),
          "clearing");
    engine->rows_changed();
    engine->accumulate(EStep::soft);
    unsigned int largest = 0;
    check(cudaMemcpy(
                  &largest,
                  rows_.largest,
                  sizeof(largest),
                  cudaMemcpyDeviceToHost),
          "reading the checks");
    return std::bit_cast<float>(largest) <= kFarthestRow * kDeviation;
}

void Whitened::read_sums(bool add, SufficientStats& stats) {
    const size_t k = model_.k, d = model_.d;
    SufficientStats sums(Covariance::tied_spherical, k, d);
    engine->read_sums(EStep::soft, false, sums);
    const auto put = [add](double& to, double x) { to = (add ? to : 0.) + x; };
    // sum_x of the frame, with sum_z = sum_x U times the deviation.
    const auto solve = [&](size_t c) {
        double* const z = sums.sum_x.data() + c * d;
        for (size_t i = 0; i < d; i++) {
            const float* const u = factor_.data() + i * d;
            const double x = z[i] / u[i];
            for (size_t j = i + 1; j < d; j++) {
                z[j] -= x * u[j];
            }
            put(stats.sum_x[c * d + i], x / kDeviation);
        }
        put(stats.n_k[c], sums.n_k[c]);
        put(stats.sum_x2[c], sums.sum_x2[c]);
    };
    parallel_for(k, solve, worth_threads(double(k) * d * d));
    put(stats.weight, sums.weight);
    put(stats.objective, sums.objective + volume_ * sums.weight);
    put(stats.dropped_mass, sums.dropped_mass);
}

std::vector<float> Whitened::row_log_prob() const {
    std::vector<float> out = engine->row_log_prob();
    for (float& x : out) {
        x = float(x + volume_);
    }
    return out;
}

} // namespace gmm::cuda
