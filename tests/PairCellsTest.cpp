// Cells of pairs against the slow and obvious way, in double.
#include "faiss_ext/PairCells.h"

#include <numeric>

#include "IvfTestTools.h"
#include "faiss_ext/rank/CellRanker.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 32;

const Vectors& base() {
    static const Vectors data = sift_base(8000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(60);
    return data;
}

/// m_il of the header's formula.
std::vector<double> cell_mean(
        const PairCells& cells,
        const std::vector<float>& means,
        size_t d,
        size_t i,
        size_t l) {
    const double a = l < cells.cells_per_list ? cells.a[i] : 0;
    const size_t j = l < cells.cells_per_list
            ? cells.partner[i * cells.n_partners + l]
            : i;
    std::vector<double> out(d);
    for (size_t c = 0; c < d; c++) {
        out[c] = (1 - a) * means[i * d + c] + a * means[j * d + c];
    }
    return out;
}

double squared_distance(const float* x, const std::vector<double>& m) {
    double sum = 0;
    for (size_t c = 0; c < m.size(); c++) {
        sum += (x[c] - m[c]) * (x[c] - m[c]);
    }
    return sum;
}

TEST(PairCells, PartnersAreTheNearestMeans) {
    const Vectors means = sift_base(50);
    PairCells cells;
    cells.init(means.n, means.d, means.x.data(), 8);
    ASSERT_EQ(cells.cells_per_list, 8u);
    for (size_t i = 0; i < means.n; i++) {
        std::vector<std::pair<double, int32_t>> near;
        for (size_t j = 0; j < means.n; j++) {
            if (j != i) {
                near.push_back(
                        {true_distance(
                                 faiss::METRIC_L2,
                                 means.row(i),
                                 means.row(j),
                                 means.d),
                         int32_t(j)});
            }
        }
        std::sort(near.begin(), near.end());
        for (size_t l = 0; l < 8; l++) {
            EXPECT_EQ(cells.partner[i * cells.n_partners + l], near[l].second);
            EXPECT_NEAR(
                    cells.gap[i * cells.n_partners + l], near[l].first, 0.5);
        }
    }
}

TEST(PairCells, NoListIsItsOwnPartnerEvenWhereMeansCoincide) {
    Vectors means = sift_base(20);
    for (size_t i = 0; i < 12; i++) {
        std::copy_n(means.row(0), means.d, &means.x[i * means.d]);
    }
    PairCells cells;
    cells.init(means.n, means.d, means.x.data(), 5);
    for (size_t i = 0; i < means.n; i++) {
        std::set<int32_t> partners(
                &cells.partner[i * cells.n_partners],
                &cells.partner[i * cells.n_partners] + 5);
        EXPECT_EQ(partners.size(), 5u);
        EXPECT_EQ(partners.count(i), 0u);
    }
}

TEST(PairCells, FewListsLeaveNoCells) {
    const Vectors means = sift_base(5);
    PairCells cells;
    for (size_t nlist : {1, 2}) {
        cells.init(nlist, means.d, means.x.data(), 16);
        EXPECT_TRUE(cells.empty());
    }
    cells.init(5, means.d, means.x.data(), 1);
    EXPECT_TRUE(cells.empty());
    cells.init(5, means.d, means.x.data(), 100);
    EXPECT_EQ(cells.cells_per_list, 4u);
}

TEST(PairCells, DefaultCellsHoldFiveToTen) {
    EXPECT_EQ(PairCells::default_cells_per_list(0), 1u);
    EXPECT_EQ(PairCells::default_cells_per_list(9), 1u);
    for (double size = 10; size < 5000; size *= 1.3) {
        const double in_cell = size / PairCells::default_cells_per_list(size);
        EXPECT_GE(in_cell, 5);
        EXPECT_LT(in_cell, 10);
    }
    EXPECT_LE(PairCells::default_cells_per_list(1e9), 65535u);
}

TEST(PairCells, AListIsFittedAsInDouble) {
    auto index = filled(base(), kLists);
    const std::vector<float> means = index->mixture().means;
    PairCells cells;
    cells.init(kLists, base().d, means.data(), 12);
    const size_t L = cells.cells_per_list, d = base().d;
    for (size_t i = 0; i < kLists; i++) {
        std::vector<float> x;
        for (const auto& [id, at] : entries_by_id(*index)) {
            if (at[0].list == i) {
                x.insert(x.end(), base().row(id), base().row(id) + d);
            }
        }
        const size_t n = x.size() / d;
        std::vector<uint16_t> cell(n);
        cells.fit_list(i, n, d, x.data(), means.data(), cell.data());
        ASSERT_GT(cells.a[i], 0);
        ASSERT_LT(cells.a[i], 1);

        auto cost = [&](float a, std::vector<double>* sums) {
            PairCells other = cells;
            other.a[i] = a;
            double total = 0;
            for (size_t r = 0; r < n; r++) {
                const double s = squared_distance(
                        &x[r * d], cell_mean(other, means, d, i, cell[r]));
                total += s;
                if (sums) {
                    (*sums)[cell[r]] += s;
                }
            }
            return total;
        };
        std::vector<double> sums(L);
        const double best = cost(cells.a[i], &sums);
        // a has almost converged for these cells
        EXPECT_LT(best, 1.003 * cost(cells.a[i] - 0.1f, nullptr));
        EXPECT_LT(best, 1.003 * cost(cells.a[i] + 0.1f, nullptr));
        for (size_t r = 0; r < n; r++) {
            const double own = squared_distance(
                    &x[r * d], cell_mean(cells, means, d, i, cell[r]));
            for (size_t l = 0; l < L; l++) {
                ASSERT_LE(
                        own,
                        1.00001 *
                                squared_distance(
                                        &x[r * d],
                                        cell_mean(cells, means, d, i, l)));
            }
        }
        // variances lie between the cell's own and the list's
        for (size_t l = 0; l < L; l++) {
            const double count = std::count(cell.begin(), cell.end(), l);
            const double list = best / n;
            const double own = count > 0 ? sums[l] / count : list;
            ASSERT_GE(
                    cells.variance[i * (L + 1) + l],
                    0.999 * std::min(own, list));
            ASSERT_LE(
                    cells.variance[i * (L + 1) + l],
                    1.001 * std::max(own, list));
        }
        // vectors that come later go where those did
        const std::vector<idx_t> homes(n, i);
        std::vector<uint16_t> again(n);
        cells.assign(n, d, x.data(), homes.data(), means.data(), again.data());
        size_t same = 0;
        for (size_t r = 0; r < n; r++) {
            same += cell[r] == again[r];
        }
        EXPECT_GE(same + n / 200 + 1, n);
    }
}

TEST(PairCells, ScoresAreDistancesToCellMeans) {
    auto index = filled(base(), kLists);
    const PairCells& cells = index->cells;
    const std::vector<float> means = index->mixture().means;
    const size_t L = cells.cells_per_list, d = base().d;
    ASSERT_GT(L, 1u);
    for (size_t q = 0; q < 10; q++) {
        std::vector<float> distances(kLists), scores(L + 1);
        for (size_t i = 0; i < kLists; i++) {
            distances[i] = true_distance(
                    faiss::METRIC_L2, queries().row(q), &means[i * d], d);
        }
        for (size_t i = 0; i < kLists; i++) {
            cells.score(i, distances.data(), false, scores.data());
            for (size_t l = 0; l <= L; l++) {
                const double expected = squared_distance(
                        queries().row(q), cell_mean(cells, means, d, i, l));
                ASSERT_NEAR(scores[l], expected, 1e-5 * 512 * 512);
            }
        }
    }
}

/// Every cell with entries: key and size, all homes scored, in double.
struct RankedCell {
    double key;
    size_t list, l, size;
};

std::vector<RankedCell> ranked_cells(
        const IndexIVFFlatGMM& index, const float* q, bool posterior) {
    const PairCells& cells = index.cells;
    const std::vector<float> means = index.mixture().means;
    const size_t L = cells.cells_per_list, d = index.d;
    double d1 = HUGE_VAL;
    for (size_t i = 0; i < index.nlist; i++) {
        d1 = std::min(d1, true_distance(faiss::METRIC_L2, q, &means[i * d], d));
    }
    const double tau = index.calibration.predict_tau(d1);
    std::vector<RankedCell> out;
    for (size_t i = 0; i < index.nlist; i++) {
        for (size_t l = 0; l <= L; l++) {
            const auto [begin, end] =
                    cells.range(i, l, index.invlists->list_size(i));
            if (begin == end) {
                continue;
            }
            const double s =
                    squared_distance(q, cell_mean(cells, means, d, i, l));
            const double v = cells.variance[i * (L + 1) + l];
            const double z = (s + v - tau) / std::sqrt(4 * s * v + 2 * v * v);
            out.push_back({posterior ? z : s, i, l, end - begin});
        }
    }
    std::sort(out.begin(), out.end(), [](const auto& p, const auto& q) {
        return p.key < q.key;
    });
    return out;
}

TEST(PairCells, TheVectorsThatSketchesPreferAreScanned) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        SCOPED_TRACE(metric);
        auto index = trained(base(), kLists, metric);
        index->add(base().n, base().x.data());
        index->calibrate(100, nullptr);
        const PairCells& cells = index->cells;
        ASSERT_EQ(cells.sketches.size(), kLists);
        const size_t n = index->ntotal;
        std::vector<float> distances(kLists);
        std::vector<float> table(cells.table_size());
        for (size_t max_codes : {10, 100, 1000}) {
            double in_common = 0;
            for (size_t q = 0; q < 20; q++) {
                const float* x = queries().row(q);
                coarse_distances(*index, 1, x, distances.data());
                std::vector<std::pair<double, idx_t>> estimates;
                for (size_t list = 0; list < kLists; list++) {
                    const size_t size = index->invlists->list_size(list);
                    std::vector<float> out(size);
                    cells.make_table(list, distances.data(), table.data());
                    cells.estimate(
                            list,
                            0,
                            size,
                            distances[list],
                            metric == faiss::METRIC_INNER_PRODUCT,
                            table.data(),
                            out.data());
                    for (size_t j = 0; j < size; j++) {
                        // by the formula in PairCells.h
                        const Sketch& s = cells.sketches[list][j];
                        double sum = distances[list];
                        for (size_t t = 0; t < Sketch::kTerms; t++) {
                            sum += s.weight[t] / 64.0 *
                                    (distances[cells.partners(
                                             list)[s.partner[t]]] -
                                     distances[list]);
                        }
                        sum = metric == faiss::METRIC_L2 ? sum + s.constant
                                                         : 2 -
                                        (2 - sum) * s.constant /
                                                std::sqrt(cells.norm2);
                        sum = std::max(sum, 0.0);
                        ASSERT_NEAR(out[j], sum, 1e-3 * sum + 1e-3);
                        estimates.push_back(
                                {sum, index->invlists->get_single_id(list, j)});
                    }
                }
                std::sort(estimates.begin(), estimates.end());
                std::set<idx_t> best;
                for (size_t j = 0; j < max_codes; j++) {
                    best.insert(estimates[j].second);
                }

                SearchParametersIVFGMM params;
                params.nprobe = kLists - 1;
                params.max_codes = max_codes;
                params.probe_order = ProbeOrder::sketch;
                faiss::indexIVF_stats.reset();
                // k = ntotal shows every vector that was scanned
                const Found found =
                        find(*index, rows_of(queries(), q, q + 1), n, &params);
                std::set<idx_t> scanned(found.ids.begin(), found.ids.end());
                scanned.erase(-1);
                ASSERT_EQ(scanned.size(), max_codes);
                ASSERT_EQ(faiss::indexIVF_stats.ndis, max_codes);
                for (idx_t id : scanned) {
                    in_common += best.count(id);
                }
            }
            // the others are in cells that were not looked into: ten times
            // the vectors wanted are
            EXPECT_GE(in_common / (20 * max_codes), max_codes > 10 ? 0.8 : 0.5)
                    << max_codes;
        }
    }
}

