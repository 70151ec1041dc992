#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/rank/GrowingArray.h"

namespace faiss_ext {

/// Codes from all over the lists, as vectors, for one call of a scanner.
class ShortRuns {
public:
    explicit ShortRuns(const faiss::IndexIVF& ivf);

    void set_query(const float* q) {
        if (scanner) {
            scanner->set_query(q);
        }
    }

    /// Whether runs of one code are taken.
    bool takes_single() const {
        return scanner != nullptr;
    }

    /// Copies n codes of a list; false, and nothing done, if they are better
    /// scanned where they are.
    bool take(size_t list, size_t n, const uint8_t* codes, const idx_t* ids);

    /// Scans what was taken, and forgets it: scan(scanner, n, codes, ids)
    template <class Scan>
    void scan(Scan&& scan) {
        if (!ids.empty()) {
            scan(*scanner,
                 ids.size(),
                 reinterpret_cast<const uint8_t*>(vectors.data()),
                 ids.data());
            vectors.clear();
            ids.clear();
        }
    }

private:
    const size_t d;
    bool flat;
    const faiss::IndexIVFPQ* pq; ///< whose codes are decoded, or nullptr
    const float* means = nullptr;
    faiss::IndexIVFFlat vectors_index; ///< makes the scanner
    std::unique_ptr<faiss::InvertedListScanner> scanner;
    GrowingArray<float> vectors;
    std::vector<idx_t> ids;
};

} // namespace faiss_ext
