#include "faiss_ext/IndexGMM.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_io.h>
#include <faiss/utils/distances.h>

#include "Covariances.h"
#include "TestData.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr int kD = 128;
constexpr int kLists = 64;
constexpr int kNeighbors = 10;

const Vectors& base() {
    static const Vectors data = sift_base(10000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(200);
    return data;
}

std::unique_ptr<IndexGMM> trained(
        gmm::Covariance covariance = gmm::Covariance::isotropic,
        faiss::MetricType metric = faiss::METRIC_L2) {
    auto index = std::make_unique<IndexGMM>(kD, kLists, covariance, metric);
    index->cp.niter = 5;
    index->train(base().n, base().x.data());
    return index;
}

struct Result {
    std::vector<float> dis;
    std::vector<idx_t> ids;
};

Result search(
        const faiss::Index& index,
        const Vectors& x,
        size_t k,
        const faiss::SearchParameters* params = nullptr) {
    Result out{std::vector<float>(x.n * k), std::vector<idx_t>(x.n * k)};
    index.search(x.n, x.x.data(), k, out.dis.data(), out.ids.data(), params);
    return out;
}

const Result& truth(faiss::MetricType metric) {
    static const Result l2 = [] {
        faiss::IndexFlat flat(kD);
        flat.add(base().n, base().x.data());
        return search(flat, queries(), kNeighbors);
    }();
    static const Result ip = [] {
        faiss::IndexFlat flat(kD, faiss::METRIC_INNER_PRODUCT);
        flat.add(base().n, base().x.data());
        return search(flat, queries(), kNeighbors);
    }();
    return metric == faiss::METRIC_L2 ? l2 : ip;
}

double recall(const faiss::Index& index) {
    const Result found = search(index, queries(), kNeighbors);
    const Result& expected = truth(index.metric_type);
    size_t hits = 0;
    for (size_t i = 0; i < queries().n; i++) {
        const auto* begin = expected.ids.data() + i * kNeighbors;
        for (int j = 0; j < kNeighbors; j++) {
            hits += std::count(
                    begin, begin + kNeighbors, found.ids[i * kNeighbors + j]);
        }
    }
    return double(hits) / (queries().n * kNeighbors);
}

TEST(IndexGMM, DistanceOrderIsThatOfAFlatIndex) {
    const auto index = trained();
    faiss::IndexFlatL2 flat(kD);
    flat.add(kLists, index->get_xb());
    const Result a = search(*index, queries(), 10);
    const Result b = search(flat, queries(), 10);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.dis, b.dis);
}

TEST(IndexGMM, LikelihoodOrderIsThatOfTheReference) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        for (auto covariance : kAll) {
            const auto index = trained(covariance, metric);
            index->policy.order = ProbeOrder::log_likelihood;
            const Result found = search(*index, queries(), kLists);
            Vectors x = queries();
            if (metric == faiss::METRIC_INNER_PRODUCT) {
                faiss::fvec_renorm_L2(kD, x.n, x.x.data());
            }
            std::vector<double> expected(x.n * kLists);
            index->mixture().log_joint(x.n, x.x.data(), expected.data());
            for (size_t i = 0; i < x.n; i++) {
                const double* row = expected.data() + i * kLists;
                for (int j = 1; j < kLists; j++) {
                    const idx_t* keys = found.ids.data() + i * kLists;
                    // Single precision may swap what differs by less.
                    const double best = *std::max_element(row, row + kLists);
                    const double slack =
                            1e-4 * std::abs(best - row[keys[j]]) + 0.05;
                    ASSERT_GE(row[keys[j - 1]] + slack, row[keys[j]]);
                }
            }
        }
    }
}

