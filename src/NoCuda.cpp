#include "CudaOptions.h"
#include "DeviceSource.h"
#include "Error.h"

namespace gmm {

static const char* const kWhyNot = "built without CUDA";

bool cuda_available(std::string* why_not) {
    if (why_not) {
        *why_not = kWhyNot;
    }
    return false;
}

std::unique_ptr<Backend> make_cuda_backend() {
    throw DeviceError(kWhyNot);
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions&) {
    throw DeviceError(kWhyNot);
}

std::vector<float> cuda_row_log_prob(const Backend&) {
    throw DeviceError(kWhyNot);
}

std::unique_ptr<DeviceSource> device_source(
        const void*, size_t, size_t, ElementType) {
    throw DeviceError(kWhyNot);
}

CudaReport cuda_report(const Backend&) {
    throw DeviceError(kWhyNot);
}

} // namespace gmm
