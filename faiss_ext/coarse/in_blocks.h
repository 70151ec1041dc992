#pragma once

#include <algorithm>
#include <cstddef>

#include "ParallelFor.h"
#include "faiss_ext/coarse/Queries.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

/// Runs f(worker, begin, count) over blocks of queries, in each thread with a
/// worker of its own.
template <class Make, class F>
void in_blocks(size_t n, const Make& make, const F& f) {
    const size_t n_blocks = (n + kQueryBlock - 1) / kQueryBlock;
    gmm::parallel_workers(
            n_blocks,
            n_blocks > 1,
            [&] {
                return [&f, n, worker = make()](size_t b) mutable {
                    check_interrupt();
                    const size_t begin = b * kQueryBlock;
                    f(worker, begin, std::min(kQueryBlock, n - begin));
                };
            },
            [](const auto&) {});
}

} // namespace faiss_ext
