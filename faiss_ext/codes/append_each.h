// For kernels_*.cpp.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

/// Writes down the entries of a block that are below the threshold.
inline CodeCandidate* append_each(
        unsigned mask,
        const float* estimate,
        uint32_t list,
        uint32_t entry,
        CodeCandidate* out) {
    for (; mask; mask &= mask - 1) {
        const unsigned lane = unsigned(__builtin_ctz(mask));
        *out++ = {estimate[lane], list, entry + lane};
    }
    return out;
}

} // namespace
} // namespace faiss_ext
