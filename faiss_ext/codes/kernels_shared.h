// What the instruction sets' files share. Included by them, before
// kernels_impl.h.

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {
namespace {

/// A query's tables, see CodeQuery.
struct PlainTables {
    const uint8_t *low, *high;

    PlainTables(const uint8_t* tables, size_t groups)
            : low(tables), high(tables + groups * 32) {}
};

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

/// CodeKernels::places, of values from the `begin`-th on, behind m that are
/// found.
inline size_t places_from(
        size_t begin,
        size_t m,
        size_t n,
        const uint16_t* value,
        uint16_t low,
        uint16_t width,
        uint32_t* out) {
    for (size_t j = begin; j < n; j++) {
        out[m] = uint32_t(j); // overwritten by the next: no branch to guess
        m += uint16_t(value[j] - low) <= width;
    }
    return m;
}

} // namespace
} // namespace faiss_ext
