#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/CellCodes.h"

namespace faiss_ext {

/** The order in which a call's queries are searched by codes: those that are
 * near the same mean one after the other, so that the codes and vectors that
 * they look at are in the cache still. What each finds does not depend on it.
 *
 * Few queries, and those of small indexes, whose codes are in the cache anyway,
 * come as they are. O(n sqrt(nlist) d) at most.
 */
struct QueryOrder {
    /// As they come.
    QueryOrder() = default;
    /// @param x  size n * ivf.d
    QueryOrder(
            const faiss::IndexIVF& ivf,
            const CellCodes& codes,
            size_t n,
            const float* x);

    bool as_they_come() const {
        return numbers.empty();
    }

    std::vector<uint32_t> numbers; ///< of queries, size n, or empty
};

} // namespace faiss_ext
