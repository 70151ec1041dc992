#include "Backend.h"
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

} // namespace gmm
