#include "faiss_ext/GpuGMMClustering.h"

#include <cmath>
#include <limits>

#include <faiss/IndexFlat.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/utils/distances.h>
#include <faiss/utils/random.h>

#include "Covariances.h"
#include "TestData.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {
namespace {

constexpr int kD = 128;

const Vectors& sift() {
    static const Vectors data = sift_base(6000);
    return data;
}

GpuGMMClustering quick(int k, int d = kD) {
    GpuGMMClustering clus(d, k);
    clus.niter = 5;
    clus.min_points_per_centroid = 1;
    return clus;
}

double mean_log_prob(const GpuGMMClustering& clus, size_t n, const float* x) {
    std::vector<double> out(n);
    clus.mixture().log_prob(n, x, out.data());
    double sum = 0;
    for (double v : out) {
        sum += v;
    }
    return sum / n;
}

/// Mean squared distance to the nearest centroid of an index.
double distortion(const faiss::Index& index, size_t n, const float* x) {
    std::vector<float> dis(n);
    std::vector<idx_t> labels(n);
    index.search(n, x, 1, dis.data(), labels.data());
    double sum = 0;
    for (float v : dis) {
        sum += v;
    }
    return sum / n;
}

/// Where there is no GPU, what is said of GPUs does not matter.
TEST(GpuGMMClustering, TrainsOnTheGpusThatItIsGiven) {
    GpuGMMClustering clus = quick(4);
    clus.cuda.devices = {1000};
    faiss::IndexFlatL2 index(kD);
    const auto train = [&] { clus.train(1000, sift().x.data(), index); };
    if (gmm::cuda_available()) {
        EXPECT_THROW(train(), faiss::FaissException);
        EXPECT_TRUE(clus.centroids.empty());
        EXPECT_EQ(index.ntotal, 0);
        clus.cuda.devices = {0};
        clus.cuda.precision = gmm::Precision::exact;
        train();
        EXPECT_EQ(clus.backend, "cuda");
    } else {
        train();
        EXPECT_EQ(clus.backend, "cpu");
    }
    EXPECT_EQ(index.ntotal, 4);
}

TEST(GpuGMMClustering, FitsEveryCovarianceKind) {
    for (auto covariance : kAll) {
        GpuGMMClustering clus = quick(40);
        clus.covariance = covariance;
        faiss::IndexFlatL2 index(kD);
        clus.train(sift().n, sift().x.data(), index);

        EXPECT_TRUE(clus.backend == "cpu" || clus.backend == "cuda");
        EXPECT_EQ(
                clus.variances.size(), gmm::num_variances(covariance, 40, kD));
        EXPECT_EQ(
                clus.precisions_cholesky.size(),
                gmm::num_factors(covariance, 40, kD));
        EXPECT_NO_THROW(clus.mixture().validate());
        ASSERT_EQ(index.ntotal, 40);
        EXPECT_TRUE(std::equal(
                clus.centroids.begin(), clus.centroids.end(), index.get_xb()));

        ASSERT_EQ(clus.iteration_stats.size(), 10u);
        const auto& last = clus.iteration_stats.back();
        EXPECT_GT(last.time, 0);
        EXPECT_LE(last.time_search, last.time);
        EXPECT_GE(last.imbalance_factor, 1);
        // The likelihood of the model after the last M-step is at least the
        // one that its E-step saw. Matrices gain little after the first, so
        // that it must be of the same vectors.
        const size_t n = gmm::has_matrices(covariance) ? sift().n : 2000;
        EXPECT_GT(
                mean_log_prob(clus, n, sift().x.data()),
                clus.iteration_stats[5].obj);
    }
}

TEST(GpuGMMClustering, MeansAreAsGoodAsKMeans) {
    faiss::Clustering kmeans(kD, 64);
    faiss::IndexFlatL2 kmeans_index(kD);
    kmeans.min_points_per_centroid = 1;
    kmeans.niter = 10;
    kmeans.train(sift().n, sift().x.data(), kmeans_index);
    GpuGMMClustering clus = quick(64);
    faiss::IndexFlatL2 index(kD);
    clus.train(sift().n, sift().x.data(), index);
    EXPECT_LT(
            distortion(index, sift().n, sift().x.data()),
            1.05 * distortion(kmeans_index, sift().n, sift().x.data()));
}

TEST(GpuGMMClustering, SameSeedSameBits) {
    GpuGMMClustering a = quick(30), b = quick(30), other = quick(30);
    other.seed = 99;
    faiss::IndexFlatL2 index(kD);
    a.train(sift().n, sift().x.data(), index);
    b.train(sift().n, sift().x.data(), index);
    other.train(sift().n, sift().x.data(), index);
    EXPECT_EQ(a.centroids, b.centroids);
    EXPECT_EQ(a.variances, b.variances);
    EXPECT_EQ(a.log_weights, b.log_weights);
    EXPECT_NE(a.centroids, other.centroids);
}

/// By distance where k-means ends the training, by likelihood where EM does.
TEST(GpuGMMClustering, NredoKeepsTheBest) {
    for (int last : {2, 0}) {
        const double sign = last > 0 ? -1 : 1;
        double best = -HUGE_VAL, worst = HUGE_VAL;
        faiss::IndexFlatL2 index(kD);
        GpuGMMClustering clus = quick(20);
        for (int redo = 0; redo < 3; redo++) {
            clus = quick(20);
            clus.last_hard_niter = last;
            clus.seed = 1234 + redo * 15486557;
            clus.train(4000, sift().x.data(), index);
            const double value = sign * clus.iteration_stats.back().obj;
            best = std::max(best, value);
            worst = std::min(worst, value);
        }
        clus = quick(20);
        clus.last_hard_niter = last;
        clus.nredo = 3;
        clus.train(4000, sift().x.data(), index);
        EXPECT_FLOAT_EQ(sign * clus.iteration_stats.back().obj, best);
        EXPECT_GT(best, worst);
    }
}

TEST(GpuGMMClustering, KMeansEndsTheTraining) {
    faiss::IndexFlatL2 index(kD);
    for (auto [niter, expected] :
         {std::pair(0, 0), {1, 0}, {2, 1}, {5, 2}, {9, 2}}) {
        GpuGMMClustering with = quick(10), without = quick(10);
        with.niter = niter;
        without.niter = niter - expected;
        without.last_hard_niter = 0;
        with.tolerance = without.tolerance = 0;
        with.train(2000, sift().x.data(), index);
        without.train(2000, sift().x.data(), index);
        EXPECT_EQ(with.iteration_stats.size(), size_t(5 + niter));
        EXPECT_EQ(without.iteration_stats.size() + expected, 5u + niter);
        for (int i = 0; i < expected; i++) {
            // a mean squared distance, not a likelihood
            EXPECT_GT(with.iteration_stats.rbegin()[i].obj, 0);
        }
        if (expected > 0) {
            EXPECT_LT(with.iteration_stats.rbegin()[expected].obj, 0);
        }
    }
    GpuGMMClustering clus = quick(10);
    clus.last_hard_niter = -1;
    EXPECT_FAISS_ERROR(
            clus.train(100, sift().x.data(), index), "last_hard_niter = -1");
}

TEST(GpuGMMClustering, SubsamplesAsFaissDoes) {
    GpuGMMClustering clus = quick(10);
    clus.max_points_per_centroid = 50;
    faiss::IndexFlatL2 index(kD);
    std::vector<float> weights(sift().n, 1);
    clus.train(sift().n, sift().x.data(), index, weights.data());

    // The vectors that were not drawn do not matter.
    Vectors copy = sift();
    std::vector<int> perm(copy.n);
    faiss::rand_perm(perm.data(), copy.n, clus.seed);
    for (size_t i = 500; i < copy.n; i++) {
        std::fill_n(copy.x.begin() + perm[i] * kD, kD, 7.0f);
        weights[perm[i]] = 100;
    }
    GpuGMMClustering again = quick(10);
    again.max_points_per_centroid = 50;
    again.train(copy.n, copy.x.data(), index, weights.data());
    EXPECT_EQ(clus.centroids, again.centroids);
}

TEST(GpuGMMClustering, WeightsCountAsCopies) {
    const size_t n = 1000;
    std::vector<float> weights(n, 1);
    std::vector<float> doubled(sift().x.begin(), sift().x.begin() + n * kD);
    for (size_t i = 0; i < n; i += 2) {
        weights[i] = 3;
        for (int copy = 0; copy < 2; copy++) {
            doubled.insert(doubled.end(), sift().row(i), sift().row(i) + kD);
        }
    }
    GpuGMMClustering a = quick(5), b = quick(5);
    a.centroids.assign(sift().x.begin(), sift().x.begin() + 5 * kD);
    b.centroids = a.centroids;
    b.max_points_per_centroid = a.max_points_per_centroid = 1000;
    faiss::IndexFlatL2 index(kD);
    a.train(n, sift().x.data(), index, weights.data());
    b.train(doubled.size() / kD, doubled.data(), index);
    for (size_t i = 0; i < a.centroids.size(); i++) {
        ASSERT_NEAR(a.centroids[i], b.centroids[i], 0.05);
    }
    for (size_t i = 0; i < 5; i++) {
        EXPECT_NEAR(a.log_weights[i], b.log_weights[i], 1e-3);
    }
}

/// What weighs nothing is not among those sampled.
TEST(GpuGMMClustering, SubsamplesWhatCounts) {
    const size_t n = sift().n;
    for (size_t counted : {40, 800}) {
        std::vector<float> weights(n, 0);
        std::vector<float> own;
        for (size_t i = 0; i < counted; i++) {
            const size_t row = i * (n / counted);
            weights[row] = 1;
            own.insert(own.end(), sift().row(row), sift().row(row) + kD);
        }
        GpuGMMClustering a = quick(4), b = quick(4);
        a.max_points_per_centroid = b.max_points_per_centroid = 64;
        faiss::IndexFlatL2 index(kD);
        const std::vector<float> ones(counted, 1);
        a.train(n, sift().x.data(), index, weights.data());
        b.train(counted, own.data(), index, ones.data());
        EXPECT_EQ(a.centroids, b.centroids) << counted;
    }
}

TEST(GpuGMMClustering, SphericalAndIntCentroids) {
    faiss::IndexFlatL2 index(kD);
    GpuGMMClustering spherical = quick(10);
    spherical.spherical = true;
    std::vector<float> unit(sift().x);
    faiss::fvec_renorm_L2(kD, sift().n, unit.data());
    spherical.train(sift().n, unit.data(), index);
    for (int i = 0; i < 10; i++) {
        EXPECT_NEAR(
                faiss::fvec_norm_L2sqr(spherical.centroids.data() + i * kD, kD),
                1,
                1e-5);
    }
    GpuGMMClustering rounded = quick(10);
    rounded.int_centroids = true;
    rounded.train(sift().n, sift().x.data(), index);
    for (float v : rounded.centroids) {
        ASSERT_EQ(v, std::round(v));
    }
}

TEST(GpuGMMClustering, FrozenCentroidsStay) {
    GpuGMMClustering clus = quick(16);
    clus.frozen_centroids = true;
    clus.centroids.assign(sift().x.begin(), sift().x.begin() + 16 * kD);
    const auto before = clus.centroids;
    faiss::IndexFlatL2 index(kD);
    clus.train(sift().n, sift().x.data(), index);
    EXPECT_EQ(clus.centroids, before);
    EXPECT_NO_THROW(clus.mixture().validate());
    EXPECT_GT(
            clus.iteration_stats.back().obj, clus.iteration_stats.front().obj);
}

TEST(GpuGMMClustering, StartsFromGivenCentroids) {
    GpuGMMClustering all = quick(16), some = quick(16), again = quick(16);
    all.centroids.assign(sift().x.begin(), sift().x.begin() + 16 * kD);
    some.centroids.assign(sift().x.begin(), sift().x.begin() + 3 * kD);
    again.centroids = all.centroids;
    again.seed = 77;
    faiss::IndexFlatL2 index(kD);
    all.train(4000, sift().x.data(), index);
    again.train(4000, sift().x.data(), index);
    EXPECT_EQ(all.centroids, again.centroids);
    some.train(4000, sift().x.data(), index);
    EXPECT_EQ(some.centroids.size(), 16u * kD);
}

TEST(GpuGMMClustering, AsManyVectorsAsComponents) {
    GpuGMMClustering clus = quick(50);
    faiss::IndexFlatL2 index(kD);
    clus.train(50, sift().x.data(), index);
    EXPECT_EQ(index.ntotal, 50);
    EXPECT_NO_THROW(clus.mixture().validate());
    EXPECT_LT(
            distortion(index, 50, sift().x.data()),
            0.5 * faiss::fvec_L2sqr(sift().row(0), sift().row(1), kD));
}

TEST(GpuGMMClustering, TrainsFromCodes) {
    const size_t n = 3000;
    faiss::IndexScalarQuantizer codec(
            kD, faiss::ScalarQuantizer::QT_8bit_direct);
    std::vector<uint8_t> codes(n * codec.sa_code_size());
    codec.sa_encode(n, sift().x.data(), codes.data());
    GpuGMMClustering a = quick(10), b = quick(10);
    a.decode_block_size = 100;
    faiss::IndexFlatL2 index(kD);
    a.train_encoded(n, codes.data(), &codec, index);
    b.train(n, sift().x.data(), index);
    EXPECT_EQ(a.centroids, b.centroids);
    // No codec: floats, as in FAISS.
    GpuGMMClustering c = quick(10);
    c.train_encoded(
            n,
            reinterpret_cast<const uint8_t*>(sift().x.data()),
            nullptr,
            index);
    EXPECT_EQ(c.centroids, b.centroids);
}

/// Everything that train may write.
void expect_unchanged(const GpuGMMClustering& clus) {
    EXPECT_TRUE(clus.centroids.empty());
    EXPECT_TRUE(clus.variances.empty());
    EXPECT_TRUE(clus.log_weights.empty());
    EXPECT_TRUE(clus.iteration_stats.empty());
    EXPECT_TRUE(clus.backend.empty());
}

TEST(GpuGMMClustering, BadInputIsNamedAndChangesNothing) {
    faiss::IndexFlatL2 index(kD);
    index.add(3, sift().x.data());
    const float* x = sift().x.data();
    GpuGMMClustering clus = quick(10);

    EXPECT_FAISS_ERROR(clus.train(0, x, index), "n = 0");
    EXPECT_FAISS_ERROR(clus.train(-5, x, index), "n = -5");
    EXPECT_FAISS_ERROR(clus.train(9, x, index), "k = 10");
    EXPECT_FAISS_ERROR(clus.train(500, nullptr, index), "x = nullptr");
    EXPECT_FAISS_ERROR(
            clus.train(idx_t(1) << 62, x, index), "n = 4611686018427387904");
    faiss::IndexFlatL2 narrow(64);
    EXPECT_FAISS_ERROR(clus.train(100, x, narrow), "dimension 64");

    for (float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF}) {
        std::vector<float> copy(x, x + 500 * kD);
        copy[321 * kD + 17] = bad;
        EXPECT_FAISS_ERROR(clus.train(500, copy.data(), index), "row 321");
        EXPECT_FAISS_ERROR(clus.train(500, copy.data(), index), "x: ");
    }
    std::vector<float> weights(500, 1);
    weights[3] = -2;
    EXPECT_FAISS_ERROR(
            clus.train(500, x, index, weights.data()), "x_weights: entry 3");
    weights.assign(500, 0);
    EXPECT_FAISS_ERROR(clus.train(500, x, index, weights.data()), "x_weights");
    weights[7] = weights[9] = 1;
    for (int most : {2, 256}) { // a subset is taken, or not
        clus.max_points_per_centroid = most;
        EXPECT_FAISS_ERROR(
                clus.train(500, x, index, weights.data()), "weights: 2 are");
    }
    faiss::IndexScalarQuantizer codec(
            64, faiss::ScalarQuantizer::QT_8bit_direct);
    EXPECT_FAISS_ERROR(
            clus.train_encoded(500, nullptr, &codec, index), "codec");
    faiss::IndexScalarQuantizer wide(
            kD, faiss::ScalarQuantizer::QT_8bit_direct);
    EXPECT_FAISS_ERROR(
            clus.train_encoded(500, nullptr, &wide, index), "x_in = nullptr");
    EXPECT_FAISS_ERROR(clus.mixture(), "not fitted");
    expect_unchanged(clus);