TEST(PairCells, TheBestCellsAreScannedAndNothingElse) {
    auto index = filled(base(), kLists);
    const Vectors late = rows_of(sift_base(8400), 8000, 8400);
    index->add(late.n, late.x.data()); // some are in tails
    index->calibrate(100, nullptr);
    const PairCells& cells = index->cells;
    const size_t n = index->ntotal;
    std::vector<size_t> list_of(n), cell_of(n);
    for (const auto& [id, at] : entries_by_id(*index)) {
        list_of[id] = at[0].list;
        const uint32_t* offset = cells.list_offsets(at[0].list);
        cell_of[id] = std::upper_bound(
                              offset,
                              offset + cells.cells_per_list + 1,
                              uint32_t(at[0].offset)) -
                offset - 1;
    }
    for (auto order : {ProbeOrder::cell_distance, ProbeOrder::cell_posterior}) {
        const bool posterior = order == ProbeOrder::cell_posterior;
        for (size_t nprobe : {1, 3, 8}) {
            SCOPED_TRACE(
                    std::string(to_string(order)) + " nprobe " +
                    std::to_string(nprobe));
            SearchParametersIVFGMM params;
            params.nprobe = nprobe;
            params.probe_order = order;
            const size_t budget = (nprobe * n + kLists - 1) / kLists;
            size_t in_common = 0, in_reference = 0;
            for (size_t q = 0; q < queries().n; q++) {
                faiss::indexIVF_stats.reset();
                // k = ntotal shows every vector that was scanned
                const Found found =
                        find(*index, rows_of(queries(), q, q + 1), n, &params);
                std::set<idx_t> scanned(found.ids.begin(), found.ids.end());
                scanned.erase(-1);
                ASSERT_EQ(scanned.size(), faiss::indexIVF_stats.ndis);
                std::map<std::pair<size_t, size_t>, size_t> runs;
                for (idx_t id : scanned) {
                    runs[{list_of[id], cell_of[id]}]++;
                }
                // whole cells, as many as reach the budget
                size_t largest = 0;
                for (const auto& [cell, count] : runs) {
                    const auto [begin, end] = cells.range(
                            cell.first,
                            cell.second,
                            index->invlists->list_size(cell.first));
                    ASSERT_EQ(count, end - begin);
                    largest = std::max(largest, count);
                }
                ASSERT_GE(scanned.size(), budget);
                ASSERT_LT(scanned.size(), budget + largest);

                size_t total = 0;
                for (const RankedCell& c :
                     ranked_cells(*index, queries().row(q), posterior)) {
                    if (total >= budget) {
                        break;
                    }
                    total += c.size;
                    in_reference += c.size;
                    if (runs.count({c.list, c.l})) {
                        in_common += c.size;
                    }
                }
            }
            // buckets and the homes left out may swap a few
            EXPECT_GE(double(in_common), 0.93 * in_reference);
        }
    }
}

