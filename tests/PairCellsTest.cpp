// Cells of pairs against the slow and obvious way, in double.
#include "faiss_ext/PairCells.h"

#include <numeric>

#include "IvfTestTools.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 32;

const Vectors& base() {
    static const Vectors data = sift_base(8000);
    return data;
}

/// m_il of the header's formula.
std::vector<double> cell_mean(
        const PairCells& cells,
        const std::vector<float>& means,
        size_t d,
        size_t i,
        size_t l) {
    const double a = cells.a[i];
    const size_t j = cells.partners(i)[l];
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

void expect_nearest_partners(float offset) {
    Vectors means = sift_base(50); // whole numbers
    for (float& x : means.x) {
        x += offset;
    }
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
        near.resize(8);
        std::map<int32_t, double> gaps;
        for (const auto& [gap, j] : near) {
            gaps[j] = gap;
        }
        for (size_t l = 0; l < 8; l++) { // in any order
            const int32_t j = cells.partners(i)[l];
            ASSERT_TRUE(gaps.count(j)) << i << " " << l;
            EXPECT_NEAR(cells.gaps(i)[l], gaps[j], 0.5);
            gaps.erase(j);
        }
    }
}

// Of many means those in near groups are compared.
TEST(PairCells, PartnersOfManyListsAreNearlyAlwaysTheNearest) {
    constexpr size_t kMany = 17000, kD = 16, L = 8;
    Vectors means = uniform(kMany, kD, 5);
    for (size_t i = 0; i < kMany; i++) { // not of one density
        for (size_t j = 0; j < kD; j++) {
            means.x[i * kD + j] *= 1 + float(i % 7) + float(3 * (j == 0));
        }
    }
    std::copy_n(means.row(0), 3 * kD, means.x.begin() + 3 * kD); // twins
    PairCells cells;
    cells.init(kMany, kD, means.x.data(), L);
    size_t found = 0, looked_for = 0;
    for (size_t i = 0; i < kMany; i += 311) {
        std::vector<std::pair<double, int32_t>> near;
        for (size_t j = 0; j < kMany; j++) {
            if (j != i) {
                near.push_back(
                        {true_distance(
                                 faiss::METRIC_L2,
                                 means.row(i),
                                 means.row(j),
                                 kD),
                         int32_t(j)});
            }
        }
        std::partial_sort(near.begin(), near.begin() + L, near.end());
        const int32_t* partners = cells.partners(i);
        for (size_t l = 0; l < L; l++) {
            ASSERT_NE(partners[l], int32_t(i));
            ASSERT_NEAR(
                    cells.gaps(i)[l],
                    true_distance(
                            faiss::METRIC_L2,
                            means.row(i),
                            means.row(partners[l]),
                            kD),
                    rounding_of(means.row(i), means.row(partners[l]), kD));
            found += std::count(partners, partners + L, near[l].second);
            looked_for++;
        }
    }
    EXPECT_GE(double(found), 0.9 * double(looked_for));
}

// All in one group but for a few: these have too few neighbours in theirs.
TEST(PairCells, SmallGroupsOfManyListsHaveAllTheirPartners) {
    constexpr size_t kMany = 17000, kD = 2, L = 16;
    Vectors means{kMany, kD, std::vector<float>(kMany * kD, 1)};
    means.x[0] = 1e6f;
    PairCells cells;
    cells.init(kMany, kD, means.x.data(), L);
    for (int32_t j : cells.partner) {
        ASSERT_GE(j, 0);
        ASSERT_LT(j, int32_t(kMany));
    }
}

