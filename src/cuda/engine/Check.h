#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "Error.h"

namespace gmm::cuda {

/// Throws DeviceError: what was attempted and what CUDA said.
[[noreturn]] void fail(cudaError_t error, const char* what);

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        fail(error, what);
    }
}

/// For the line after a kernel launch.
inline void check_launch(const char* kernel) {
    check(cudaGetLastError(), kernel);
}

inline int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "current device");
    return device;
}

inline int device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device),
          "device attributes");
    return value;
}

/// More shared memory for a kernel's blocks than they may have unasked.
template <class Kernel>
void allow_shared(Kernel* kernel, int bytes) {
    check(cudaFuncSetAttribute(
                  kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "asking for shared memory");
}

/// The calling thread's device is what it was when *this ends.
struct KeepDevice {
    KeepDevice() noexcept {
        if (cudaGetDevice(&before) != cudaSuccess) {
            before = -1;
        }
    }
    ~KeepDevice() {
        if (before >= 0) {
            cudaSetDevice(before);
        }
    }
    KeepDevice(const KeepDevice&) = delete;

    int before = -1;
};

/// Whatever is on which side.
template <class T>
void copy(T* to, const T* from, size_t n, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDefault, stream),
          "copying");
}

/// Memory ran out: a smaller block may still fit.
struct OutOfMemory : DeviceError {
    using DeviceError::DeviceError;
};

/** Device or pinned host memory that frees itself. Grows, never shrinks. */
template <bool kPinned>
struct Memory {
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
        release();
    }

    /// Contents are lost if it grows. Throws OutOfMemory with what was asked
    /// for and what was free.
    void reserve(size_t bytes);
    void release() noexcept;

    size_t bytes() const {
        return bytes_;
    }

    template <class T>
    T* as(size_t offset_bytes = 0) const {
        return reinterpret_cast<T*>(static_cast<char*>(data_) + offset_bytes);
    }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

using DeviceMemory = Memory<false>;
using PinnedMemory = Memory<true>;

extern template struct Memory<false>;
extern template struct Memory<true>;

} // namespace gmm::cuda
