#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

/** A warp on the CPU, for device code that is compiled by the host's compiler:
 * 32 coroutines, which take turns at every exchange between lanes. Shared
 * memory is an array of bytes; a block is one warp, the grid one block. */
namespace host_warp {

constexpr int kLanes = 32;

struct Warp {
    ucontext_t scheduler, contexts[kLanes];
    std::vector<char> stacks[kLanes];
    int lane = 0;
    bool finished[kLanes] = {};
    uint64_t slots[kLanes] = {};
    const std::function<void()>* work = nullptr;
    std::vector<unsigned char> shared;
    /// Asynchronous copies of each lane: what they do, by group.
    std::vector<std::vector<std::function<void()>>> copies[kLanes];
    bool copy_early = false; ///< at once, not when they are waited for
};

inline Warp warp;

inline void yield() {
    swapcontext(&warp.contexts[warp.lane], &warp.scheduler);
}

inline void enter() {
    (*warp.work)();
    warp.finished[warp.lane] = true;
    yield();
}

/// Runs work in every lane, to the end. All lanes make the same exchanges.
inline void run(const std::function<void()>& work) {
    warp.work = &work;
    for (int i = 0; i < kLanes; i++) {
        warp.finished[i] = false;
        warp.stacks[i].resize(256 << 10);
        getcontext(&warp.contexts[i]);
        warp.contexts[i].uc_stack.ss_sp = warp.stacks[i].data();
        warp.contexts[i].uc_stack.ss_size = warp.stacks[i].size();
        warp.contexts[i].uc_link = nullptr;
        makecontext(&warp.contexts[i], enter, 0);
    }
    for (bool any = true; any;) {
        any = false;
        for (int i = 0; i < kLanes; i++) {
            if (!warp.finished[i]) {
                any = true;
                warp.lane = i;
                swapcontext(&warp.scheduler, &warp.contexts[i]);
            }
        }
    }
}

/// Every lane offers x and reads what combine makes of all that is offered.
template <class T, class Combine>
auto exchange(T x, const Combine& combine) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    std::memcpy(&warp.slots[warp.lane], &x, sizeof(T));
    yield();
    const auto result = combine([](int lane) {
        T other;
        std::memcpy(&other, &warp.slots[lane], sizeof(T));
        return other;
    });
    yield();
    return result;
}

} // namespace host_warp

// The names that device code knows them by.

#define threadIdx (uint3{unsigned(::host_warp::warp.lane), 0, 0})
#define blockIdx (uint3{0, 0, 0})
#define blockDim (uint3{::host_warp::kLanes, 1, 1})
#define gridDim (uint3{1, 1, 1})

template <class T>
T __shfl_sync(uint32_t, T x, int from) {
    return host_warp::exchange(x, [&](auto of) { return of(from & 31); });
}
template <class T>
T __shfl_xor_sync(uint32_t, T x, int mask) {
    return host_warp::exchange(
            x, [&](auto of) { return of(host_warp::warp.lane ^ mask); });
}
template <class T>
T __shfl_up_sync(uint32_t, T x, int by) {
    return host_warp::exchange(x, [&](auto of) {
        return of(std::max(0, host_warp::warp.lane - by));
    });
}
inline void __syncwarp() {
    host_warp::yield();
}
inline uint32_t __ballot_sync(uint32_t, bool x) {
    return host_warp::exchange(x, [](auto of) {
        uint32_t all = 0;
        for (int i = 0; i < host_warp::kLanes; i++) {
            all |= uint32_t(of(i)) << i;
        }
        return all;
    });
}
inline uint32_t __reduce_or_sync(uint32_t, uint32_t x) {
    return host_warp::exchange(x, [](auto of) {
        uint32_t all = 0;
        for (int i = 0; i < host_warp::kLanes; i++) {
            all |= of(i);
        }
        return all;
    });
}
inline bool __any_sync(uint32_t mask, bool x) {
    return __ballot_sync(mask, x) != 0;
}
inline int __popc(uint32_t x) {
    return std::popcount(x);
}
inline int __popcll(uint64_t x) {
    return std::popcount(x);
}
inline int __ffs(uint32_t x) {
    return x ? std::countr_zero(x) + 1 : 0;
}
inline int __ffsll(uint64_t x) {
    return x ? std::countr_zero(x) + 1 : 0;
}
inline uint32_t __float_as_uint(float x) {
    return std::bit_cast<uint32_t>(x);
}
inline float __uint_as_float(uint32_t x) {
    return std::bit_cast<float>(x);
}
inline void atomicAdd(unsigned long long* to, unsigned long long x) {
    *to += x;
}
inline void atomicAdd(unsigned* to, unsigned x) {
    *to += x;
}

namespace gmm::cuda {

using std::isnan;
using std::max;
using std::min;

namespace ptx {

inline uint32_t smem_address(const void* p) {
    const auto* const at = static_cast<const unsigned char*>(p);
    return uint32_t(at - host_warp::warp.shared.data());
}

/// Both ends of when the device may do it.
inline void copy_async(uint32_t to, const void* from, bool valid) {
    auto& warp = host_warp::warp;
    const auto copy = [=] {
        const float4 zero = make_float4(0, 0, 0, 0);
        std::memcpy(
                &host_warp::warp.shared.at(to + 15) - 15,
                valid ? from : &zero,
                16);
    };
    auto& groups = warp.copies[warp.lane];
    groups.resize(std::max<size_t>(groups.size(), 1));
    if (warp.copy_early) {
        copy();
    } else {
        groups.back().push_back(copy);
    }
}
inline void copy_async_commit() {
    auto& groups = host_warp::warp.copies[host_warp::warp.lane];
    groups.resize(std::max<size_t>(groups.size(), 1) + 1);
}
template <int kPending>
void copy_async_wait() {
    auto& groups = host_warp::warp.copies[host_warp::warp.lane];
    while (groups.size() > kPending + 1) {
        for (const auto& copy : groups.front()) {
            copy();
        }
        groups.erase(groups.begin());
    }
}

template <class T>
T load_shared(uint32_t from) {
    T x;
    std::memcpy(
            &x,
            &host_warp::warp.shared.at(from + sizeof(T) - 1) + 1 - sizeof(T),
            sizeof(T));
    return x;
}
template <class T>
void store_shared(uint32_t to, T x) {
    std::memcpy(
            &host_warp::warp.shared.at(to + sizeof(T) - 1) + 1 - sizeof(T),
            &x,
            sizeof(T));
}
inline float4 load_shared_float4(uint32_t from) {
    return load_shared<float4>(from);
}
inline float load_shared_float(uint32_t from) {
    return load_shared<float>(from);
}
inline uint32_t load_shared_uint(uint32_t from) {
    return load_shared<uint32_t>(from);
}
inline float exp2_approx(float x) {
    return std::exp2(x);
}
inline float log2_approx(float x) {
    return std::log2(x);
}
inline float sqrt_approx(float x) {
    return std::sqrt(x);
}
inline void append(
        const float (&c)[4],
        uint32_t column,
        float m0,
        float m1,
        float t0,
        float t1,
        uint32_t& end,
        uint32_t sink,
        uint32_t to_column,
        uint32_t step) {
    if (m0 >= t0 || m1 >= t1) {
        const uint32_t at = std::min(end, sink);
        store_shared(at, make_float4(c[0], c[1], c[2], c[3]));
        store_shared(at + to_column, column);
        end += step;
    }
}

} // namespace ptx
} // namespace gmm::cuda