TEST(IndexGMM, DistancesAreThoseToTheMeans) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const auto index = trained(gmm::Covariance::isotropic, metric);
        for (auto order :
             {ProbeOrder::distance,
              ProbeOrder::scale_free,
              ProbeOrder::log_likelihood}) {
            index->policy.order = order;
            const Result found = search(*index, queries(), 8);
            for (size_t i = 0; i < found.ids.size(); i++) {
                const float* q = queries().row(i / 8);
                const float* mean = index->get_xb() + found.ids[i] * kD;
                const float expected = metric == faiss::METRIC_L2
                        ? faiss::fvec_L2sqr(q, mean, kD)
                        : faiss::fvec_inner_product(q, mean, kD);
                ASSERT_NEAR(found.dis[i], expected, 2e-5 * 512 * 512);
            }
        }
    }
}

TEST(IndexGMM, MassStopsHardQueriesLater) {
    const auto index = trained();
    index->policy.order = ProbeOrder::scale_free;
    EXPECT_GT(index->policy.exponent, 0.5f);
    EXPECT_LT(index->policy.exponent, 16);
    size_t previous = 0;
    for (float mass : {0.3f, 0.6f, 0.9f, 1.0f}) {
        index->policy.probe_mass = mass;
        const Result found = search(*index, queries(), kLists);
        const size_t lists = found.ids.size() -
                std::count(found.ids.begin(), found.ids.end(), -1);
        EXPECT_GT(lists, previous);
        previous = lists;
    }
    EXPECT_EQ(previous, queries().n * kLists);
}

TEST(IndexGMM, BatchesAndSingleQueriesAgree) {
    const auto index = trained(gmm::Covariance::diagonal);
    for (auto order : {ProbeOrder::scale_free, ProbeOrder::log_likelihood}) {
        index->policy = {order, 0.9f, 2};
        const Result all = search(*index, queries(), 4);
        size_t same = 0;
        for (size_t i = 0; i < queries().n; i++) {
            std::vector<float> dis(4);
            std::vector<idx_t> ids(4);
            index->search(1, queries().row(i), 4, dis.data(), ids.data());
            same += std::equal(ids.begin(), ids.end(), all.ids.begin() + i * 4);
        }
        EXPECT_GE(same, queries().n - 1);
    }
}

/// In batches |x - mu|^2 comes from products, which lose what is small beside
/// the means' distances: of one mean far away, of groups of means.
TEST(IndexGMM, BatchesAndSingleQueriesAgreeAboutMeansFarApart) {
    constexpr size_t d = 8, k = 16, n = 200;
    for (size_t groups : {1, 4}) {
        std::mt19937_64 random(1);
        std::normal_distribution<float> normal;
        gmm::GaussianMixture m;
        m.d = d;
        m.k = k;
        for (size_t i = 0; i < k * d; i++) {
            const size_t c = i / d;
            m.means.push_back(
                    3 * normal(random) + 1e4f * float(c % groups) +
                    (c == 0 && groups == 1 ? 1e4f : 0));
        }
        m.variances.assign(k, 1);
        m.log_weights.assign(k, -std::log(float(k)));
        IndexGMM index(d, k);
        index.set_mixture(m);
        index.policy.order = ProbeOrder::log_likelihood;
        std::vector<float> x(n * d), dis(n * 3), one(3);
        std::vector<idx_t> ids(n * 3), single(3);
        for (size_t i = 0; i < n * d; i++) {
            const size_t c = 1 + i / d % (k - 1);
            x[i] = m.means[c * d + i % d] + normal(random);
        }
        index.search(n, x.data(), 3, dis.data(), ids.data());
        size_t differ = 0;
        for (size_t i = 0; i < n; i++) {
            index.search(1, &x[i * d], 3, one.data(), single.data());
            differ += ids[i * 3] != single[0];
            EXPECT_NEAR(dis[i * 3], one[0], 1e-2f * (1 + one[0])) << groups;
        }
        EXPECT_LE(differ, 1u) << groups;
    }
}

