#include "cuda/engine/DeviceShare.h"

namespace gmm::cuda {

namespace {

/// Of kernel's choices, on the current device. Throws DeviceError where the
/// Hopper kernels were asked for in vain.
bool uses_hopper(int device, Kernel kernel) {
    const int major =
            device_attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor =
            device_attribute(cudaDevAttrComputeCapabilityMinor, device);
    const bool can = major == 9 && minor == 0;
    if (kernel == Kernel::hopper && !can) {
        throw DeviceError(
                "CUDA: the Hopper kernel was asked for on a device of compute "
                "capability " +
                std::to_string(major) + "." + std::to_string(minor));
    }
    return can && kernel != Kernel::portable;
}

} // namespace

DeviceShare::DeviceShare(int device, const CudaOptions& options)
        : device_(device), options_(options) {
    use_device();
    hopper_ = uses_hopper(device, options.kernel);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
          "creating a stream");
    check(cudaEventCreate(&started_), "creating an event");
    check(cudaEventCreate(&finished_), "creating an event");
    for (cudaEvent_t& e : steps_) {
        check(cudaEventCreate(&e), "creating an event");
    }
}

DeviceShare::~DeviceShare() {
    cudaSetDevice(device_);
    cudaEventDestroy(started_);
    cudaEventDestroy(finished_);
    for (cudaEvent_t e : steps_) {
        cudaEventDestroy(e);
    }
    cudaStreamDestroy(stream_);
}

void DeviceShare::use_device() const {
    check(cudaSetDevice(device_), "choosing the device");
}

void DeviceShare::finish() const noexcept {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
}

void DeviceShare::take_rows(
        const VectorSource& source,
        size_t begin,
        size_t end,
        const float* weights,
        const Frame& frame,
        size_t held) {
    source_ = &source;
    begin_ = begin;
    end_ = end;
    weights_ = weights;
    frame_ = frame;
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    budget_ = options_.memory_limit ? options_.memory_limit
                                    : (free + held) / 10 * 9;
}

double DeviceShare::total_weight() const {
    if (!weights_) {
        return double(end_ - begin_);
    }
    double sum = 0;
    for (size_t i = begin_; i < end_; i++) {
        sum += weights_[i];
    }
    return sum;
}

void DeviceShare::require_finite(unsigned long long first_bad) const {
    if (first_bad != ~0ull) {
        throw InvalidArgument(
                "vector " + std::to_string(source_->given_row(first_bad)) +
                " holds a value that is not finite; every value must be");
    }
}

void DeviceShare::mark() {
    if (marked_ <= kSteps) {
        check(cudaEventRecord(steps_[marked_++], stream_),
              "recording an event");
    }
}

void DeviceShare::read_times() {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, started_, finished_), "timing");
    report.kernel_ms = ms;
    report.steps_ms.assign(kSteps, 0.);
    for (int i = 0; i < kSteps && i + 1 < marked_; i++) {
        check(cudaEventElapsedTime(&ms, steps_[i], steps_[i + 1]), "timing");
        report.steps_ms[i] = ms;
    }
}

} // namespace gmm::cuda
