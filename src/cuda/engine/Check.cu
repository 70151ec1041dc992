#include "cuda/engine/Check.h"

namespace gmm::cuda {

void fail(cudaError_t error, const char* what) {
    (void)cudaGetLastError(); // a refused request must not fail the next check
    throw DeviceError(
            std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

template <bool kPinned>
void Memory<kPinned>::reserve(size_t bytes) {
    if (bytes <= bytes_) {
        return;
    }
    release();
    const cudaError_t error =
            kPinned ? cudaMallocHost(&data_, bytes) : cudaMalloc(&data_, bytes);
    if (error == cudaSuccess) {
        bytes_ = bytes;
        return;
    }
    data_ = nullptr;
    (void)cudaGetLastError();
    if (error != cudaErrorMemoryAllocation) {
        fail(error, "allocating memory");
    }
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
        (void)cudaGetLastError();
    }
    throw OutOfMemory(
            "CUDA: asked for " + std::to_string(bytes) + " bytes of " +
            (kPinned ? "pinned host" : "device") + " memory; " +
            std::to_string(free) + " of " + std::to_string(total) +
            " bytes of device memory were free");
}

template <bool kPinned>
void Memory<kPinned>::release() noexcept {
    if (data_) {
        kPinned ? cudaFreeHost(data_) : cudaFree(data_);
    }
    data_ = nullptr;
    bytes_ = 0;
}

template struct Memory<false>;
template struct Memory<true>;

} // namespace gmm::cuda
