#pragma once

#include <memory>
#include <string>
#include <vector>

#include "IvfTestTools.h"

namespace faiss_ext {

constexpr size_t kLists = 16;

inline const Vectors& base() {
    static const Vectors data = sift_base(3000);
    return data;
}

inline const Vectors& queries() {
    static const Vectors data = sift_queries(20);
    return data;
}

/// Everything of an index that a failed call could have changed.
struct State {
    explicit State(const IndexIVFFlatGMM& index)
            : index(index), ntotal(index.ntotal), trained(index.is_trained),
              map(index.direct_map.type), cells(index.cells.cells_per_list),
              calibrated(index.calibration.fitted),
              report(index.calibration.report()),
              means(index.is_trained ? index.mixture().means
                                     : std::vector<float>()),
              found(search()), entries(list_entries()) {}

    Found search() const {
        return trained ? find(index, queries(), 10) : Found{};
    }
    std::vector<std::vector<idx_t>> list_entries() const {
        std::vector<std::vector<idx_t>> out;
        for (size_t i = 0; i < index.nlist; i++) {
            faiss::InvertedLists::ScopedIds ids(index.invlists, i);
            out.emplace_back(
                    ids.get(), ids.get() + index.invlists->list_size(i));
        }
        return out;
    }
    void expect_unchanged() const {
        EXPECT_EQ(index.ntotal, ntotal);
        EXPECT_EQ(index.is_trained, trained);
        EXPECT_EQ(index.direct_map.type, map);
        EXPECT_EQ(index.cells.cells_per_list, cells);
        EXPECT_EQ(index.calibration.fitted, calibrated);
        EXPECT_EQ(index.calibration.report(), report);
        if (trained) {
            EXPECT_EQ(index.mixture().means, means);
        }
        EXPECT_EQ(search(), found);
        EXPECT_EQ(list_entries(), entries);
    }

    const IndexIVFFlatGMM& index;
    idx_t ntotal;
    bool trained;
    faiss::DirectMap::Type map;
    size_t cells;
    bool calibrated;
    std::string report;
    std::vector<float> means;
    Found found;
    std::vector<std::vector<idx_t>> entries;
};

/// The call throws, its message has these words, and the index is as it was.
template <class F>
void expect_refused(
        const IndexIVFFlatGMM& index,
        const std::vector<std::string>& words,
        F&& call) {
    const State before(index);
    const std::string message = faiss_error(call);
    for (const std::string& word : words) {
        EXPECT_NE(message.find(word), std::string::npos)
                << "'" << word << "' is not in: " << message;
    }
    before.expect_unchanged();
}

inline std::unique_ptr<IndexIVFFlatGMM> calibrated() {
    auto index = filled(base(), kLists);
    index->calibrate(100, nullptr);
    index->nprobe = 3;
    return index;
}

} // namespace faiss_ext