/// 2 - 2 <x, mean> has few digits of a small distance.
TEST(IndexGMM, LikelihoodsOfInnerProductsAboutMeansThatAreNear) {
    constexpr size_t d = 32, k = 16, n = 100;
    constexpr float apart = 2e-4f, spread = 1e-3f; // in all dimensions
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(float(d)));
    const auto near = [&](const float* centre, float by, float* out) {
        for (size_t j = 0; j < d; j++) {
            out[j] = (centre ? centre[j] : 0) + by * normal(random);
        }
        faiss::fvec_renorm_L2(d, 1, out);
    };
    gmm::GaussianMixture m;
    m.d = d;
    m.k = k;
    m.means.resize(k * d);
    std::vector<float> middle(d), x(n * d), dis(n);
    near(nullptr, 1, middle.data());
    for (size_t c = 0; c < k; c++) {
        near(middle.data(), apart, &m.means[c * d]);
    }
    m.variances.assign(k, spread * spread / d);
    m.log_weights.assign(k, -std::log(float(k)));
    for (size_t i = 0; i < n; i++) {
        near(&m.means[i % k * d], spread, &x[i * d]);
    }
    IndexGMM index(
            d, k, gmm::Covariance::isotropic, faiss::METRIC_INNER_PRODUCT);
    index.set_mixture(m);
    index.policy.order = ProbeOrder::log_likelihood;
    std::vector<idx_t> ids(n);
    index.search(n, x.data(), 1, dis.data(), ids.data());
    std::vector<double> expected(n * k);
    index.mixture().log_joint(n, x.data(), expected.data());
    for (size_t i = 0; i < n; i++) {
        const double* row = &expected[i * k];
        EXPECT_GT(row[ids[i]], *std::max_element(row, row + k) - 0.05) << i;
    }
}

TEST(IndexGMM, ExponentDoesNotDependOnTheOrigin) {
    std::vector<double> exponents;
    for (float offset : {0.0f, 32768.0f}) {
        Vectors x = read_test_data("sift_sample_base.u8bin", 3000);
        for (float& v : x.x) {
            v = v / 64 + offset; // exact
        }
        IndexGMM index(kD, 16);
        index.cp.niter = 5;
        index.train(x.n, x.x.data());
        exponents.push_back(index.policy.exponent);
    }
    EXPECT_NEAR(exponents[1], exponents[0], 0.05 * exponents[0]);
}

/// The same index over k-means and over a mixture.
void expect_sane_recall(
        std::unique_ptr<faiss::IndexIVF> (*make)(faiss::Index*), double least) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        auto kmeans = make(new faiss::IndexFlat(kD, metric));
        auto* quantizer =
                new IndexGMM(kD, kLists, gmm::Covariance::isotropic, metric);
        quantizer->cp.niter = 5;
        auto mixture = make(quantizer);
        mixture->quantizer_trains_alone = 1;
        for (auto* index : {kmeans.get(), mixture.get()}) {
            index->own_fields = true;
            index->nprobe = 8;
            train_quickly(index);
            index->train(base().n, base().x.data());
            index->add(base().n, base().x.data());
        }
        const double expected = recall(*kmeans);
        EXPECT_GT(expected, least);
        EXPECT_GT(recall(*mixture), expected - 0.03);
        EXPECT_EQ(mixture->ntotal, idx_t(base().n));

        // Stopping by mass: fewer lists than asked for, and most neighbours.
        quantizer->policy.order = ProbeOrder::scale_free;
        quantizer->policy.probe_mass = 0.9f;
        mixture->nprobe = kLists;
        EXPECT_GT(recall(*mixture), expected - 0.2);
        // The textbook order searches, too.
        quantizer->policy = {ProbeOrder::log_likelihood};
        mixture->nprobe = 8;
        EXPECT_GT(recall(*mixture), 0.3);
    }
}

TEST(IndexGMM, UnderIVFFlat) {
    expect_sane_recall(
            [](faiss::Index* q) -> std::unique_ptr<faiss::IndexIVF> {
                return std::make_unique<faiss::IndexIVFFlat>(
                        q, kD, kLists, q->metric_type);
            },
            0.8);
}

