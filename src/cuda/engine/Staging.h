#pragma once

#include <algorithm>
#include <vector>

#include "cuda/engine/Check.h"

namespace gmm::cuda {

/** Large arrays between the host's memory and a device's: through pinned
 * memory, a piece at a time, so that the host is at work on one while others
 * are on their way. */
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
        const size_t most = std::max(
                std::min(kPieceBytes / sizeof(float), rows * row), row);
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
        const size_t most = std::min(kPieceBytes / sizeof(double), n);
        begin(most * sizeof(double));
        size_t asked = 0;
        const auto send = [&] {
            if (asked < n) {
                const size_t count = std::min(most, n - asked);
                auto* const piece = static_cast<double*>(next());
                copy(piece, from + asked, count, stream);
                sent(stream);
                asked += count;
            }
        };
        for (int i = 1; i < kPieces; i++) {
            send();
        }
        for (size_t first = 0; first < n; first += most) {
            send();
            use(first,
                std::min(first + most, n),
                static_cast<const double*>(arrived()));
        }
    }

private:
    static constexpr int kPieces = 4;
    static constexpr size_t kPieceBytes = size_t(8) << 20;

    /// kPieces of so many bytes, in turn.
    void begin(size_t bytes);
    /// The piece after the last, which nothing reads or writes any more.
    void* next();
    void sent(cudaStream_t stream);
    /// The oldest that was sent, when it is there.
    const void* arrived();

    PinnedMemory memory_;
    size_t bytes_ = 0;
    cudaEvent_t done_[kPieces] = {};
    int sent_ = 0, arrived_ = 0;
};

} // namespace gmm::cuda
