#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "Backend.h"

namespace gmm {

/// What the E-step's matrix products are computed in.
enum class Precision {
    /// fp16 operands, fp32 sums; pairs of row and component where this would
    /// show (see CudaOptions::tolerance) are evaluated in fp32
    fast,
    /// operands split into two fp16 numbers, all listed pairs in fp32
    exact,
};

/// Which kernel computes the logits.
enum class Kernel {
    automatic, ///< the fastest that the device can run
    portable,  ///< mma.sync and cp.async: sm_80 and later
    hopper,    ///< wgmma and TMA: sm_90 only
};

struct CudaOptions {
    Precision precision = Precision::fast;
    Kernel kernel = Kernel::automatic;
    /// nats of log-likelihood (standard deviation, estimated from lengths and
    /// the data's variances; the true one is 1.4 to 1.6 times that) that
    /// rounding may cost a pair of row and component in `fast` before it is
    /// evaluated in fp32. The worst of 100,000 rows is off by up to 10 times as
    /// much.
    double tolerance = 0.0052;
    /// bytes of device memory to use at most for rows, scratch and sums, beside
    /// the model; 0: nine tenths of what is free.
    /// Whether all rows fit decides in which blocks they are added, and so the
    /// last bits of sums
    size_t memory_limit = 0;
    /// CUDA device numbers that share the data; empty: the current device, or
    /// the first that can be used if that cannot
    std::vector<int> devices;
};

/// Throws DeviceError if there is no such device, or no CUDA in this build, and
/// InvalidArgument for an option that cannot be.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

/// What the last accumulate() did, for benchmarks and tests.
struct CudaReport {
    double kernel_ms = 0;        ///< device time of the pass, all blocks
    size_t rows = 0;             ///< rows seen
    size_t long_rows = 0;        ///< of these, with long lists
    size_t dense_rows = 0;       ///< and through the dense path
    size_t responsibilities = 0; ///< that were summed on the sparse path
    size_t device_bytes = 0;     ///< allocated now: data, scratch and sums
    bool resident = false;       ///< data were kept on the device
    bool exact = false;          ///< pairs may have been evaluated in fp32
    /// of the pass's first block, ms: choice of components (one GEMM and its
    /// epilogue), exact evaluation and compaction, dense path where most rows
    /// need it, long lists and sparse sums, dense path of what is left
    std::vector<double> steps_ms;
};

/// The report of a backend that make_cuda_backend returned.
CudaReport cuda_report(const Backend& backend);

/// log p(y) in the frame of each row in the last accumulate()'s last block, on
/// the first device: what errors are measured on.
std::vector<float> cuda_row_log_prob(const Backend& backend);

} // namespace gmm
