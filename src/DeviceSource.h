#pragma once

#include <atomic>
#include <memory>

#include "VectorSource.h"

namespace gmm {

/** Vectors in the memory of a CUDA device.
 *
 * The CUDA backend reads them where they are (on another device: over the link
 * between the two), and training takes centre and scale of them there. What
 * else is read, rows() and gather(), is copied to the host. */
struct DeviceSource : VectorSource {
    /// Rows [begin, begin + count), in device memory.
    virtual Rows device_rows(size_t begin, size_t count) const = 0;

    /// Rows with the given numbers, each less than n, to the host: count * d
    /// elements of the source's type.
    virtual void gather(const size_t* ids, size_t count, void* out) const = 0;

    /** sum_i w_i (x_i - pivot) and sum_i w_i (x_i - pivot)^2 of each dimension,
     * added in double in the order in which training does so on the host: the
     * same bits.
     *
     * @param pivot    size d
     * @param weights  size n, or nullptr: all are 1
     * @return         the first row with a value that is not finite, or n
     */
    virtual size_t moments(
            const float* pivot,
            const float* weights,
            double* sum,
            double* square) const = 0;

    /// Of vectors, that went to the host.
    mutable std::atomic<size_t> bytes_to_host{0};
};

/** n * d contiguous elements in device memory, which must outlive the source.
 * What the device is doing now is waited for.
 *
 * Throws InvalidArgument for no rows or dimensions, and for memory that is no
 * device's; DeviceError without CUDA. */
std::unique_ptr<DeviceSource> device_source(
        const void* data,
        size_t n,
        size_t d,
        ElementType type = ElementType::f32);

} // namespace gmm
