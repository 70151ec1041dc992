// Vector files: the first byte says which kind, the others are the file.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "Error.h"
#include "VectorSource.h"

namespace {

constexpr const char* kEndings[] = {
        ".fvecs", ".bvecs", ".fbin", ".u8bin", ".npy", ".npy", ".npy"};
constexpr size_t kMostFloats = size_t(1) << 24;

std::string path_for(const char* ending) {
    static const std::string stem =
            (std::filesystem::temp_directory_path() /
             ("fuzz_vectors." + std::to_string(getpid())))
                    .string();
    return stem + ending;
}

void read_all(const std::string& path) {
    const auto source = gmm::file_source(path);
    std::vector<std::byte> scratch;
    const size_t step = std::max<size_t>(1, source->n / 3);
    for (size_t begin = 0; begin < source->n; begin += step) {
        const gmm::Rows rows =
                source->rows(begin, std::min(step, source->n - begin), scratch);
        if (rows.n * rows.d <= kMostFloats) {
            std::vector<float> out(rows.n * rows.d);
            rows.to_float(out.data());
        }
    }
    source->rows(source->n, 0, scratch);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string path = path_for(kEndings[data[0] % 7]);
    const int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0 || write(fd, data + 1, size - 1) != ssize_t(size - 1)) {
        abort(); // no room to work in
    }
    close(fd);
    try {
        read_all(path);
    } catch (const gmm::InvalidArgument&) {
        // what such a file should end in; anything else is found
    }
    unlink(path.c_str());
    return 0;
}
