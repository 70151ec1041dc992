#pragma once

#include <atomic>
#include <cstddef>
#include <exception>

namespace gmm {

/// Runs body(i) for i < n in parallel; the first exception leaves the loop.
template <class Body>
void parallel_for(size_t n, const Body& body) {
    std::exception_ptr failure;
    std::atomic<bool> failed = false;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n; i++) {
        if (failed) {
            continue;
        }
        try {
            body(i);
        } catch (...) {
            if (!failed.exchange(true)) {
                failure = std::current_exception();
            }
        }
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

} // namespace gmm
