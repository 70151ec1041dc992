// Cells and what is due for them as an index grows and changes.
#include "faiss_ext/IndexIVFGMM.h"

#include <numeric>
#include <random>
#include <set>

#include <faiss/IndexIVFFlat.h>

#include "IvfTestTools.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 16;

const Vectors& base() {
    static const Vectors data = sift_base(6000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(8);
    return data;
}

TEST(IndexIVFGMMCells, CellsFollowTheIndexAsItGrows) {
    auto index = trained(base(), kLists);
    EXPECT_TRUE(index->cells.empty());
    index->cells_per_list = 4;
    index->add(1000, base().row(0));
    EXPECT_EQ(index->cells.cells_per_list, 4u);
    index->cells_per_list = 0;
    index->add(500, base().row(1000));
    EXPECT_EQ(index->cells.cells_per_list, 4u);
    EXPECT_TRUE(index->maintenance_due());
    index->add(4500, base().row(1500)); // more than half of what there is then
    EXPECT_EQ(index->cells.cells_per_list, kLists - 1);
    EXPECT_FALSE(index->maintenance_due());
    check_consistent(*index, *index, model_of(base()));
}

/// About a dozen vectors each of 120 kinds that differ by a thousandth.
TEST(IndexIVFGMMCells, NearDuplicatesAreSharedAmongMoreListsThanKinds) {
    const size_t d = 32, n = 1537, kinds = 120, nlist = 472;
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;
    std::vector<float> kind(kinds * d);
    for (float& v : kind) {
        v = normal(rng);
    }
    Vectors x{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const float* its = &kind[rng() % kinds * d];
        for (size_t j = 0; j < d; j++) {
            x.x[i * d + j] = its[j] + 1e-3f * normal(rng);
        }
    }
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        IndexIVFFlatGMM index(d, nlist, metric);
        index.calibrate_on_add = false;
        index.train(n, x.row(0));
        index.add(n, x.row(0));
        size_t empty = 0;
        std::set<std::vector<float>> means;
        const std::vector<float> all = index.mixture().means;
        for (size_t i = 0; i < nlist; i++) {
            empty += index.invlists->list_size(i) == 0;
            means.emplace(&all[i * d], &all[i * d] + d);
        }
        EXPECT_LE(empty, nlist / 50) << "metric " << metric;
        EXPECT_EQ(means.size(), nlist) << "metric " << metric;
    }
}

TEST(IndexIVFGMMCells, OneAddAndManyGiveTheSameResults) {
    auto at_once = filled(base(), kLists);
    auto by_pieces = trained(base(), kLists);
    for (size_t i = 0; i < base().n; i += 100) {
        by_pieces->add(100, base().row(i));
    }
    by_pieces->optimize(); // the cells of what it holds in the end
    at_once->nprobe = by_pieces->nprobe = 3;
    at_once->probe_order = by_pieces->probe_order = ProbeOrder::codes;
    const Vectors x = sift_queries(100);
    const Found a = find(*at_once, x, 10), b = find(*by_pieces, x, 10);
    EXPECT_EQ(a.dis, b.dis);
}

TEST(IndexIVFGMMCells, AVectorAddedLaterLiesInTheCellOfItsNearestMean) {
    auto index = filled(rows_of(base(), 0, 4000), kLists);
    for (size_t i = 4000; i < 4300; i++) {
        index->add(1, base().row(i));
    }
    check_consistent(*index, *index, model_of(rows_of(base(), 0, 4300)));
    const PairCells& cells = index->cells;
    const std::vector<float> means = index->mixture().means;
    size_t nearest = 0, n = 0;
    for (const auto& [id, at] : entries_by_id(*index)) {
        if (id < 4000) {
            continue;
        }
        uint16_t cell;
        cells.assign(
                at[0].list,
                1,
                base().d,
                base().row(id),
                nullptr,
                means.data(),
                &cell);
        const auto [begin, end] = cells.range(at[0].list, cell);
        nearest += at[0].offset >= begin && at[0].offset < end;
        n++;
    }
    EXPECT_EQ(n, 300u);
    EXPECT_GE(nearest, 297u); // ties, by rounding
}