TEST(IndexGMM, UnderIVFPQ) {
    expect_sane_recall(
            [](faiss::Index* q) -> std::unique_ptr<faiss::IndexIVF> {
                auto index = std::make_unique<faiss::IndexIVFPQ>(
                        q, kD, kLists, 32, 6, q->metric_type);
                return index;
            },
            0.5);
}

TEST(IndexGMM, UnderIVFScalarQuantizer) {
    expect_sane_recall(
            [](faiss::Index* q) -> std::unique_ptr<faiss::IndexIVF> {
                return std::make_unique<faiss::IndexIVFScalarQuantizer>(
                        q,
                        kD,
                        kLists,
                        faiss::ScalarQuantizer::QT_8bit,
                        q->metric_type);
            },
            0.8);
}

TEST(IndexGMM, UnderIVFPQFastScan) {
    expect_sane_recall(
            [](faiss::Index* q) -> std::unique_ptr<faiss::IndexIVF> {
                auto index = std::make_unique<faiss::IndexIVFPQFastScan>(
                        q, kD, kLists, 32, 4, q->metric_type);
                return index;
            },
            0.4);
}

/// FAISS asks the quantizer in a parallel region, which no exception may leave.
TEST(IndexGMM, WrongUnderIVFPQFastScanFindsNothing) {
    const Vectors base = sift_base(2000), queries = sift_queries(64);
    IndexGMM quantizer(kD, kLists);
    faiss::IndexIVFPQFastScan index(&quantizer, kD, kLists, 32, 4);
    index.quantizer_trains_alone = 1;
    index.train(base.n, base.x.data());
    index.add(base.n, base.x.data());
    std::vector<float> dis(queries.n);
    std::vector<idx_t> labels(queries.n);
    quantizer.policy.probe_mass = 3;
    try {
        index.search(queries.n, queries.x.data(), 1, dis.data(), labels.data());
        for (idx_t label : labels) {
            EXPECT_EQ(label, -1);
        }
    } catch (const faiss::FaissException& e) {
        EXPECT_NE(std::string(e.what()).find("probe_mass"), std::string::npos);
    }
    quantizer.policy.probe_mass = 1;
    index.search(queries.n, queries.x.data(), 1, dis.data(), labels.data());
    EXPECT_NE(std::count(labels.begin(), labels.end(), -1), idx_t(queries.n));
}

TEST(IndexGMM, TakesAFittedMixture) {
    const auto index = trained();
    IndexGMM other(kD, kLists);
    other.set_mixture(index->mixture());
    EXPECT_TRUE(other.is_trained);
    EXPECT_EQ(
            search(*index, queries(), 5).ids, search(other, queries(), 5).ids);
    IndexGMM small(kD, 7);
    EXPECT_FAISS_ERROR(small.set_mixture(index->mixture()), "nlist = 7");
    auto broken = index->mixture();
    broken.variances[5] = -1;
    EXPECT_FAISS_ERROR(other.set_mixture(broken), "variances");
    EXPECT_EQ(other.variances, index->variances);
    other.reset();
    EXPECT_FALSE(other.is_trained);
    EXPECT_EQ(other.ntotal, 0);
}

TEST(IndexGMM, MeansAreUnitVectorsForInnerProduct) {
    const auto index =
            trained(gmm::Covariance::isotropic, faiss::METRIC_INNER_PRODUCT);
    for (int i = 0; i < kLists; i++) {
        EXPECT_NEAR(
                faiss::fvec_norm_L2sqr(index->get_xb() + i * kD, kD), 1, 1e-5);
    }
}

TEST(IndexGMM, NaNQueriesGetNoLists) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const auto index = trained(gmm::Covariance::isotropic, metric);
        Vectors x = queries();
        x.x[3 * kD + 5] = NAN;
        for (auto order :
             {ProbeOrder::distance,
              ProbeOrder::scale_free,
              ProbeOrder::log_likelihood}) {
            index->policy.order = order;
            for (size_t k : {1, 4}) {
                const Result found = search(*index, x, k);
                for (size_t i = 0; i < found.ids.size(); i++) {
                    ASSERT_EQ(found.ids[i] < 0, i / k == 3);
                }
            }
        }
    }
}

