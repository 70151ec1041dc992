#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

/// The loops of all our threads: no exception leaves a parallel region, where
/// nobody could catch it; the first one leaves the loop.
namespace gmm {

/// Whether so many multiplications take longer than waking threads does, for
/// which other libraries' threads wait, too.
inline bool worth_threads(double multiplications) {
    return multiplications > 1e5;
}

/** Runs worker(i) for i < n, in each thread that is given an i with a worker of
 * its own that make() gives (and that may hold memory of that thread); after
 * that finish(worker), one thread at a time.
 *
 * Once something has thrown no further i is begun, and no other worker
 * finishes.
 *
 * @param parallel  false: in the calling thread
 */
template <class Make, class Finish>
void parallel_workers(
        size_t n, bool parallel, const Make& make, const Finish& finish) {
    if (!parallel) { // even a region of one thread costs more than a few calls
        auto worker = make();
        for (size_t i = 0; i < n; i++) {
            worker(i);
        }
        finish(worker);
        return;
    }
    std::exception_ptr failure;
    std::atomic<bool> failed = false;
    std::atomic<size_t> next = 0;
    std::mutex finishing;
#pragma omp parallel
    {
        try {
            size_t i = next++;
            if (i < n) { // a worker may be large, and threads many
                auto worker = make();
                for (; i < n && !failed; i = next++) {
                    worker(i);
                }
                const std::lock_guard<std::mutex> lock(finishing);
                if (!failed) {
                    finish(worker);
                }
            }
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

/// Runs body(i) for i < n in parallel.
template <class Body>
void parallel_for(size_t n, const Body& body, bool parallel = true) {
    parallel_workers(
            n,
            parallel && n > 1,
            [&] { return [&](size_t i) { body(i); }; },
            [](const auto&) {});
}

/** Runs body(i, w) for i < n in parallel; w is the worker's number, below
 * omp_get_max_threads(). OpenMP's number of the thread would not do: where the
 * loop is not parallel it is that of a region of the caller's. */
template <class Body>
void parallel_for_workers(size_t n, const Body& body, bool parallel = true) {
    std::atomic<size_t> workers = 0;
    parallel_workers(
            n,
            parallel && n > 1,
            [&] { return [&body, w = workers++](size_t i) { body(i, w); }; },
            [](const auto&) {});
}

} // namespace gmm
