#pragma once

#include <algorithm>
#include <vector>

#include "cuda/engine/Check.h"

namespace gmm::cuda {

/** Large arrays between the host's memory and a device's: through pinned
 * memory, a piece at a time, so that the host is at work on one while the other
 * is on its way. */
struct Staging {
    Staging() = default;
    ~Staging();
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;

    /// Of rows of d values, to where rows have `pitch`, whose rest is 0.
    void upload(
            float* to,
            const std::vector<float>& from,
            size_t d,
            size_t pitch,
            cudaStream_t stream);

    /// To `rows` rows of `row` values. fill(begin, end, piece) puts rows
    /// [begin, end) into the piece; returns when all are on their way.
    template <class Fill>
    void upload(
            float* to,
            size_t rows,
            size_t row,
            cudaStream_t stream,
            const Fill& fill) {
        const size_t most = std::max<size_t>(kPieceBytes / sizeof(float), row);
        begin(most * sizeof(float));
        for (size_t first = 0; first < rows; first += most / row) {
            const size_t end = std::min(first + most / row, rows);
            float* const piece = static_cast<float*>(next());
            fill(first, end, piece);
            copy(to + first * row, piece, (end - first) * row, stream);
            sent(stream);
        }
    }

    /// Calls use(begin, end, values) for parts of n values, in order; values[0]
    /// is that at `begin`.
    template <class Use>
    void download(
            const double* from, size_t n, cudaStream_t stream, const Use& use) {
        constexpr size_t kMost = kPieceBytes / sizeof(double);
        begin(kPieceBytes);
        const auto send = [&](size_t first) {
            if (first < n) {
                auto* const piece = static_cast<double*>(next());
                copy(piece, from + first, std::min(kMost, n - first), stream);
                sent(stream);
            }
        };
        send(0);
        for (size_t first = 0; first < n; first += kMost) {
            send(first + kMost);
            use(first,
                std::min(first + kMost, n),
                static_cast<const double*>(arrived()));
        }
    }

private:
    static constexpr size_t kPieceBytes = size_t(4) << 20;

    /// Two pieces of so many bytes, in turn.
    void begin(size_t bytes);
    /// The piece after the last, which nothing reads or writes any more.
    void* next();
    void sent(cudaStream_t stream);
    /// The oldest that was sent, when it is there.
    const void* arrived();

    PinnedMemory memory_;
    size_t bytes_ = 0;
    cudaEvent_t done_[2] = {};
    int sent_ = 0, arrived_ = 0;
};

} // namespace gmm::cuda
