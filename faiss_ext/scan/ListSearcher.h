#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/scan/RunScanner.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Whole lists in the order of keys; of entries with copies elsewhere the one
/// in the first list that holds the vector is scanned.
class ListSearcher {
public:
    explicit ListSearcher(const IVFGMM& gmm_in, size_t nlist)
            : gmm(gmm_in), probed(nlist, 0) {}

    template <class Handler>
    void operator()(
            RunScanner& scanner,
            const idx_t* keys,
            const float* coarse,
            size_t nprobe,
            Handler& handler) {
        stamp++;
        for (size_t p = 0; p < nprobe; p++) {
            if (keys[p] >= 0) {
                probed[keys[p]] = stamp;
            }
        }
        for (size_t p = 0; p < nprobe && !scanner.capped(); p++) {
            if (keys[p] < 0) {
                continue;
            }
            const size_t list = keys[p];
            const size_t n = scanner.ivf.invlists->list_size(list);
            const size_t known = known_size(list);
            check_not_shortened(list, n, known, false);
            if (n == 0) {
                continue;
            }
            runs.clear();
            if (!has_copies()) {
                runs.push_back({uint32_t(list), 0, uint32_t(n)});
            } else {
                runs_without_copies(list, n, known);
            }
            scanner.scan_runs(
                    runs.data(),
                    runs.size(),
                    [&](size_t) { return coarse[p]; },
                    handler);
        }
    }

private:
    bool has_copies() const {
        return gmm.max_assign > 1 && !gmm.earlier_lists.empty();
    }

    /// Entries of which it is known whether they are copies.
    size_t known_size(size_t list) const {
        return !has_copies()
                ? 0
                : gmm.earlier_lists[list].size() / (gmm.max_assign - 1);
    }

    void runs_without_copies(size_t list, size_t n, size_t known) {
        const size_t width = gmm.max_assign - 1;
        const int32_t* earlier = gmm.earlier_lists[list].data();
        for (size_t j = 0; j < n; j++) {
            bool skip = false;
            for (size_t w = 0; w < width && j < known; w++) {
                const int32_t other = earlier[j * width + w];
                skip |= other >= 0 && probed[other] == stamp;
            }
            if (skip) {
                continue;
            }
            if (!runs.empty() && runs.back().end == j) {
                runs.back().end++;
            } else {
                runs.push_back({uint32_t(list), uint32_t(j), uint32_t(j + 1)});
            }
        }
    }

    const IVFGMM& gmm;
    std::vector<uint32_t> probed;
    uint32_t stamp = 0;
    std::vector<Run> runs;
};

} // namespace faiss_ext
