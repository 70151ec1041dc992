#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <vector>

#include "VectorSource.h"
#include "cuda/engine/Check.h"

namespace gmm::cuda {

/** Brings blocks of a source to the device while earlier ones are worked on.
 *
 * Two pinned buffers, two device buffers, a stream of its own for copies: a
 * host thread fills one pinned buffer while the other is on the wire and the
 * block before is in the kernels. Rows that are in device memory already are
 * used where they are; pinned ones are copied from where they are.
 */
struct BlockUploader {
    BlockUploader();
    ~BlockUploader();

    /// What a block looks like on the device.
    struct Block {
        const void* data;
        int64_t stride;
        size_t begin;
        int rows;
    };

    void reserve(int rows, size_t d, ElementType type);
    size_t bytes() const;

    /** Calls use(block) for [begin, end) in blocks of at most `rows`; what it
     * launches on `stream` may read the block. */
    void run(
            const VectorSource& source,
            size_t begin,
            size_t end,
            int rows,
            cudaStream_t stream,
            const std::function<void(const Block&)>& use);

private:
    struct Slot {
        PinnedMemory host;
        DeviceMemory device;
        cudaEvent_t copied = nullptr; ///< host buffer is free, device is full
        cudaEvent_t used = nullptr;   ///< device buffer is free
        std::vector<std::byte> scratch;
    };

    Block fetch(
            const VectorSource& source,
            size_t begin,
            int rows,
            Slot& slot,
            int device);

    Slot slots_[2];
    cudaStream_t copies_ = nullptr;
};

} // namespace gmm::cuda
