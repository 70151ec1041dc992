#pragma once

// An operator new that fails once, at the place asked for. For one program's
// only file: it replaces the operators. Clang's ThreadSanitizer has operators
// that none can stand beside, and then nothing fails (kFailingNew).

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <new>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <elf.h>
#include <execinfo.h>
#include <omp.h>

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define FAISS_EXT_TEST_NO_OPERATORS
#endif
#endif

namespace {

std::atomic<bool> counting = false;
std::atomic<long> allocations = 0, countdown = 0, of_others = 0;

/// The functions of this program, local ones too, by their address in it.
std::map<uint64_t, std::string> functions_of_program() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::vector<char> bytes(
            (std::istreambuf_iterator<char>(file)),
            std::istreambuf_iterator<char>());
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
    const auto* sections =
            reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
    std::map<uint64_t, std::string> out;
    for (size_t i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const char* names =
                bytes.data() + sections[sections[i].sh_link].sh_offset;
        const auto* symbols = reinterpret_cast<const Elf64_Sym*>(
                bytes.data() + sections[i].sh_offset);
        for (size_t j = 0; j < sections[i].sh_size / sizeof(Elf64_Sym); j++) {
            if (ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC) {
                out[symbols[j].st_value] = names + symbols[j].st_name;
            }
        }
    }
    return out;
}

/// The function at this address if it is FAISS's: in its library, or one of its
/// functions where it is linked into this program; "" otherwise.
std::string function_of_faiss(const void* address) {
    static const auto functions = functions_of_program();
    Dl_info info;
    if (!dladdr(address, &info)) {
        return "";
    }
    const std::string file = info.dli_fname ? info.dli_fname : "";
    if (file.find("libfaiss") != std::string::npos) {
        return info.dli_sname ? info.dli_sname : "unnamed";
    }
    const auto next =
            functions.upper_bound(uint64_t(address) - uint64_t(info.dli_fbase));
    if (next == functions.begin()) {
        return "";
    }
    const std::string& name = std::prev(next)->second;
    const bool its =
            name.starts_with("_ZN5faiss") || name.starts_with("_ZNK5faiss");
    return its ? name : "";
}

/** Whether FAISS does not get over a failure of this allocation, whoever calls:
 * it is made in a parallel region of its own, where an exception ends the
 * process (the frame that the OpenMP runtime called last is FAISS's), or while
 * OnDiskInvertedLists grows, with its file unmapped and its locks held. */
bool faiss_cannot_fail_here() {
    static const void* const openmp = [] {
        Dl_info info;
        dladdr(reinterpret_cast<const void*>(&omp_get_max_threads), &info);
        return info.dli_fbase;
    }();
    void* frames[64];
    const int n = backtrace(frames, 64);
    for (int i = 1; i < n; i++) {
        const std::string name = function_of_faiss(frames[i]);
        if (name.find("OnDiskInvertedLists6resize") != std::string::npos) {
            return true;
        }
        Dl_info info;
        if (dladdr(frames[i], &info) && info.dli_fbase == openmp) {
            return !function_of_faiss(frames[i - 1]).empty();
        }
    }
    return false;
}

[[maybe_unused]] void* allocate(size_t size) {
    if (counting.load(std::memory_order_relaxed)) {
        allocations++;
        if (countdown.load() > 0 && --countdown == 0) {
            if (faiss_cannot_fail_here()) {
                of_others++;
                countdown = 1; // the next one
            } else {
                throw std::bad_alloc();
            }
        }
    }
    if (void* out = std::malloc(size > 0 ? size : 1)) {
        return out;
    }
    throw std::bad_alloc();
}

} // namespace

#ifdef FAISS_EXT_TEST_NO_OPERATORS
constexpr bool kFailingNew = false;
#else
constexpr bool kFailingNew = true;

void* operator new(size_t size) {
    return allocate(size);
}
void* operator new[](size_t size) {
    return allocate(size);
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
    try {
        return allocate(size);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete[](void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, size_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, size_t) noexcept {
    std::free(p);
}
#endif