TEST(PairCells, ARankerHandsOutEveryEntryOnce) {
    auto index = filled(base(), kLists);
    const Vectors late = rows_of(sift_base(8400), 8000, 8400);
    index->add(late.n, late.x.data());
    const std::vector<float> means = index->mixture().means;
    CellRanker ranker(index->cells, *index->invlists);
    QueryCoarse coarse(*index);
    std::vector<float> distances(kLists);
    for (size_t i = 0; i < kLists; i++) {
        distances[i] = true_distance(
                faiss::METRIC_L2,
                queries().row(0),
                &means[i * base().d],
                base().d);
    }
    for (bool posterior : {false, true}) {
        for (size_t step : {1, 50, 1000, 100000}) {
            coarse.start(distances.data());
            ranker.start(coarse, false, posterior, [](float) { return 1e5f; });
            std::set<std::pair<size_t, size_t>> seen;
            std::vector<faiss_ext::Run> runs;
            size_t target = step, handed_out = 0;
            while (ranker.advance(target, runs)) {
                faiss_ext::join_runs(runs);
                for (size_t r = 0; r < runs.size(); r++) {
                    ASSERT_LT(runs[r].begin, runs[r].end);
                    if (r > 0 && runs[r - 1].list == runs[r].list) {
                        ASSERT_LT(runs[r - 1].end, runs[r].begin);
                    } else if (r > 0) {
                        ASSERT_LT(runs[r - 1].list, runs[r].list);
                    }
                    for (size_t j = runs[r].begin; j < runs[r].end; j++) {
                        ASSERT_TRUE(seen.insert({runs[r].list, j}).second);
                    }
                    handed_out += runs[r].end - runs[r].begin;
                }
                ASSERT_EQ(handed_out, ranker.progress.entries);
                ASSERT_TRUE(
                        ranker.progress.entries >= target ||
                        ranker.progress.entries == size_t(index->ntotal));
                target = ranker.progress.entries + step;
            }
            EXPECT_EQ(handed_out, size_t(index->ntotal));
        }
    }
}