/// Sixty percent are one vector.
TEST(IndexIVFGMMCells, EqualVectorsLeaveNoListEmpty) {
    constexpr size_t n = 6400;
    RealData data = sift(n, 16);
    Vectors x{n, data.d, std::move(data.x)};
    for (size_t i = 0; i < n; i++) {
        if (i * 7919 % 10 < 6) {
            std::copy_n(x.x.begin(), x.d, x.x.begin() + i * x.d);
        }
    }
    for (auto covariance :
         {gmm::Covariance::isotropic,
          gmm::Covariance::diagonal,
          gmm::Covariance::tied_spherical}) {
        IndexIVFFlatGMM index(x.d, 64);
        index.calibrate_on_add = false;
        index.covariance = covariance;
        index.train(n, x.x.data());
        index.add(n, x.x.data());
        std::set<std::vector<float>> means;
        for (size_t i = 0; i < index.nlist; i++) {
            EXPECT_GT(index.get_list_size(i), 0u) << to_string(covariance);
            std::vector<float> mean(x.d);
            index.quantizer->reconstruct(i, mean.data());
            means.insert(mean);
        }
        EXPECT_EQ(means.size(), index.nlist) << to_string(covariance);
    }
}

TEST(IndexIVFGMMCells, TheUsersOwnCentroidsAreKept) {
    IndexIVFFlatGMM index(base().d, kLists);
    index.quantizer->add(kLists, base().x.data());
    index.train(base().n, base().x.data());
    const gmm::GaussianMixture mixture = index.mixture();
    EXPECT_EQ(
            mixture.means,
            std::vector<float>(base().row(0), base().row(kLists)));
    EXPECT_NE(mixture.variances[0], mixture.variances[1]); // these are fitted
    // Means of an earlier training are not the user's.
    index.train(base().n, base().x.data());
    EXPECT_NE(index.mixture().means, mixture.means);
}

TEST(IndexIVFGMMCells, SmallAdditionsLeaveMaintenanceDue) {
    auto index = trained(base(), kLists);
    index->calibrate_on_add = true;
    index->target_recall = 0.9f;
    EXPECT_FALSE(index->maintenance_due());
    for (size_t i = 0; i < 1500; i += 10) {
        index->add(10, base().row(i));
    }
    EXPECT_FALSE(index->calibration.fitted);
    EXPECT_TRUE(index->maintenance_due());
    // what was never calibrated is searched through
    const Model model = model_of(rows_of(base(), 0, 1500));
    expect_exact(
            find(*index, queries(), 10),
            exact(model, queries(), 10, faiss::METRIC_L2),
            model,
            queries(),
            faiss::METRIC_L2);
    index->maintain();
    EXPECT_TRUE(index->calibration.fitted);
    EXPECT_FALSE(index->maintenance_due());
    index->add(400, base().row(1500));
    EXPECT_FALSE(index->maintenance_due());
    index->add(200, base().row(1900)); // 1.3 times 1,500 and more
    EXPECT_EQ(index->calibration.ntotal, 1500);
    EXPECT_TRUE(index->maintenance_due());
    index->maintain();
    EXPECT_EQ(index->calibration.ntotal, 2100);
    check_consistent(*index, *index, model_of(rows_of(base(), 0, 2100)));
}

TEST(IndexIVFGMMCells, ReplacedVectorsMakeMaintenanceDue) {
    auto index = trained(base(), kLists);
    index->calibrate_on_add = true;
    index->add(2000, base().row(0));
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    EXPECT_FALSE(index->maintenance_due());
    const auto replace = [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) { // as many as before
            const idx_t gone = i, come = 2000 + i;
            index->add_with_ids(1, base().row((i + 2000) % base().n), &come);
            index->remove_ids(faiss::IDSelectorArray(1, &gone));
        }
    };
    replace(0, 400);
    EXPECT_FALSE(index->maintenance_due());
    replace(400, 500); // 1,500 of those that it was calibrated for
    EXPECT_TRUE(index->maintenance_due());
    // a file keeps the count
    EXPECT_TRUE(extract_gmm(clone_index(index.get()).get())->maintenance_due());
    index->maintain();
    EXPECT_FALSE(index->maintenance_due());

    std::vector<idx_t> ids(500);
    std::iota(ids.begin(), ids.end(), 500);
    index->update_vectors(400, ids.data(), base().row(500));
    EXPECT_FALSE(index->maintenance_due());
    index->update_vectors(100, ids.data() + 400, base().row(900));
    EXPECT_TRUE(index->maintenance_due());
    index->maintain();

    // what only goes changes nothing for what stays
    index->remove_ids(faiss::IDSelectorRange(500, 1400));
    EXPECT_FALSE(index->maintenance_due());
}

