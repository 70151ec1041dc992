#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "Backend.h"

namespace gmm {

/// What the E-step's matrix products are computed in.
enum class Precision {
    /// fp16 operands, fp32 sums; pairs of row and component where the rounding
    /// would show (CudaOptions::tolerance) are evaluated in fp32
    fast,
    /// operands split into two fp16 numbers; all pairs whose responsibility
    /// counts are evaluated in fp32
    exact,
};

/// Which kernel computes the scores of rows and components.
enum class Kernel {
    automatic, ///< the fastest that the device can run
    portable,  ///< mma.sync and cp.async: sm_80 and later
    hopper,    ///< wgmma and TMA: sm_90 only
};

struct CudaOptions {
    Precision precision = Precision::fast; ///< tied: rows that stay on the
                                           ///< device are always `exact`
    Kernel kernel = Kernel::automatic;
    /// For `fast`: the rounding error of the log-likelihood of a pair of row
    /// and component, in nats, above which the pair is evaluated in fp32. A
    /// standard deviation, estimated from lengths and the data's variances: the
    /// true one is 1.4 to 1.6 times as large, and the worst of 100,000 rows is
    /// off by up to 10 times as much.
    double tolerance = 0.0052;
    /// Bytes of device memory to use at most for rows, scratch and sums, beside
    /// the model; 0: nine tenths of what is free. Whether all rows fit decides
    /// in which blocks they are added, and so the last bits of sums.
    size_t memory_limit = 0;
    /// CUDA device numbers that share the data; empty: the current device, or
    /// the first usable one if that is not usable.
    std::vector<int> devices;
};

/// A backend on these devices. Throws DeviceError if one does not exist or the
/// build has no CUDA, and InvalidArgument for an option out of range.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

/// What the last accumulate() did, for benchmarks and tests.
struct CudaReport {
    double kernel_ms = 0;        ///< device time of the pass, all blocks
    size_t rows = 0;             ///< rows seen
    size_t long_rows = 0;        ///< of these, rows with long lists
    size_t dense_rows = 0;       ///< of these, rows on the dense path
    size_t responsibilities = 0; ///< summed on the sparse path
    size_t device_bytes = 0;     ///< allocated now: data, scratch and sums
    bool resident = false;       ///< data were kept on the device
    bool exact = false;          ///< pairs may have been evaluated in fp32
    /// steps of the pass's first block: choice of components (one GEMM and its
    /// epilogue), exact evaluation and compaction, dense path where most rows
    /// need it, long lists and sparse sums, dense path of the remaining rows
    std::vector<double> steps_ms;
};

/// The report of a backend that make_cuda_backend returned.
CudaReport cuda_report(const Backend& backend);

/// log p(y), y in the frame, of each row in the last block of the last
/// accumulate() on the first device: for measuring errors.
std::vector<float> cuda_row_log_prob(const Backend& backend);

} // namespace gmm
