// For instruction sets that have nothing better for these: included in place of
// kernels_shared.h.

#include "faiss_ext/codes/kernels_shared.h"

namespace faiss_ext {
namespace {

/// f(type) for the tables of so many groups.
template <class F>
auto with_tables(size_t, const F& f) {
    return f.template operator()<PlainTables>();
}

inline CodeCandidate* append(
        unsigned mask,
        const float* estimate,
        uint32_t list,
        uint32_t entry,
        CodeCandidate* out) {
    return append_each(mask, estimate, list, entry, out);
}

inline size_t places(
        size_t n,
        const uint16_t* value,
        uint16_t low,
        uint16_t width,
        uint32_t* out) {
    return places_from(0, 0, n, value, low, width, out);
}

} // namespace
} // namespace faiss_ext
