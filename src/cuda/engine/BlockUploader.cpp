#include "cuda/engine/BlockUploader.h"

#include <algorithm>
#include <cstring>
#include <future>

#include "DeviceSource.h"

namespace gmm::cuda {

BlockUploader::BlockUploader() {
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking),
          "creating a stream");
    for (Slot& s : slots_) {
        check(cudaEventCreateWithFlags(&s.copied, cudaEventDisableTiming),
              "creating an event");
        check(cudaEventCreateWithFlags(&s.used, cudaEventDisableTiming),
              "creating an event");
    }
}

BlockUploader::~BlockUploader() {
    for (Slot& s : slots_) {
        cudaEventDestroy(s.copied);
        cudaEventDestroy(s.used);
    }
    cudaStreamDestroy(copies_);
}

void BlockUploader::reserve(int rows, size_t d, ElementType type) {
    for (Slot& s : slots_) {
        s.device.reserve(size_t(rows) * d * element_size(type));
    }
}

size_t BlockUploader::bytes() const {
    return slots_[0].device.bytes() + slots_[1].device.bytes();
}

/// Rows packed into pinned memory by all processors: one alone is slower than
/// the link.
static void pack(const Rows& rows, size_t row_bytes, char* to) {
    const auto* from = static_cast<const char*>(rows.data);
    constexpr size_t kPiece = size_t(1) << 20;
    const size_t rows_per_piece = std::max<size_t>(1, kPiece / row_bytes);
    const int64_t pieces =
            int64_t((rows.n + rows_per_piece - 1) / rows_per_piece);
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < pieces; p++) {
        const size_t begin = size_t(p) * rows_per_piece;
        const size_t end = std::min(rows.n, begin + rows_per_piece);
        if (rows.stride == row_bytes) {
            std::memcpy(
                    to + begin * row_bytes,
                    from + begin * row_bytes,
                    (end - begin) * row_bytes);
            continue;
        }
        for (size_t i = begin; i < end; i++) {
            std::memcpy(to + i * row_bytes, from + i * rows.stride, row_bytes);
        }
    }
}

BlockUploader::Block BlockUploader::fetch(
        const VectorSource& source,
        size_t begin,
        int count,
        Slot& slot,
        int device) {
    check(cudaSetDevice(device), "choosing the device");
    const auto* there = dynamic_cast<const DeviceSource*>(&source);
    const Rows rows = there ? there->device_rows(begin, count)
                            : source.rows(begin, count, slot.scratch);
    const size_t row_bytes = rows.d * element_size(rows.type);
    Block block{rows.data, int64_t(rows.stride), begin, count};
    cudaPointerAttributes place;
    check(cudaPointerGetAttributes(&place, rows.data), "finding the rows");
    if (place.type == cudaMemoryTypeDevice && place.device == device) {
        return block; // nothing to copy; `copied` stays as it was, long past
    }
    const bool in_place = place.type == cudaMemoryTypeHost &&
            slot.scratch.empty() && rows.stride == row_bytes;
    const size_t bytes = size_t(count) * row_bytes;
    const void* from = rows.data;
    if (place.type == cudaMemoryTypeDevice) {
        // Another device's memory: the copy goes through the link below.
    } else if (!in_place) {
        slot.host.reserve(bytes);
        check(cudaEventSynchronize(slot.copied), "copying rows");
        pack(rows, row_bytes, slot.host.as<char>());
        from = slot.host.as<char>();
    }
    slot.device.reserve(bytes);
    check(cudaStreamWaitEvent(copies_, slot.used), "ordering copies");
    if (place.type == cudaMemoryTypeDevice) {
        check(cudaMemcpy2DAsync(
                      slot.device.as<char>(),
                      row_bytes,
                      from,
                      rows.stride,
                      row_bytes,
                      count,
                      cudaMemcpyDefault,
                      copies_),
              "copying rows");
    } else {
        check(cudaMemcpyAsync(
                      slot.device.as<char>(),
                      from,
                      bytes,
                      cudaMemcpyHostToDevice,
                      copies_),
              "copying rows");
    }
    check(cudaEventRecord(slot.copied, copies_), "recording an event");
    block.data = slot.device.as<char>();
    block.stride = int64_t(row_bytes);
    return block;
}

void BlockUploader::run(
        const VectorSource& source,
        size_t begin,
        size_t end,
        int rows,
        cudaStream_t stream,
        const std::function<void(const Block&)>& use) {
    if (begin == end) {
        return;
    }
    const int device = current_device();
    auto next = [&](size_t at, Slot& slot) {
        const int count = int(std::min<size_t>(rows, end - at));
        return std::async(std::launch::async, [&, at, count] {
            return fetch(source, at, count, slot, device);
        });
    };
    // A throw below leaves no copy that reads the source's rows, ...
    struct Copies {
        cudaStream_t stream;
        bool done = false;
        ~Copies() {
            if (!done) {
                cudaStreamSynchronize(stream);
            }
        }
    } copies{copies_};
    int turn = 0;
    // ... and no thread that writes into our buffers: the future waits in its
    // destructor, before the copies do.
    auto coming = next(begin, slots_[0]);
    for (size_t at = begin; at < end; turn ^= 1) {
        const Block block = coming.get();
        Slot& slot = slots_[turn];
        at += block.rows;
        check(cudaStreamWaitEvent(stream, slot.copied), "ordering copies");
        if (at < end) {
            coming = next(at, slots_[turn ^ 1]);
        }
        use(block);
        check(cudaEventRecord(slot.used, stream), "recording an event");
    }
    copies.done = true;
}

} // namespace gmm::cuda
