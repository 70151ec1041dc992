#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/scan/CodeScan.h"

namespace faiss_ext {

/// Puts about the `most` best candidates first and returns how many. Not in
/// order, and not by nth_element(), half of whose branches are mispredicted.
class BestToFront {
public:
    size_t operator()(std::vector<CodeCandidate>& pool, size_t most) {
        if (pool.size() <= most) {
            return pool.size();
        }
        bounds.resize(pool.size());
        for (size_t i = 0; i < pool.size(); i++) {
            bounds[i] = pool[i].bound;
        }
        const float cut = best_code_kernels().cut(
                bounds.size(), bounds.data(), most - most / 8, most + most / 8);
        others.resize(pool.size());
        size_t n = 0, m = 0;
        for (size_t i = 0; i < pool.size(); i++) {
            const CodeCandidate c = pool[i];
            const bool in = c.bound < cut;
            pool[n] = others[m] = c;
            n += in;
            m += !in;
        }
        std::copy(others.begin(), others.begin() + m, pool.begin() + n);
        if (2 * n < most || n > 2 * most) { // many are equal
            std::nth_element(
                    pool.begin(),
                    pool.begin() + most,
                    pool.end(),
                    CodeScan::better);
            return most;
        }
        return n;
    }

private:
    std::vector<CodeCandidate> others;
    std::vector<float> bounds;
};

} // namespace faiss_ext
