#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>

#include <faiss/utils/distances.h>

#include "TestData.h"
#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// What a search gave.
struct Found {
    size_t k;
    std::vector<float> dis;
    std::vector<idx_t> ids;

    bool operator==(const Found&) const = default;
};

inline Found find(
        const faiss::Index& index,
        const Vectors& x,
        size_t k,
        const faiss::SearchParameters* params = nullptr) {
    Found out{k, std::vector<float>(x.n * k), std::vector<idx_t>(x.n * k)};
    index.search(x.n, x.x.data(), k, out.dis.data(), out.ids.data(), params);
    return out;
}

/// Share of a's results that b has too.
inline double agreement(const Found& a, const Found& b) {
    size_t same = 0;
    for (size_t j = 0; j < a.ids.size(); j++) {
        const auto begin = b.ids.begin() + j / b.k * b.k;
        same += std::count(begin, begin + b.k, a.ids[j]);
    }
    return double(same) / a.ids.size();
}

/// Distances computed a query in one search.
inline double distances_per_query(
        const faiss::Index& index,
        const Vectors& x,
        size_t k,
        const faiss::SearchParameters* params = nullptr) {
    faiss::indexIVF_stats.reset();
    find(index, x, k, params);
    return double(faiss::indexIVF_stats.ndis) / x.n;
}

inline Vectors rows_of(const Vectors& x, size_t begin, size_t end) {
    return {end - begin,
            x.d,
            {x.row(begin), x.row(begin) + (end - begin) * x.d}};
}

inline Vectors uniform(size_t n, size_t d, uint32_t seed) {
    std::mt19937 rng(seed);
    std::uniform_real_distribution<float> value(-1, 1);
    Vectors out{n, d, std::vector<float>(n * d)};
    for (float& v : out.x) {
        v = value(rng);
    }
    return out;
}

/// What an index should hold: vectors by their ids.
using Model = std::map<idx_t, std::vector<float>>;

inline Model model_of(const Vectors& x, idx_t first_id = 0) {
    Model model;
    for (size_t i = 0; i < x.n; i++) {
        model[first_id + i] = {x.row(i), x.row(i) + x.d};
    }
    return model;
}

/// Squared distance or inner product, in double.
inline double true_distance(
        faiss::MetricType metric, const float* a, const float* b, size_t d) {
    double sum = 0;
    for (size_t j = 0; j < d; j++) {
        const double t = double(a[j]) - b[j];
        sum += metric == faiss::METRIC_L2 ? t * t : double(a[j]) * b[j];
    }
    return sum;
}

/// What rounding may do to such a distance.
inline double rounding_of(const float* a, const float* b, size_t d) {
    const std::vector<float> zero(d, 0.0f);
    return 1e-5 *
            (true_distance(faiss::METRIC_L2, a, zero.data(), d) +
             true_distance(faiss::METRIC_L2, b, zero.data(), d)) +
            1e-6;
}

/// Every result is a vector of the model at its true distance, the nearest
/// first, none twice, and -1 only behind them.
inline void expect_honest(
        const Found& found,
        const Model& model,
        const Vectors& x,
        faiss::MetricType metric) {
    const double sign = metric == faiss::METRIC_L2 ? 1 : -1;
    for (size_t i = 0; i < x.n; i++) {
        std::set<idx_t> seen;
        bool ended = false;
        for (size_t j = i * found.k; j < (i + 1) * found.k; j++) {
            const idx_t id = found.ids[j];
            if (id < 0) {
                ASSERT_EQ(id, -1);
                ended = true;
                continue;
            }
            ASSERT_FALSE(ended) << "a result behind -1, query " << i;
            ASSERT_TRUE(seen.insert(id).second) << "id " << id << " twice";
            const auto at = model.find(id);
            ASSERT_NE(at, model.end()) << "id " << id << " is not there";
            const float* v = at->second.data();
            ASSERT_NEAR(
                    found.dis[j],
                    true_distance(metric, x.row(i), v, x.d),
                    rounding_of(x.row(i), v, x.d));
            if (j > i * found.k) {
                ASSERT_LE(sign * found.dis[j - 1], sign * found.dis[j]);
            }
        }
    }
}

