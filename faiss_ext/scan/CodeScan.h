#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "faiss_ext/CellCodes.h"

namespace faiss_ext {

/// One query's look at the codes of segments.
class CodeScan {
public:
    /// A threshold of fewer than k.
    static constexpr float kNone = std::numeric_limits<float>::max();

    explicit CodeScan(const CellCodes& codes_in)
            : codes(codes_in), tables(codes_in.shape.groups * 64) {}

    /// @param rotated  P (q - c)
    void start(const float* rotated) {
        query.tables = tables.data();
        kernels.make_tables(
                codes.shape, rotated, tables.data(), &query.base, &query.step);
        n_codes = 0;
    }

    /// The variance of <q, o> by the rounding of the tables' entries, each of
    /// one column to a whole step: 1/12.
    double rounding2() const {
        const CodeShape& shape = codes.shape;
        const double step = query.step;
        return step * step * double((shape.d * shape.bits + 3) / 4) / 12;
    }

    /** Looks at segments `begin` to `end`, those behind which may be fetched.
     *
     * @return  how many of `candidates` are below the threshold
     */
    size_t operator()(
            const std::vector<Segment>& segments,
            size_t begin,
            size_t end,
            float threshold) {
        size_t entries = 0;
        for (size_t s = begin; s < end; s++) {
            entries += segments[s].end - segments[s].begin;
        }
        n_codes += entries;
        if (candidates.size() < entries + kMoreCandidates) {
            candidates.resize(2 * entries + kMoreCandidates);
        }
        return kernels.scan(
                codes.shape,
                query,
                codes.similarity,
                segments.data() + begin,
                end - begin,
                threshold,
                candidates.data());
    }

    /// A threshold in the units of QueryCoarse.
    float squared(float threshold, float q_norm, float norm2) const {
        if (!codes.similarity || !(threshold < kNone)) {
            return threshold;
        }
        const float most = q_norm * std::sqrt(norm2);
        return most > 0 ? std::max(2 + 2 * threshold / most, 0.0f) : 2;
    }

    /// A lambda, for algorithms that take a function call it each time.
    static constexpr auto better = [](const CodeCandidate& p,
                                      const CodeCandidate& q) {
        return p.bound < q.bound;
    };

    std::vector<CodeCandidate> candidates; ///< of the last look
    size_t n_codes = 0;                    ///< looked at, of this query

private:
    const CodeKernels& kernels = best_code_kernels();
    const CellCodes& codes;
    std::vector<uint8_t> tables;
    CodeQuery query = {};
};

} // namespace faiss_ext