TEST(PairCells, PartnersAreTheNearestMeans) {
    expect_nearest_partners(0);
    expect_nearest_partners(1 << 16);
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

TEST(PairCells, RingsAreClosed) {
    EXPECT_EQ(PairCells::n_rings(31), 0u);
    for (size_t L : {32, 63, 64, 100, 128, 1024, 65535}) {
        const size_t rings = PairCells::n_rings(L);
        EXPECT_GE(rings, 1u);
        EXPECT_GE(L / rings, 32u);
        EXPECT_LE(L / rings / 2 + rings, std::min<size_t>(L / 2 + 1, 362));
    }
    constexpr size_t L = 100;
    const Vectors means = sift_base(130);
    PairCells cells;
    cells.init(means.n, means.d, means.x.data(), L);
    ASSERT_EQ(cells.cells_per_list, L);
    const size_t rings = PairCells::n_rings(L);
    ASSERT_EQ(rings, 3u);
    for (size_t i = 0; i < means.n; i++) {
        const int32_t* partner = cells.partners(i);
        for (size_t r = 0; r < rings; r++) {
            const size_t begin = r * L / rings, last = (r + 1) * L / rings - 1;
            EXPECT_EQ(partner[begin], partner[last]);
            EXPECT_EQ(cells.gaps(i)[begin], cells.gaps(i)[last]);
        }
        const std::set<int32_t> distinct(partner, partner + L);
        ASSERT_EQ(distinct.size(), L - rings);
        std::vector<std::pair<double, int32_t>> near;
        for (size_t j = 0; j < means.n; j++) {
            if (j != i) {
                const double to = true_distance(
                        faiss::METRIC_L2, means.row(i), means.row(j), means.d);
                near.push_back({to, int32_t(j)});
            }
        }
        std::sort(near.begin(), near.end());
        for (int32_t j : distinct) {
            EXPECT_LE(
                    true_distance(
                            faiss::METRIC_L2,
                            means.row(i),
                            means.row(j),
                            means.d),
                    near[L - rings - 1].first);
        }
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

TEST(PairCells, DefaultCellsHoldSixteenToThirtyTwo) {
    EXPECT_EQ(PairCells::default_cells_per_list(0), 1u);
    EXPECT_EQ(PairCells::default_cells_per_list(31), 1u);
    for (double size = 32; size < 5000; size *= 1.3) {
        const double in_cell = size / PairCells::default_cells_per_list(size);
        EXPECT_GE(in_cell, 16);
        EXPECT_LT(in_cell, 32);
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

        auto cost = [&](float a) {
            PairCells other = cells;
            other.a[i] = a;
            double total = 0;
            for (size_t r = 0; r < n; r++) {
                total += squared_distance(
                        &x[r * d], cell_mean(other, means, d, i, cell[r]));
            }
            return total;
        };
        const double best = cost(cells.a[i]);
        // a has almost converged for these cells
        EXPECT_LT(best, 1.003 * cost(cells.a[i] - 0.1f));
        EXPECT_LT(best, 1.003 * cost(cells.a[i] + 0.1f));
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
        // vectors that come later go where those did
        std::vector<uint32_t> rows(n);
        std::iota(rows.rbegin(), rows.rend(), 0);
        for (size_t at_once : {n, size_t(3)}) { // matrix products, or not
            size_t same = 0;
            for (size_t r = 0; r + at_once <= n; r += at_once) {
                std::vector<uint16_t> again(at_once);
                cells.assign(
                        i,
                        at_once,
                        d,
                        x.data(),
                        &rows[r],
                        means.data(),
                        again.data());
                for (size_t j = 0; j < at_once; j++) {
                    same += cell[rows[r + j]] == again[j];
                }
            }
            EXPECT_GE(same + n / 200 + 1, n / at_once * at_once);
        }
    }
}

TEST(PairCells, ProductsWithAllMeansTellTheCells) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        auto index =
                std::make_unique<IndexIVFFlatGMM>(base().d, kLists, metric);
        index->calibrate_on_add = false;
        index->train(base().n, base().row(0));
        index->add(base().n, base().row(0));
        const std::vector<float> means = index->mixture().means;
        const PairCells& cells = index->cells;
        const size_t d = base().d, n = 2000;
        const size_t bytes = cells.codes.shape.entry_bytes();
        KnownCells known;
        for (size_t at_once : {n, size_t(20)}) {
            size_t same = 0;
            float most = 0;
            for (size_t r = 0; r < n; r += at_once) {
                std::vector<idx_t> lists(at_once), expected(at_once);
                const float* x = base().row(r);
                nearest_lists(*index, cells, at_once, x, lists.data(), known);
                index->quantizer->assign(at_once, x, expected.data());
                EXPECT_EQ(lists, expected);
                ASSERT_EQ(known.cell.size(), at_once);
                ASSERT_EQ(known.records.size(), at_once * bytes);
                most = std::max(most, known.norm2);
                // one at a time, as placed within its list
                for (size_t j = 0; j < at_once; j++) {
                    const idx_t id = 0;
                    Arrivals one;
                    one.list = lists[j];
                    one.n = 1;
                    one.ids = &id;
                    one.place({*index, *index}, x + j * d, means.data());
                    if (known.cell[j] == one.cell[0]) {
                        same++;
                        EXPECT_EQ(
                                one.payload.records,
                                std::vector<uint8_t>(
                                        known.records.begin() + j * bytes,
                                        known.records.begin() +
                                                (j + 1) * bytes));
                    }
                    EXPECT_LE(one.norm2, known.norm2);
                }
            }
            EXPECT_GE(same, n - n / 200);
            EXPECT_EQ(most > 0, metric == faiss::METRIC_INNER_PRODUCT);
        }
        // of few vectors, and without cells, they are not known
        std::vector<idx_t> lists(n);
        nearest_lists(*index, cells, 5, base().row(0), lists.data(), known);
        EXPECT_TRUE(known.empty());
        nearest_lists(
                *index, PairCells(), n, base().row(0), lists.data(), known);
        EXPECT_TRUE(known.empty());
    }
}

TEST(PairCells, AnotherRoundIsAsInDouble) {
    auto index = filled(base(), kLists);
    const std::vector<float> means = index->mixture().means;
    const size_t d = base().d;
    const PairCells& cells = index->cells;
    for (size_t i = 0; i < kLists; i++) {
        std::vector<float> x;
        decode_list(*index, i, x);
        std::vector<uint32_t> entries, all;
        double uv = 0, vv = 0;
        for (uint32_t e = 0; e < cells.list_size(i); e++) {
            all.push_back(e);
            if (e % 3 == 1) {
                entries.push_back(e);
            }
        }
        for (uint32_t e : entries) {
            size_t l = 0;
            while (cells.range(i, l).second <= e) {
                l++;
            }
            const float* other = &means[cells.partners(i)[l] * d];
            for (size_t j = 0; j < d; j++) {
                const double v = double(other[j]) - means[i * d + j];
                uv += (double(x[e * d + j]) - means[i * d + j]) * v;
                vv += v * v;
            }
        }
        const float a = cells.next_a(
                i,
                entries.size(),
                d,
                x.data(),
                entries.data(),
                entries.data(),
                means.data());
        EXPECT_NEAR(a, uv / vv, 1e-4);
        // of all that a was fitted to it changes little
        EXPECT_NEAR(
                cells.next_a(
                        i,
                        all.size(),
                        d,
                        x.data(),
                        nullptr,
                        all.data(),
                        means.data()),
                cells.a[i],
                0.02);
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
        ASSERT_TRUE(std::isfinite(index->cells.codes.error)) << scale;
        check_consistent(*index, *index, model_of(x));
        const Vectors q = rows_of(x, 0, 20);
        const Model model = model_of(x);
        for (auto order :
             {ProbeOrder::calibrated,
              ProbeOrder::codes,
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