TEST(IndexIVFGMMCells, CellsAreFittedAsAListGrows) {
    auto by_one = trained(base(), kLists);
    for (size_t i = 0; i < 3000; i++) {
        by_one->add(1, base().row(i));
    }
    for (size_t i = 0; i < kLists; i++) {
        const size_t size = by_one->cells.list_size(i);
        EXPECT_LT(size, std::max<size_t>(16, 2 * by_one->cells.fitted_size[i]));
    }
    check_consistent(*by_one, *by_one, model_of(rows_of(base(), 0, 3000)));
}

TEST(IndexIVFGMMCells, CellsMoveWhereAListHasChangedAndNotWhereItGrows) {
    constexpr size_t kGrowing = 3; // lists: not half of the index
    auto index = trained(base(), kLists);
    index->calibrate_on_add = false;
    index->add(base().n, base().row(0));
    const MeansView means(*index);
    const size_t d = base().d, L = index->cells.cells_per_list;
    // Doubles them by what lies a share of the way to partners; how many a
    // changed?
    const auto grow = [&](const std::vector<float>& shares) {
        std::vector<float> x;
        for (size_t i = 0; i < kGrowing; i++) {
            for (size_t r = 0; r <= index->cells.fitted_size[i]; r++) {
                const float* own = means.data() + i * d;
                const float* other =
                        means.data() + index->cells.partners(i)[r % L] * d;
                for (size_t j = 0; j < d; j++) {
                    x.push_back(own[j] + shares[i] * (other[j] - own[j]));
                }
            }
        }
        const std::vector<float> before = index->cells.a;
        index->add(x.size() / d, x.data());
        size_t changed = 0;
        for (size_t i = 0; i < kGrowing; i++) {
            EXPECT_EQ(index->cells.fitted_size[i], index->cells.list_size(i));
            changed += index->cells.a[i] != before[i];
        }
        return changed;
    };
    EXPECT_EQ(grow(std::vector<float>(kGrowing, 0.05f)), kGrowing);
    EXPECT_EQ(grow(index->cells.a), 0u);
    check_cells(*index, index->cells, true);
}

TEST(IndexIVFGMMCells, CellsThatWereAlikeMoveApart) {
    auto index = trained(base(), kLists);
    index->calibrate_on_add = false;
    const std::vector<float> means = index->mixture().means;
    const size_t d = base().d;
    std::vector<float> x;
    for (size_t r = 0; r < 40; r++) {
        x.insert(x.end(), means.begin(), means.end());
    }
    index->add(x.size() / d, x.data());
    ASSERT_EQ(index->cells.a[0], 0);
    // all of them are in the first cell; what comes lies away from its partner
    const size_t L = index->cells.cells_per_list;
    ASSERT_EQ(index->cells.range(0, 0).second, 40u);
    const auto toward = [&](size_t l, size_t j) {
        return means[index->cells.partners(0)[l] * d + j] - means[j];
    };
    size_t farthest = 0;
    double least = 0;
    for (size_t l = 1; l < L; l++) {
        double product = 0;
        for (size_t j = 0; j < d; j++) {
            product += toward(l, j) * toward(0, j);
        }
        if (product < least) {
            least = product;
            farthest = l;
        }
    }
    ASSERT_LT(least, 0);
    x.clear();
    for (size_t r = 0; r < 200; r++) {
        for (size_t j = 0; j < d; j++) {
            x.push_back(means[j] + 0.4f * toward(farthest, j));
        }
    }
    index->add(200, x.data());
    EXPECT_GT(index->cells.a[0], 0.2f);
    check_cells(*index, index->cells, true);
}