/// An IVF index that lacks quantizer_trains_alone has faiss::Clustering fit a
/// mixture to its centroids, which must not pass for one of the vectors.
TEST(IndexGMM, NothingIsLeftOfACentroidsMixture) {
    IndexGMM means(kD, kLists);
    faiss::IndexIVFFlat ivf(&means, kD, kLists);
    EXPECT_FAISS_ERROR(
            ivf.train(base().n, base().x.data()), "quantizer_trains_alone");
    EXPECT_FALSE(means.is_trained);
    ivf.quantizer_trains_alone = 1;
    ivf.train(base().n, base().x.data());
    IndexGMM fresh(kD, kLists);
    fresh.train(base().n, base().x.data());
    EXPECT_EQ(means.mixture().means, fresh.mixture().means);
    // what is set stays
    IndexGMM set(kD, kLists);
    set.train(kLists, base().x.data());
    set.set_mixture(fresh.mixture());
    EXPECT_FAISS_ERROR(set.add(1, base().x.data()), "components come from");
    EXPECT_EQ(set.mixture().means, fresh.mixture().means);
}

TEST(IndexGMM, BadInputIsNamedAndChangesNothing) {
    EXPECT_FAISS_ERROR(IndexGMM(0, 5), "d = 0");
    EXPECT_FAISS_ERROR(IndexGMM(5, 0), "nlist = 0");
    EXPECT_FAISS_ERROR(
            IndexGMM(5, 5, gmm::Covariance::isotropic, faiss::METRIC_Linf),
            "metric");
    IndexGMM untrained(kD, kLists);
    EXPECT_FAISS_ERROR(search(untrained, queries(), 5), "not trained");
    EXPECT_FAISS_ERROR(untrained.mixture(), "not trained");
    EXPECT_FAISS_ERROR(untrained.train(0, base().x.data()), "n = 0");
    EXPECT_FAISS_ERROR(untrained.train(10, base().x.data()), "k = 64");
    EXPECT_FALSE(untrained.is_trained);

    const auto index = trained();
    const auto before = search(*index, queries(), 5);
    Vectors bad = base();
    bad.x[77 * kD] = NAN;
    EXPECT_FAISS_ERROR(index->train(bad.n, bad.x.data()), "row 77");
    EXPECT_FAISS_ERROR(
            index->add(1, base().x.data()), "quantizer_trains_alone");
    EXPECT_FAISS_ERROR(
            index->remove_ids(faiss::IDSelectorRange(0, 1)), "removed");
    EXPECT_FAISS_ERROR(index->merge_from(untrained), "merged");
    EXPECT_FAISS_ERROR(search(*index, queries(), 0), "k = 0");
    faiss::IDSelectorRange range(0, 3);
    faiss::SearchParameters params;
    params.sel = &range;
    EXPECT_FAISS_ERROR(search(*index, queries(), 5, &params), "sel");
    index->policy.probe_mass = 0;
    EXPECT_FAISS_ERROR(search(*index, queries(), 5), "probe_mass = 0");
    index->policy.probe_mass = 1;
    EXPECT_EQ(search(*index, queries(), 5).ids, before.ids);

    index->covariance = gmm::Covariance::diagonal; // and not its variances
    EXPECT_EQ(search(*index, queries(), 5).ids, before.ids);
    index->policy.order = ProbeOrder::log_likelihood;
    EXPECT_FAISS_ERROR(search(*index, queries(), 5), "variances: 64 values");
    index->covariance = gmm::Covariance::isotropic;
    index->log_weights.pop_back();
    EXPECT_FAISS_ERROR(search(*index, queries(), 5), "log_weights: 63 values");

    // An IVF index that would run k-means over it says what to do instead.
    faiss::IndexIVFFlat ivf(&untrained, kD, kLists);
    EXPECT_FAISS_ERROR(
            ivf.train(base().n, base().x.data()), "quantizer_trains_alone");
}

} // namespace
} // namespace faiss_ext
