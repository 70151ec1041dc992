#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstring>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/FaissAssert.h>

namespace faiss_ext {

// The parts of check_stock_part. They throw FaissException naming what does
// not fit, its value, and what was expected.

/// Throws unless the two are equal.
inline void check_equal(const char* what, int64_t value, int64_t expected) {
    FAISS_THROW_IF_NOT_FMT(
            value == expected,
            "the index does not fit together: %s is %" PRId64
            ", expected %" PRId64,
            what,
            value,
            expected);
}

/// Throws unless low <= value < high.
inline void check_range(
        const char* what, int64_t value, int64_t low, int64_t high) {
    FAISS_THROW_IF_NOT_FMT(
            value >= low && value < high,
            "the index does not fit together: %s is %" PRId64
            ", expected from %" PRId64 " to below %" PRId64,
            what,
            value,
            low,
            high);
}

/// An enum's number, be it one that the enum has or not.
template <class Enum>
inline int number_of(const Enum& value) {
    int out;
    static_assert(sizeof(out) == sizeof(value));
    memcpy(&out, &value, sizeof(out));
    return out;
}

/// FAISS reads a bool as a byte, whatever is in it.
inline void check_bool(const char* what, const bool& value) {
    uint8_t byte;
    memcpy(&byte, &value, 1);
    check_range(what, byte, 0, 2);
}

void check_header(const faiss::Index& index);

/// n vectors of d that are as many as it has bytes for, none too large.
void check_flat(
        const char* what, const faiss::IndexFlat& flat, size_t d, size_t n);

/// Of an index of ours: an IndexFlat (or IndexGMM), or an IndexHNSWFlat.
void check_quantizer(const faiss::IndexIVF& ivf);

} // namespace faiss_ext