TEST(IndexIVFGMMCells, AShardMergedIntoAnEmptyIndexGetsCells) {
    const size_t half = base().n / 2;
    auto all = trained(base(), kLists);
    all->calibrate_on_add = true;
    for (size_t part : {0, 1}) {
        auto shard = trained(base(), kLists);
        shard->add(half, base().row(part * half));
        all->merge_from(*shard, part * half);
        EXPECT_EQ(shard->ntotal, 0);
    }
    EXPECT_FALSE(all->cells.empty());
    EXPECT_TRUE(all->calibration.fitted);
    check_consistent(*all, *all, model_of(base()));
    // as if all had been added
    auto added = filled(base(), kLists);
    all->optimize();
    added->optimize();
    all->nprobe = added->nprobe = 2;
    all->probe_order = added->probe_order = ProbeOrder::codes;
    EXPECT_EQ(
            find(*all, sift_queries(100), 10).dis,
            find(*added, sift_queries(100), 10).dis);
}

TEST(IndexIVFGMMCells, ACopiedSubsetGetsCells) {
    const auto index = filled(base(), kLists);
    auto other = trained(base(), kLists);
    other->calibrate_on_add = true;
    index->copy_subset_to(*other, subset_type_t(0), 1000, 5000);
    EXPECT_FALSE(other->cells.empty());
    EXPECT_TRUE(other->calibration.fitted);
    const Model model = model_of(rows_of(base(), 1000, 5000), 1000);
    check_consistent(*other, *other, model);
    expect_model(*other, model, queries());
    check_consistent(*index, *index, model_of(base()));
    // a stock index takes it too
    faiss::IndexIVFFlat stock(index->quantizer, base().d, kLists);
    index->copy_subset_to(stock, subset_type_t(0), 1000, 5000);
    expect_model(stock, model, queries());
}

/// FAISS counts some ranges of elements as other than what it copies.
TEST(IndexIVFGMMCells, CopiedRangesOfElementsAreCounted) {
    auto index = trained(base(), kLists);
    index->add(16, base().row(0));
    for (idx_t begin = 0; begin < 16; begin += 3) {
        for (idx_t end = begin; end <= 16; end++) {
            auto other = trained(base(), kLists);
            faiss::IndexIVFFlat stock(index->quantizer, base().d, kLists);
            index->copy_subset_to(*other, subset_type_t(2), begin, end);
            index->copy_subset_to(stock, subset_type_t(2), begin, end);
            EXPECT_EQ(size_t(other->ntotal), other->invlists->compute_ntotal());
            EXPECT_EQ(size_t(stock.ntotal), stock.invlists->compute_ntotal());
            EXPECT_NO_THROW(clone_index(other.get()));
        }
    }
}

TEST(IndexIVFGMMCells, CodesAddedBehindItsBackAreNotLost) {
    auto index = trained(base(), 8), other = trained(base(), 8);
    index->cells_per_list = 4;
    index->add(2000, base().row(0));
    auto add_codes = [&](size_t begin, size_t n) {
        std::vector<uint8_t> codes(n * index->sa_code_size());
        index->sa_encode(n, base().row(begin), codes.data());
        index->add_sa_codes(n, codes.data(), nullptr);
    };
    add_codes(2000, 300);
    expect_model(*index, model_of(rows_of(base(), 0, 2300)), queries());
    other->add(100, base().row(2300));
    index->merge_from(*other, 2300);
    check_consistent(*index, *index, model_of(rows_of(base(), 0, 2400)));
    add_codes(2400, 300);
    index->add(800, base().row(2700));
    check_consistent(*index, *index, model_of(rows_of(base(), 0, 3500)));
    add_codes(3500, 100);
    index->remove_ids(faiss::IDSelectorRange(0, 1000));
    const Model model = model_of(rows_of(base(), 1000, 3600), 1000);
    check_consistent(*index, *index, model);
    expect_model(*index, model, queries());
}

} // namespace
} // namespace faiss_ext
