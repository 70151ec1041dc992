#include "vector_files.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>

#include <fmt/format.h>

#include "VectorSource.h"

#ifdef HAVE_HDF5
#include <hdf5.h>
#endif

namespace bench {

namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
    throw std::runtime_error(fmt::format("{}: {}", path, what));
}

#ifdef HAVE_HDF5

/// An HDF5 identifier and the function that closes it.
struct Handle {
    hid_t id;
    herr_t (*close)(hid_t);

    Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what)
            : id(id), close(close) {
        if (id < 0) {
            throw std::runtime_error("cannot open " + what);
        }
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        close(id);
    }
};

/// A two-dimensional data set, converted to memory_type by HDF5.
template <typename T>
std::vector<T> read_hdf5(
        const std::string& path,
        const std::string& dataset,
        hid_t memory_type,
        size_t& rows,
        size_t& columns) {
    H5Eset_auto(H5E_DEFAULT, nullptr, nullptr); // errors are thrown instead
    Handle file(
            H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose, path);
    Handle set(
            H5Dopen(file.id, dataset.c_str(), H5P_DEFAULT),
            H5Dclose,
            path + ":" + dataset);
    Handle space(H5Dget_space(set.id), H5Sclose, path + ":" + dataset);
    if (H5Sget_simple_extent_ndims(space.id) != 2) {
        fail(path, dataset + " is not two-dimensional");
    }
    hsize_t sizes[2];
    H5Sget_simple_extent_dims(space.id, sizes, nullptr);
    rows = sizes[0];
    columns = sizes[1];
    std::vector<T> values(rows * columns);
    if (H5Dread(set.id,
                memory_type,
                H5S_ALL,
                H5S_ALL,
                H5P_DEFAULT,
                values.data()) < 0) {
        fail(path, "cannot read " + dataset);
    }
    return values;
}

#else

[[noreturn]] void no_hdf5(const std::string& path) {
    fail(path, "this program was built without HDF5");
}

#endif

/// The whole file as 32-bit words: ibin and ivecs hold nothing else.
std::vector<int32_t> read_words(const std::string& path) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(path, error);
    std::ifstream file(path, std::ios::binary);
    if (error || !file) {
        fail(path, "cannot be opened");
    }
    if (bytes % sizeof(int32_t) != 0) {
        fail(path, "its size is not a multiple of four bytes");
    }
    std::vector<int32_t> words(bytes / sizeof(int32_t));
    if (!file.read(reinterpret_cast<char*>(words.data()), bytes)) {
        fail(path, "cannot be read");
    }
    return words;
}

} // namespace

bool is_hdf5(const std::string& path) {
    const auto extension = std::filesystem::path(path).extension();
    return extension == ".hdf5" || extension == ".h5";
}

Vectors read_vectors(
        const std::string& path, [[maybe_unused]] const std::string& dataset) {
    Vectors v;
    if (is_hdf5(path)) {
#ifdef HAVE_HDF5
        v.x = read_hdf5<float>(path, dataset, H5T_NATIVE_FLOAT, v.n, v.d);
        return v;
#else
        no_hdf5(path);
#endif
    }
    const auto source = gmm::file_source(path);
    v.n = source->n;
    v.d = source->d;
    v.x.resize(v.n * v.d);
    std::vector<std::byte> scratch;
    const size_t block = 65536;
    for (size_t begin = 0; begin < v.n; begin += block) {
        source->rows(begin, std::min(block, v.n - begin), scratch)
                .to_float(v.x.data() + begin * v.d);
    }
    return v;
}

Neighbors read_neighbors(const std::string& path) {
    Neighbors t;
    if (is_hdf5(path)) {
#ifdef HAVE_HDF5
        t.ids = read_hdf5<int64_t>(
                path, "neighbors", H5T_NATIVE_INT64, t.n, t.k);
        return t;
#else
        no_hdf5(path);
#endif
    }
    const auto words = read_words(path);
    const auto extension = std::filesystem::path(path).extension();
    if (extension == ".ibin") {
        // n, k, n * k ids, and in some files n * k distances after them.
        const size_t n = words.size() < 2 ? 0 : uint32_t(words[0]);
        const size_t k = words.size() < 2 ? 0 : uint32_t(words[1]);
        const size_t body = words.size() - std::min<size_t>(2, words.size());
        if (n == 0 || k == 0 || (body != n * k && body != 2 * n * k)) {
            fail(path, "is not an ibin file: its size and its header differ");
        }
        t.n = n;
        t.k = k;
        t.ids.assign(words.begin() + 2, words.begin() + 2 + n * k);
    } else if (extension == ".ivecs") {
        // Each row: k, k ids.
        const size_t k = words.empty() ? 0 : uint32_t(words[0]);
        if (k == 0 || words.size() % (k + 1) != 0) {
            fail(path, "is not an ivecs file: its size and its header differ");
        }
        t.n = words.size() / (k + 1);
        t.k = k;
        for (size_t i = 0; i < t.n; i++) {
            const auto row = words.begin() + i * (k + 1);
            if (size_t(*row) != k) {
                fail(path,
                     fmt::format("row {} has {} ids, not {}", i, *row, k));
            }
            t.ids.insert(t.ids.end(), row + 1, row + 1 + k);
        }
    } else {
        fail(path, "ground truth must be .ibin, .ivecs or .hdf5");
    }
    return t;
}

} // namespace bench
