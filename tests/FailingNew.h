#pragma once

// An operator new that fails once, at the place asked for. For one program's
// only file: it replaces the operators.

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

/// Whether code at this address is FAISS's: in its library, or one of its
/// functions where it is linked into this program.
bool of_faiss(const void* address) {
    static const auto functions = functions_of_program();
    Dl_info info;
    if (!dladdr(address, &info)) {
        return false;
    }
    const std::string file = info.dli_fname ? info.dli_fname : "";
    if (file.find("libfaiss") != std::string::npos) {
        return true;
    }
    const auto next =
            functions.upper_bound(uint64_t(address) - uint64_t(info.dli_fbase));
    if (next == functions.begin()) {
        return false;
    }
    const std::string& name = std::prev(next)->second;
    return name.starts_with("_ZN5faiss") || name.starts_with("_ZNK5faiss");
}

/** Whether this allocation is made by FAISS in a parallel region of its own,
 * where an exception ends the process whoever calls: the frame that the OpenMP
 * runtime called last is FAISS's. */
bool in_a_region_of_faiss() {
    static const void* const openmp = [] {
        Dl_info info;
        dladdr(reinterpret_cast<const void*>(&omp_get_max_threads), &info);
        return info.dli_fbase;
    }();
    void* frames[64];
    const int n = backtrace(frames, 64);
    for (int i = 1; i < n; i++) {
        Dl_info info;
        if (dladdr(frames[i], &info) && info.dli_fbase == openmp) {
            return of_faiss(frames[i - 1]);
        }
    }
    return false;
}

void* allocate(size_t size) {
    if (counting.load(std::memory_order_relaxed)) {
        allocations++;
        if (countdown.load() > 0 && --countdown == 0) {
            if (in_a_region_of_faiss()) {
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

void* operator new(size_t size) {
    return allocate(size);
}
void* operator new[](size_t size) {
    return allocate(size);
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