/// The k best of the model, by brute force in double.
inline Found exact(
        const Model& model,
        const Vectors& x,
        size_t k,
        faiss::MetricType metric) {
    const double sign = metric == faiss::METRIC_L2 ? 1 : -1;
    Found out{k, std::vector<float>(x.n * k), std::vector<idx_t>(x.n * k, -1)};
    for (size_t i = 0; i < x.n; i++) {
        std::vector<std::pair<double, idx_t>> all;
        for (const auto& [id, v] : model) {
            all.push_back(
                    {sign * true_distance(metric, x.row(i), v.data(), x.d),
                     id});
        }
        const size_t n = std::min(k, all.size());
        std::partial_sort(all.begin(), all.begin() + n, all.end());
        for (size_t j = 0; j < n; j++) {
            out.dis[i * k + j] = float(sign * all[j].first);
            out.ids[i * k + j] = all[j].second;
        }
    }
    return out;
}

/// found is honest and as good as what is expected: ids may differ where
/// distances tie.
inline void expect_exact(
        const Found& found,
        const Found& expected,
        const Model& model,
        const Vectors& x,
        faiss::MetricType metric) {
    expect_honest(found, model, x, metric);
    for (size_t j = 0; j < found.ids.size(); j++) {
        ASSERT_EQ(found.ids[j] < 0, expected.ids[j] < 0) << "query " << j;
        if (found.ids[j] < 0) {
            continue;
        }
        const float* q = x.row(j / found.k);
        const float* v = model.at(expected.ids[j]).data();
        ASSERT_NEAR(found.dis[j], expected.dis[j], rounding_of(q, v, x.d))
                << "query " << j / found.k;
    }
}

/// Search of everything equals brute force over the model.
inline void expect_model(
        const faiss::IndexIVF& index,
        const Model& model,
        const Vectors& x,
        size_t k = 10) {
    faiss::SearchParametersIVF all;
    all.nprobe = index.nlist;
    expect_exact(
            find(index, x, k, &all),
            exact(model, x, k, index.metric_type),
            model,
            x,
            index.metric_type);
}

/// The share of the k true neighbours that were found; ties count.
inline double recall(
        const Found& found, const Found& truth, faiss::MetricType metric) {
    const size_t k = found.k, n = found.ids.size() / k;
    size_t hits = 0;
    for (size_t i = 0; i < n; i++) {
        const float last = truth.dis[i * k + k - 1];
        const float slack = 1e-5f * std::abs(last);
        for (size_t j = i * k; j < (i + 1) * k; j++) {
            hits += found.ids[j] >= 0 &&
                    (metric == faiss::METRIC_L2 ? found.dis[j] <= last + slack
                                                : found.dis[j] >= last - slack);
        }
    }
    return double(hits) / (n * k);
}

/// One entry of an inverted list.
struct Entry {
    size_t list;
    size_t offset;
};

/// Where each id is, all copies.
inline std::map<idx_t, std::vector<Entry>> entries_by_id(
        const faiss::IndexIVF& index) {
    std::map<idx_t, std::vector<Entry>> entries;
    for (size_t i = 0; i < index.nlist; i++) {
        faiss::InvertedLists::ScopedIds ids(index.invlists, i);
        for (size_t j = 0; j < index.invlists->list_size(i); j++) {
            entries[ids[j]].push_back({i, j});
        }
    }
    return entries;
}

