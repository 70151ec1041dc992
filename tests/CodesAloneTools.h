#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "IvfTestTools.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"

namespace faiss_ext {

constexpr auto kL2 = faiss::METRIC_L2, kIP = faiss::METRIC_INNER_PRODUCT;

inline Vectors clustered(size_t n, size_t d, uint32_t seed) {
    std::mt19937 centres(7), rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centre(30 * d);
    for (float& v : centre) {
        v = 2 * normal(centres) + 1;
    }
    Vectors out{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const size_t c = rng() % 30;
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = centre[c * d + j] + normal(rng);
        }
    }
    return out;
}

inline std::unique_ptr<IndexIVFRaBitQGMM> make_empty(
        const Vectors& x,
        size_t nlist,
        int bits,
        faiss::MetricType metric = kL2) {
    return trained<IndexIVFRaBitQGMM>(x, nlist, bits, metric);
}

inline std::unique_ptr<IndexIVFRaBitQGMM>
make(const Vectors& x, size_t nlist, int bits, faiss::MetricType metric = kL2) {
    return filled<IndexIVFRaBitQGMM>(x, nlist, bits, metric);
}

/// An entry's code, by the layout that CellCodes describes, in double.
struct Code {
    idx_t id;
    std::vector<double> m, o; ///< mean of the cell; levels less their middle
    double a, b;
};

inline std::vector<Code> codes_of(const IndexIVFRaBitQGMM& index) {
    const PairCells& cells = index.cells;
    const CodeShape& shape = cells.codes.shape;
    const size_t d = index.d, dims = 4 / shape.bits;
    const std::vector<float> means = index.mixture().means;
    std::vector<Code> out;
    for (size_t list = 0; list < index.nlist; list++) {
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const auto [begin, end] = cells.range(list, l);
            for (size_t e = begin; e < end; e++) {
                Code c;
                c.id = index.invlists->get_single_id(list, e);
                std::vector<uint8_t> record(shape.entry_bytes());
                cells.codes.get(list, e, record.data());
                float terms[2];
                memcpy(terms, &record[shape.groups * 2], sizeof(terms));
                c.a = terms[0];
                c.b = terms[1];
                for (size_t j = 0; j < d; j++) {
                    const double own = means[list * d + j];
                    const double other = means[cells.partners(list)[l] * d + j];
                    c.m.push_back(own + cells.a[list] * (other - own));
                    const size_t column = j / dims;
                    const uint8_t byte = record[column / 4 * 2 + (column & 1)];
                    const int nibble = column & 2 ? byte >> 4 : byte & 15;
                    const int level = nibble >> (j % dims * shape.bits) &
                            ((1 << shape.bits) - 1);
                    c.o.push_back(level - 0.5 * ((1 << shape.bits) - 1));
                }
                out.push_back(c);
            }
        }
    }
    return out;
}

/// Of one query: distances (or products) as the codes estimate them, by id.
inline std::map<idx_t, double> estimates(
        const IndexIVFRaBitQGMM& index,
        const std::vector<Code>& codes,
        const float* q) {
    const size_t d = index.d;
    std::vector<float> rotated(d);
    const CellCodes& own = index.cells.codes;
    own.rotation.apply(1, q, own.centre.data(), 1, rotated.data());
    std::map<idx_t, double> out;
    for (const Code& c : codes) {
        double product = 0, distance = 0, similarity = 0;
        for (size_t j = 0; j < d; j++) {
            product += rotated[j] * c.o[j];
            distance += (q[j] - c.m[j]) * (q[j] - c.m[j]);
            similarity += q[j] * c.m[j];
        }
        out[c.id] = index.metric_type == kL2 ? distance + c.a + c.b * product
                                             : c.a * similarity - c.b * product;
    }
    return out;
}

/// A search finds the k best by the estimates, at these.
inline void expect_best_estimates(
        const IndexIVFRaBitQGMM& index,
        const Vectors& q,
        size_t k,
        const faiss::IDSelector* sel = nullptr) {
    faiss::SearchParametersIVF all;
    all.nprobe = index.nlist;
    all.sel = const_cast<faiss::IDSelector*>(sel);
    const Found found = find(index, q, k, &all);
    const std::vector<Code> codes = codes_of(index);
    const double sign = index.metric_type == kL2 ? 1 : -1;
    for (size_t i = 0; i < q.n; i++) {
        const auto expected = estimates(index, codes, q.row(i));
        std::vector<double> sorted;
        double size = 0;
        for (const auto& [id, estimate] : expected) {
            if (!sel || sel->is_member(id)) {
                sorted.push_back(sign * estimate);
                size = std::max(size, std::abs(estimate));
            }
        }
        std::sort(sorted.begin(), sorted.end());
        const double rounding = 2e-5 * size;
        std::set<idx_t> seen;
        for (size_t j = 0; j < k; j++) {
            const idx_t id = found.ids[i * k + j];
            const float distance = found.dis[i * k + j];
            if (j >= sorted.size()) {
                ASSERT_EQ(id, -1);
                continue;
            }
            ASSERT_TRUE(seen.insert(id).second) << "id " << id << " twice";
            ASSERT_TRUE(expected.count(id)) << id;
            ASSERT_TRUE(!sel || sel->is_member(id)) << id;
            ASSERT_NEAR(distance, expected.at(id), rounding) << "rank " << j;
            ASSERT_NEAR(sign * distance, sorted[j], rounding) << "rank " << j;
        }
    }
}

/// All that there is, in an order that does not depend on places.
inline std::map<idx_t, std::vector<float>> decoded(
        const IndexIVFRaBitQGMM& index) {
    std::map<idx_t, std::vector<float>> out;
    for (const auto& [id, at] : entries_by_id(index)) {
        EXPECT_EQ(at.size(), 1u);
        out[id].resize(index.d);
        index.reconstruct_from_offset(at[0].list, at[0].offset, out[id].data());
    }
    return out;
}

inline void expect_sound(const IndexIVFRaBitQGMM& index, size_t n) {
    ASSERT_EQ(size_t(index.ntotal), n);
    ASSERT_EQ(index.code_size, 0u);
    ASSERT_EQ(entries_by_id(index).size(), n);
    check_cells(index, index.cells, false);
}

} // namespace faiss_ext