    for (auto change : std::initializer_list<
                 std::pair<void (*)(GpuGMMClustering&), const char*>>{
                 {[](auto& c) { c.niter = -1; }, "niter = -1"},
                 {[](auto& c) { c.hard_niter = -2; }, "hard_niter = -2"},
                 {[](auto& c) { c.nredo = 0; }, "nredo = 0"},
                 {[](auto& c) { c.variance_floor = 0; }, "variance_floor = 0"},
                 {[](auto& c) { c.tolerance = -1; }, "tolerance = -1"},
                 {[](auto& c) { c.max_points_per_centroid = 0; },
                  "max_points_per_centroid = 0"},
                 {[](auto& c) { c.frozen_centroids = true; },
                  "frozen_centroids"},
         }) {
        GpuGMMClustering wrong = quick(10);
        change.first(wrong);
        EXPECT_FAISS_ERROR(wrong.train(500, x, index), change.second);
        expect_unchanged(wrong);
    }
    GpuGMMClustering centroids = quick(10);
    centroids.centroids.resize(kD + 1);
    EXPECT_FAISS_ERROR(centroids.train(500, x, index), "centroids");
    centroids.centroids.assign(11 * kD, 1);
    EXPECT_FAISS_ERROR(centroids.train(500, x, index), "centroids");
    centroids.centroids.assign(10 * kD, NAN);
    EXPECT_FAISS_ERROR(centroids.train(500, x, index), "centroids: row 0");

    GpuGMMClustering none(kD, 0), negative(kD, -4), flat(0, 4);
    EXPECT_FAISS_ERROR(none.train(500, x, index), "k = 0");
    EXPECT_FAISS_ERROR(negative.train(500, x, index), "k = -4");
    EXPECT_FAISS_ERROR(flat.train(500, x, index), "d = 0");
    EXPECT_EQ(index.ntotal, 3);
}

TEST(CheckFinite, NamesTheFirstBadRow) {
    std::vector<float> x(3000 * 100, 1e38f);
    EXPECT_NO_THROW(check_finite("x", 3000, 100, x.data()));
    x[2999 * 100 + 1] = -HUGE_VALF;
    x[1700 * 100 + 99] = NAN;
    EXPECT_FAISS_ERROR(
            check_finite("queries", 3000, 100, x.data()),
            "queries: row 1700 has the value nan in dimension 99");
}

} // namespace
} // namespace faiss_ext
