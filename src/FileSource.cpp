#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "Error.h"
#include "VectorSource.h"

// Formats: fvecs and bvecs from http://corpus-texmex.irisa.fr; fbin and u8bin
// from https://big-ann-benchmarks.com; npy from NEP 1.

namespace gmm {

namespace {

/** A file that is read at any place, from any thread.
 *
 * Not mapped: of a mapped file that gets shorter, or of a disk that fails, the
 * reader hears by a signal. */
struct InputFile {
    std::string path;
    int fd = -1;
    size_t size = 0; ///< when it was opened

    explicit InputFile(const std::string& path) : path(path) {
        // O_NONBLOCK: a pipe without a writer must not hold us here.
        fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        struct stat status;
        if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
            const int error = errno;
            const bool opened = fd >= 0;
            if (opened) {
                close(fd);
            }
            throw_invalid(
                    "path = '%s': cannot be opened as a file (%s)",
                    path.c_str(),
                    opened ? "not a regular file" : std::strerror(error));
        }
        size = size_t(status.st_size);
    }

    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    ~InputFile() {
        close(fd);
    }

    void read(size_t offset, void* out, size_t bytes) const {
        auto to = static_cast<std::byte*>(out);
        while (bytes > 0) {
            const ssize_t got = pread(fd, to, bytes, off_t(offset));
            if (got < 0 && errno == EINTR) {
                continue;
            }
            if (got <= 0) {
                throw_invalid(
                        "path = '%s': cannot be read at byte %zu of %zu (%s)",
                        path.c_str(),
                        offset,
                        size,
                        got == 0 ? "it has become shorter"
                                 : std::strerror(errno));
            }
            to += got;
            offset += size_t(got);
            bytes -= size_t(got);
        }
    }

    uint32_t u32(size_t offset) const {
        uint32_t value;
        read(offset, &value, sizeof(value));
        return value;
    }
};

struct FileSource : VectorSource {
    InputFile file;
    size_t header = 0;     ///< bytes before the first row
    size_t row_header = 0; ///< bytes before each row: its dimension, or 0

    explicit FileSource(const std::string& path) : file(path) {}

    [[noreturn]] void reject(const std::string& why) const {
        throw_invalid("path = '%s': %s", file.path.c_str(), why.c_str());
    }

    size_t stride() const {
        return row_header + d * element_size(type);
    }

    void read_vecs();
    void read_bin();
    void read_npy();
    void check_length() const;

    Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        check_range(begin, count);
        const size_t bytes = count * stride();
        if (scratch.size() < bytes) {
            scratch.resize(bytes);
        }
        file.read(header + begin * stride(), scratch.data(), bytes);
        for (size_t i = 0; row_header != 0 && i < count; i++) {
            uint32_t row_d;
            std::memcpy(&row_d, scratch.data() + i * stride(), sizeof(row_d));
            if (row_d != d) {
                reject("vector " + std::to_string(begin + i) +
                       " has dimension " + std::to_string(row_d) +
                       ", expected " + std::to_string(d));
            }
        }
        return {scratch.data() + row_header, type, count, d, stride()};
    }
};

// No vector is this long; a foreign file's first bytes often say so.
constexpr size_t kMaxDimension = size_t(1) << 24;
// Numpy pads its header to a hundred bytes or so.
constexpr size_t kMaxNpyHeader = size_t(1) << 20;

void FileSource::read_vecs() {
    if (file.size < 4) {
        reject("holds no vector");
    }
    d = file.u32(0);
    row_header = 4;
    if (d == 0 || d > kMaxDimension) {
        reject("its first vector has dimension " + std::to_string(d) +
               ", expected 1 to " + std::to_string(kMaxDimension));
    }
    n = file.size / stride();
    if (n == 0 || file.size % stride() != 0) {
        reject("its size of " + std::to_string(file.size) +
               " bytes is no multiple of a vector's " +
               std::to_string(stride()) + ": truncated or foreign");
    }
}

void FileSource::read_bin() {
    header = 8;
    if (file.size < header) {
        reject("holds no header of 8 bytes");
    }
    n = file.u32(0);
    d = file.u32(4);
}

void FileSource::read_npy() {
    uint8_t begin[12] = {};
    file.read(0, begin, std::min(sizeof(begin), file.size));
    if (std::memcmp(begin, "\x93NUMPY", 6) != 0) {
        reject("does not begin with numpy's magic bytes");
    }
    const int version = begin[6];
    const size_t start = version == 1 ? 10 : 12;
    uint32_t length;
    std::memcpy(&length, begin + 8, sizeof(length));
    if (version == 1) {
        length &= 0xffffu;
    }
    if (version < 1 || version > 3 || file.size < start ||
        length > std::min(file.size - start, kMaxNpyHeader)) {
        reject("has a damaged npy header");
    }
    header = start + length;
    std::string text(length, ' ');
    file.read(start, text.data(), length);

    auto after = [&](const char* key) {
        const size_t at = text.find(key);
        if (at == std::string::npos) {
            reject(std::string("has no ") + key + " in its npy header");
        }
        const size_t value =
                text.find_first_not_of(" :", at + std::strlen(key));
        return value == std::string::npos ? std::string() : text.substr(value);
    };
    const std::string descr = after("'descr'").substr(0, 5);
    if (descr == "'<f4'") {
        type = ElementType::f32;
    } else if (descr == "'<f2'") {
        type = ElementType::f16;
    } else if (descr == "'|u1'") {
        type = ElementType::u8;
    } else {
        reject("has dtype " + descr + ", expected <f4, <f2 or |u1");
    }
    if (after("'fortran_order'").rfind("False", 0) != 0) {
        reject("is in Fortran order, expected C order");
    }
    const std::string shape = after("'shape'");
    uint64_t rows = 0, columns = 0;
    int end = 0;
    if (std::sscanf(
                shape.c_str(),
                "(%" SCNu64 " , %" SCNu64 " )%n",
                &rows,
                &columns,
                &end) != 2 ||
        end == 0) {
        reject("has shape " + shape.substr(0, shape.find(')') + 1) +
               ", expected two dimensions");
    }
    n = rows;
    d = columns;
}

void FileSource::check_length() const {
    if (n == 0 || d == 0 || d > kMaxDimension) {
        reject("its header says n = " + std::to_string(n) +
               ", d = " + std::to_string(d) + ", expected at least 1 each");
    }
    if (n > (file.size - header) / stride() ||
        n * stride() != file.size - header) {
        reject("its header says n = " + std::to_string(n) +
               ", d = " + std::to_string(d) + ", but " +
               std::to_string(file.size - header) +
               " bytes follow it: truncated or foreign");
    }
}

} // namespace

std::unique_ptr<VectorSource> file_source(const std::string& path) {
    auto source = std::make_unique<FileSource>(path);
    const std::string_view name = path;
    if (name.ends_with(".fvecs") || name.ends_with(".bvecs")) {
        source->type =
                name.ends_with(".fvecs") ? ElementType::f32 : ElementType::u8;
        source->read_vecs();
    } else if (name.ends_with(".fbin") || name.ends_with(".u8bin")) {
        source->type =
                name.ends_with(".fbin") ? ElementType::f32 : ElementType::u8;
        source->read_bin();
    } else if (name.ends_with(".npy")) {
        source->read_npy();
    } else {
        source->reject(
                "unknown ending, expected .fvecs, .bvecs, .fbin, .u8bin or "
                ".npy");
    }
    source->check_length();
    return source;
}

} // namespace gmm