/// The code of an entry is that of its vector about its cell's mean. Of vectors
/// that are not stored as they are what is reconstructed has another.
inline void check_code(
        const faiss::IndexIVF& index,
        const PairCells& cells,
        size_t list,
        size_t entry) {
    const uint16_t cell = uint16_t(cells.cell_of(list, entry));
    std::vector<float> x(index.d);
    index.reconstruct_from_offset(list, entry, x.data());
    float norm = 1;
    if (cells.codes.similarity) {
        norm = std::sqrt(faiss::fvec_norm_L2sqr(x.data(), index.d));
        faiss::fvec_renorm_L2(index.d, 1, x.data());
    }
    const size_t bytes = cells.codes.shape.entry_bytes();
    std::vector<uint8_t> expected(bytes), record(bytes);
    cells.codes.encode(
            list,
            cells.a[list],
            cells.partners(list),
            1,
            x.data(),
            nullptr,
            &norm,
            &cell,
            expected.data());
    cells.codes.get(list, entry, record.data());
    ASSERT_EQ(record, expected) << "list " << list << ", entry " << entry;
}

inline void check_cells(
        const faiss::IndexIVF& index, const PairCells& cells, bool lossless) {
    const size_t L = cells.cells_per_list;
    ASSERT_EQ(cells.nlist, index.nlist);
    ASSERT_EQ(cells.offsets.size(), index.nlist * (L + 1));
    ASSERT_EQ(cells.fitted_size.size(), index.nlist);
    ASSERT_EQ(cells.codes.blocks.size(), index.nlist);
    ASSERT_GE(cells.codes.error, 0);
    for (size_t i = 0; i < index.nlist; i++) {
        const uint32_t* offset = cells.list_offsets(i);
        const size_t size = index.invlists->list_size(i);
        ASSERT_EQ(offset[0], 0);
        ASSERT_TRUE(std::is_sorted(offset, offset + L + 1));
        ASSERT_EQ(offset[L], size) << "list " << i;
        ASSERT_EQ(
                cells.codes.blocks[i].size(),
                (size + kBlockEntries - 1) / kBlockEntries *
                        cells.codes.shape.block_bytes())
                << "list " << i;
        for (size_t j = i % 7; lossless && j < size; j += 7) {
            ASSERT_NO_FATAL_FAILURE(check_code(index, cells, i, j));
        }
    }
}

/// An entry's earlier lists are those that hold the same vector before it,
/// the home first.
inline void check_copies(
        const IVFGMM& gmm, const std::map<idx_t, std::vector<Entry>>& entries) {
    const size_t width = gmm.max_assign - 1;
    for (const auto& [id, at] : entries) {
        ASSERT_LE(at.size(), gmm.max_assign);
        std::map<size_t, size_t> list_at; // by the number of earlier lists
        for (const Entry& e : at) {
            const int32_t* earlier =
                    &gmm.earlier_lists[e.list][e.offset * width];
            const size_t n = std::find(earlier, earlier + width, -1) - earlier;
            ASSERT_TRUE(list_at.emplace(n, e.list).second) << "id " << id;
        }
        ASSERT_EQ(list_at.size(), at.size());
        for (const Entry& e : at) {
            const int32_t* earlier =
                    &gmm.earlier_lists[e.list][e.offset * width];
            for (size_t w = 0; w < width && earlier[w] >= 0; w++) {
                ASSERT_TRUE(list_at.count(w)) << "id " << id;
                ASSERT_EQ(size_t(earlier[w]), list_at[w]) << "id " << id;
            }
        }
    }
}

/** All that IndexIVFGMM keeps beside the inverted lists agrees with them, and
 * they hold the model's ids (and vectors, where the codec is lossless). */
