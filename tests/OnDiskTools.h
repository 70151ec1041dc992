// Indexes in parts, and one whose lists are in a file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/ondisk.h"
#include "quick_training.h"

namespace faiss_ext {

constexpr size_t kN = 4000;

inline const Vectors& base() {
    static const Vectors data = sift_base(kN);
    return data;
}

inline std::unique_ptr<faiss::Index> read(
        const std::string& path, int flags = 0) {
    return std::unique_ptr<faiss::Index>(read_index(path.c_str(), flags));
}

inline std::unique_ptr<faiss::Index> trained(
        const char* description, faiss::MetricType metric = faiss::METRIC_L2) {
    std::unique_ptr<faiss::Index> index(
            index_factory(base().d, description, metric));
    train_quickly(index.get());
    index->train(kN, base().x.data());
    return index;
}

/// Three parts of the base, of different sizes.
inline std::vector<std::string> write_parts(
        const faiss::Index& trained,
        const TemporaryFolder& folder,
        bool own_ids) {
    const size_t ends[] = {0, 500, 2500, kN};
    std::vector<std::string> paths;
    for (size_t p = 0; p < 3; p++) {
        auto part = clone_index(&trained);
        const Vectors x = rows_of(base(), ends[p], ends[p + 1]);
        std::vector<idx_t> ids(x.n);
        for (size_t i = 0; i < x.n; i++) {
            ids[i] = idx_t(i + (own_ids ? 0 : ends[p]));
        }
        part->add_with_ids(x.n, x.x.data(), ids.data());
        paths.push_back(folder.file("part" + std::to_string(p)));
        faiss_ext::write_index(part.get(), paths.back().c_str());
    }
    return paths;
}

/// The base, its lists in the folder's file "lists".
inline std::unique_ptr<faiss::Index> on_disk(
        const char* description, const TemporaryFolder& folder) {
    auto index = trained(description);
    merge_ondisk(
            index.get(),
            write_parts(*index, folder, false),
            folder.file("lists"));
    return index;
}

} // namespace faiss_ext