TEST(PairCells, DegenerateListsGiveFiniteOrders) {
    // all at one point: no gaps, no variance; and vectors of vast scales
    for (float scale : {0.0f, 1e-9f, 1e-5f, 1e5f, 1e9f, 1e15f}) {
        Vectors x = uniform(3000, 8, 3);
        for (size_t i = 0; i < x.x.size(); i++) {
            x.x[i] = x.x[i] * scale + (scale == 0 ? 1.0f : 0.0f);
        }
        auto index = trained(x, 16);
        index->cells_per_list = 4;
        index->add(x.n, x.x.data());
        index->calibrate(50, nullptr);
        for (float v : index->cells.variance) {
            ASSERT_TRUE(v > 0 && std::isfinite(v)) << scale;
        }
        const Vectors q = rows_of(x, 0, 20);
        const Model model = model_of(x);
        for (auto order :
             {ProbeOrder::calibrated,
              ProbeOrder::cell_distance,
              ProbeOrder::cell_posterior,
              ProbeOrder::scale_free}) {
            for (float mass : {0.9f, 1.0f}) {
                SearchParametersIVFGMM params;
                params.nprobe = 8;
                params.probe_order = order;
                params.probe_mass = mass;
                const Found found = find(*index, q, 5, &params);
                for (size_t j = 0; j < found.ids.size(); j++) {
                    ASSERT_TRUE(std::isfinite(found.dis[j]));
                    ASSERT_GE(found.ids[j], 0)
                            << to_string(order) << " " << mass << " " << scale;
                    ASSERT_LT(found.ids[j], idx_t(x.n));
                }
            }
        }
        expect_model(*index, model, q);
    }
}

} // namespace
} // namespace faiss_ext
