#pragma once

#include <atomic>
#include <memory>

#include "VectorSource.h"

namespace gmm {

/** Vectors in the memory of a CUDA device.
 *
 * The CUDA backend reads them where they are (from another device over the link
 * between the two), and training computes their centre and scale there. rows()
 * and gather() copy to the host. */
struct DeviceSource : VectorSource {
    /// Rows [begin, begin + count), in device memory.
    virtual Rows device_rows(size_t begin, size_t count) const = 0;

    /// Copies rows to the host.
    ///
    /// @param ids  row numbers below n, size count
    /// @param out  count * d elements of the source's type
    virtual void gather(const size_t* ids, size_t count, void* out) const = 0;

    /** sum_i w_i (x_i - pivot) and sum_i w_i (x_i - pivot)^2 of each dimension,
     * in double; the same bits as training computes on the host.
     *
     * @param pivot    size d
     * @param weights  size n, or nullptr: all are 1
     * @param sum      output, size d, as is square
     * @return         the first row with a value that is not finite, or n
     */
    virtual size_t moments(
            const float* pivot,
            const float* weights,
            double* sum,
            double* square) const = 0;

    /// Bytes of vectors that were copied to the host so far.
    mutable std::atomic<size_t> bytes_to_host{0};
};

/** A source of n * d contiguous elements in device memory, which must outlive
 * it. Waits for the work that the device has been given.
 *
 * Throws InvalidArgument for no rows or dimensions, and for memory that is no
 * device's; DeviceError without CUDA. */
std::unique_ptr<DeviceSource> device_source(
        const void* data,
        size_t n,
        size_t d,
        ElementType type = ElementType::f32);

} // namespace gmm
