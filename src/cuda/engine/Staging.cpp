#include "cuda/engine/Staging.h"

#include <cstdint>

namespace gmm::cuda {

Staging::~Staging() {
    for (cudaEvent_t e : done_) {
        if (e) {
            cudaEventDestroy(e);
        }
    }
}

void Staging::upload(
        float* to,
        const std::vector<float>& from,
        size_t d,
        size_t pitch,
        cudaStream_t stream) {
    const auto fill = [&](size_t begin, size_t end, float* piece) {
#pragma omp parallel for schedule(static) if ((end - begin) * pitch > 100000)
        for (int64_t i = int64_t(begin); i < int64_t(end); i++) {
            const float* const row = from.data() + i * d;
            float* const out = piece + (i - begin) * pitch;
            std::copy(row, row + d, out);
            std::fill(out + d, out + pitch, 0.f);
        }
    };
    upload(to, from.size() / d, pitch, stream, fill);
}

void Staging::begin(size_t bytes) {
    for (cudaEvent_t& e : done_) {
        if (e) {
            check(cudaEventSynchronize(e), "copying");
        } else {
            check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming),
                  "creating an event");
        }
    }
    memory_.reserve(kPieces * bytes);
    bytes_ = bytes;
    sent_ = arrived_ = 0;
}

void* Staging::next() {
    check(cudaEventSynchronize(done_[sent_ % kPieces]), "copying");
    return memory_.as<char>(sent_ % kPieces * bytes_);
}

void Staging::sent(cudaStream_t stream) {
    check(cudaEventRecord(done_[sent_++ % kPieces], stream),
          "recording an event");
}

const void* Staging::arrived() {
    check(cudaEventSynchronize(done_[arrived_ % kPieces]), "copying");
    return memory_.as<char>(arrived_++ % kPieces * bytes_);
}

} // namespace gmm::cuda
