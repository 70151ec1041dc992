#pragma once

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <system_error>

#include <faiss/impl/FaissAssert.h>

namespace faiss_ext {

/** A file as memory, for who reads it in order: what is written there is
 * private and leaves the file as it is.
 *
 * As with the lists that FAISS maps, who reads what a mapped file does not
 * have any more ends by SIGBUS: such files are replaced, as write_index does,
 * and not cut. */
struct FileMemory {
    FILE* file;
    size_t size;
    std::shared_ptr<uint8_t> begin;

    /// Throws FaissException naming the file and the system's reason.
    FileMemory(FILE* file, const char* name) : file(file) {
        struct stat status;
        void* memory = MAP_FAILED;
        if (fstat(fileno(file), &status) == 0) {
            size = size_t(status.st_size);
            memory =
                    mmap(nullptr,
                         size,
                         PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_NORESERVE,
                         fileno(file),
                         0);
        }
        FAISS_THROW_IF_NOT_FMT(
                memory != MAP_FAILED,
                "read_index: cannot map \"%s\": %s",
                name,
                std::generic_category().message(errno).c_str());
        begin = {static_cast<uint8_t*>(memory), [length = size](uint8_t* p) {
                     munmap(p, length);
                 }};
    }

    /// What the file has at the place where it is read, nullptr if it is not
    /// aligned to 32 bytes.
    std::shared_ptr<uint8_t> here(size_t bytes) const {
        const size_t at = size_t(ftell(file));
        return at <= size && bytes <= size - at && at % 32 == 0
                ? std::shared_ptr<uint8_t>(begin, begin.get() + at)
                : nullptr;
    }

    void skip(size_t bytes) const {
        FAISS_THROW_IF_NOT_MSG(
                fseek(file, long(bytes), SEEK_CUR) == 0,
                "read_index: cannot go on in a mapped file");
    }
};

} // namespace faiss_ext
