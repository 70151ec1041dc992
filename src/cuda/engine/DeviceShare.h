#pragma once

#include <vector>

#include "CudaOptions.h"
#include "cuda/engine/Staging.h"

namespace gmm::cuda {

/** What both engines stand on: a device, a stream on it, the rows that are its
 * share, and the time that a pass takes. */
struct DeviceShare {
    DeviceShare(int device, const CudaOptions& options);
    ~DeviceShare();
    DeviceShare(const DeviceShare&) = delete;
    DeviceShare& operator=(const DeviceShare&) = delete;

    /// All of the share's work on the device is on it, in order.
    cudaStream_t stream() const {
        return stream_;
    }

    CudaReport report;

protected:
    void use_device() const;
    /// What was begun on the stream has ended: before an engine's memory goes.
    void finish() const noexcept;

    /// Rows [begin, end) of the source; `held`: bytes on the device that may be
    /// given up.
    void take_rows(
            const VectorSource& source,
            size_t begin,
            size_t end,
            const float* weights,
            const Frame& frame,
            size_t held);
    /// Of the share's rows: their number without weights.
    double total_weight() const;

    /// Throws InvalidArgument that names the row, unless it is ~0: none.
    void require_finite(unsigned long long first_bad) const;

    /// A pass begins: its marks are of the steps of its first block.
    void clear_marks() {
        marked_ = 0;
    }
    void no_marks() {
        marked_ = kSteps + 1;
    }
    void mark();
    /// From started_ to finished_, and between marks, to the report.
    void read_times();

    int device_;
    CudaOptions options_;
    bool hopper_; ///< kernels for sm_90a are used
    cudaStream_t stream_ = nullptr;
    cudaEvent_t started_ = nullptr, finished_ = nullptr;
    Staging staging_;

    const VectorSource* source_ = nullptr;
    size_t begin_ = 0, end_ = 0;
    const float* weights_ = nullptr;
    Frame frame_;
    size_t budget_ = 0; ///< bytes on the device

private:
    static constexpr int kSteps = 5;
    cudaEvent_t steps_[kSteps + 1] = {};
    int marked_ = 0;
};

} // namespace gmm::cuda
