#pragma once

#include <malloc.h>

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

/// Whether a sanitizer looks on, whose own memory comes on top.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

/// Memory of this process that no file stands behind, in bytes.
inline size_t anonymous_bytes() {
    malloc_trim(0);
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind("RssAnon:", 0) == 0) {
            return std::stoul(line.substr(8)) * 1024;
        }
    }
    throw std::runtime_error("no RssAnon in /proc/self/status");
}

/// Whether a byte is one of a file that is mapped.
inline bool is_in_a_file(const void* byte) {
    const auto at = reinterpret_cast<uintptr_t>(byte);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        // begin-end, what is allowed, offset, device, inode and path
        uintptr_t begin, end;
        unsigned long inode;
        if (sscanf(line.c_str(),
                   "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %lu",
                   &begin,
                   &end,
                   &inode) == 3 &&
            begin <= at && at < end) {
            return inode != 0;
        }
    }
    return false;
}