inline void check_consistent(
        const faiss::IndexIVF& index,
        const IVFGMM& gmm,
        const Model& model,
        bool lossless = true) {
    ASSERT_EQ(size_t(index.ntotal), model.size());
    const auto entries = entries_by_id(index);
    ASSERT_EQ(entries.size(), model.size());
    for (const auto& [id, at] : entries) {
        ASSERT_TRUE(model.count(id)) << "id " << id;
        ASSERT_TRUE(gmm.max_assign > 1 || at.size() == 1) << "id " << id;
    }
    if (!gmm.cells.empty()) {
        ASSERT_NO_FATAL_FAILURE(check_cells(index, gmm.cells, lossless));
    }
    if (gmm.max_assign > 1 && !model.empty()) {
        ASSERT_EQ(gmm.earlier_lists.size(), index.nlist);
        for (size_t i = 0; i < index.nlist; i++) {
            ASSERT_EQ(
                    gmm.earlier_lists[i].size(),
                    index.invlists->list_size(i) * (gmm.max_assign - 1));
        }
        ASSERT_NO_FATAL_FAILURE(check_copies(gmm, entries));
    } else {
        ASSERT_TRUE(model.empty() || gmm.earlier_lists.empty());
    }
    if (index.direct_map.no()) {
        return;
    }
    if (index.direct_map.type == faiss::DirectMap::Hashtable) {
        ASSERT_EQ(index.direct_map.hashtable.size(), model.size());
    } else {
        ASSERT_EQ(index.direct_map.array.size(), model.size());
    }
    for (const auto& [id, v] : model) {
        const idx_t lo = index.direct_map.get(id);
        ASSERT_LT(faiss::lo_listno(lo), index.nlist);
        ASSERT_LT(
                faiss::lo_offset(lo),
                index.invlists->list_size(faiss::lo_listno(lo)));
        ASSERT_EQ(
                index.invlists->get_single_id(
                        faiss::lo_listno(lo), faiss::lo_offset(lo)),
                id);
        std::vector<float> got(index.d);
        index.reconstruct(id, got.data());
        if (lossless) {
            ASSERT_EQ(got, v) << "id " << id;
        }
    }
}

/// Squared distances of a query to all means; for METRIC_INNER_PRODUCT those
/// of its direction.
inline std::vector<float> mean_distances(
        const faiss::IndexIVF& index, const float* q) {
    const std::vector<float> zero(index.d, 0.0f);
    const double norm =
            std::sqrt(true_distance(faiss::METRIC_L2, q, zero.data(), index.d));
    std::vector<float> out(index.nlist), mean(index.d);
    for (size_t i = 0; i < index.nlist; i++) {
        index.quantizer->reconstruct(i, mean.data());
        const double d =
                true_distance(index.metric_type, q, mean.data(), index.d);
        out[i] = float(
                index.metric_type == faiss::METRIC_L2 ? d : 2 - 2 * d / norm);
    }
    return out;
}

/// An index trained on x, quickly, and empty.
template <class Index = IndexIVFFlatGMM, class... Args>
std::unique_ptr<Index> trained(const Vectors& x, size_t nlist, Args... args) {
    auto index = std::make_unique<Index>(x.d, nlist, args...);
    index->cp.niter = 4;
    index->calibrate_on_add = false;
    index->train(x.n, x.x.data());
    return index;
}

/// ... and filled.
template <class Index = IndexIVFFlatGMM, class... Args>
std::unique_ptr<Index> filled(const Vectors& x, size_t nlist, Args... args) {
    auto index = trained<Index>(x, nlist, args...);
    index->add(x.n, x.x.data());
    return index;
}

struct Outcome {
    double recall, distances;
};

inline Outcome outcome(
        const faiss::Index& index,
        const Vectors& q,
        const Found& truth,
        const faiss::SearchParameters& params) {
    faiss::indexIVF_stats.reset();
    const Found found = find(index, q, truth.k, &params);
    return {recall(found, truth, index.metric_type),
            double(faiss::indexIVF_stats.ndis) / q.n};
}

/// By the index itself, all lists: IndexFlat's matrix products are too coarse
/// for vectors that nearly coincide.
inline Found truth_of(const faiss::IndexIVF& index, const Vectors& q) {
    faiss::SearchParametersIVF all;
    all.nprobe = index.nlist;
    return find(index, q, 10, &all);
}

} // namespace faiss_ext
