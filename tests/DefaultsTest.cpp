// Settings that nobody has made are never behind the IVF index that would have
// stood there: an IVF,Flat of the same means at the same nprobe, on queries and
// vectors of many kinds.
#include <climits>
#include <cmath>
#include <string>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/impl/AuxIndexStructures.h>

#include "IvfTestTools.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

constexpr size_t kQueries = 100;
constexpr size_t kNprobes[] = {1, 4, 16};
constexpr double kNoise = 0.002;

struct Situation {
    std::string name;
    Vectors base, queries;
    faiss::MetricType metric = faiss::METRIC_L2;
    size_t nlist = 64;
};

/// An index as it comes, and a stock one with the same means and vectors.
struct Pair {
    std::unique_ptr<IndexIVFFlatGMM> gmm;
    std::unique_ptr<faiss::IndexIVFFlat> ivf;

    Pair(const Situation& s, const idx_t* ids = nullptr) {
        gmm = trained(s.base, s.nlist, s.metric);
        ivf = std::make_unique<faiss::IndexIVFFlat>(
                gmm->quantizer, s.base.d, s.nlist, s.metric);
        for (faiss::IndexIVF* index :
             {static_cast<faiss::IndexIVF*>(gmm.get()),
              static_cast<faiss::IndexIVF*>(ivf.get())}) {
            if (ids) {
                index->add_with_ids(s.base.n, s.base.x.data(), ids);
            } else {
                index->add(s.base.n, s.base.x.data());
            }
        }
    }
    void set_nprobe(size_t nprobe) {
        gmm->nprobe = ivf->nprobe = nprobe;
    }
};

/// Distances of the k nearest of those that pass, in double.
std::vector<double> last_distances(
        const Situation& s, size_t k, const faiss::IDSelector* sel = nullptr) {
    const double sign = s.metric == faiss::METRIC_L2 ? 1 : -1;
    std::vector<double> out, all;
    for (size_t i = 0; i < s.queries.n; i++) {
        all.clear();
        for (size_t j = 0; j < s.base.n; j++) {
            if (!sel || sel->is_member(j)) {
                all.push_back(
                        sign *
                        true_distance(
                                s.metric,
                                s.queries.row(i),
                                s.base.row(j),
                                s.base.d));
            }
        }
        if (all.size() < k) {
            out.push_back(HUGE_VAL);
            continue;
        }
        std::nth_element(all.begin(), all.begin() + (k - 1), all.end());
        out.push_back(all[k - 1]);
    }
    return out;
}

/// Share of k results that are no farther than the true last one.
double recall_of(
        const Situation& s,
        const Found& found,
        const std::vector<double>& last,
        const std::map<idx_t, size_t>* row_of = nullptr) {
    const double sign = s.metric == faiss::METRIC_L2 ? 1 : -1;
    size_t hits = 0;
    for (size_t j = 0; j < found.ids.size(); j++) {
        const bool known = row_of && row_of->count(found.ids[j]);
        if (row_of ? !known : found.ids[j] < 0) {
            continue;
        }
        const size_t row = row_of ? row_of->at(found.ids[j]) : found.ids[j];
        const float* q = s.queries.row(j / found.k);
        const double d =
                sign * true_distance(s.metric, q, s.base.row(row), s.base.d);
        const double limit = last[j / found.k];
        hits += d <= limit + 1e-6 * std::abs(limit) + 1e-12;
    }
    return double(hits) / found.ids.size();
}

size_t n_found(const Found& found) {
    return found.ids.size() -
            std::count(found.ids.begin(), found.ids.end(), idx_t(-1));
}

/// The distances that nprobe lists of average size take, and the 15 % more
/// that many neighbours get: queries in small lists are given the next ones.
double of_usual_lists(const Situation& s, size_t nprobe) {
    return 1.15 * nprobe * s.base.n / s.nlist * 1.1 * s.queries.n;
}

void expect_not_behind(
        const Situation& s,
        const std::vector<size_t>& ks,
        double noise = kNoise) {
    Pair own(s);
    for (size_t k : ks) {
        const auto last = last_distances(s, k);
        for (size_t nprobe : kNprobes) {
            own.set_nprobe(nprobe);
            faiss::indexIVF_stats.reset();
            const Found expected = find(*own.ivf, s.queries, k);
            const size_t n_ivf = faiss::indexIVF_stats.ndis;
            faiss::indexIVF_stats.reset();
            const Found found = find(*own.gmm, s.queries, k);
            const size_t n_gmm = faiss::indexIVF_stats.ndis;
            const double r = recall_of(s, found, last);
            const double r_ivf = recall_of(s, expected, last);
            const std::string what = s.name + ", metric " +
                    std::to_string(int(s.metric)) + ", k " + std::to_string(k) +
                    ", nprobe " + std::to_string(nprobe) + ": recall " +
                    std::to_string(r) + " of IVF's " + std::to_string(r_ivf) +
                    ", distances " + std::to_string(n_gmm / s.queries.n) +
                    " of " + std::to_string(n_ivf / s.queries.n);
            EXPECT_GE(r, r_ivf - noise) << what;
            // where lists differ by rounding only, so do their sizes
            EXPECT_GE(n_found(found), 0.98 * n_found(expected)) << what;
            // no more distances than those of its own lists, whatever their
            // sizes (or of average ones, where IVF probes empty ones), but
            // those that showed that codes say too little; of many neighbours,
            // which need no heap, a few of the next lists
            const double own_lists = std::max<double>(
                    n_ivf, nprobe * s.base.n * s.queries.n / s.nlist);
            EXPECT_LE(
                    double(n_gmm),
                    (k < 64 ? 1.02 : 1.32) * own_lists +
                            3 * (k + 10) * s.queries.n)
                    << what;
        }
    }
}

/** Also where k-means has found the lists, and not this library; on average
 * over the situations, for which means a training finds is luck: it changes
 * with the BLAS library's rounding, and recall by 0.07 where clusters are few.
 */
void expect_not_behind_kmeans(
        const std::vector<Situation>& situations,
        bool means_only = false,
        double noise = 0.05) {
    const size_t n = situations.size();
    std::map<size_t, double> of_ivf, of_means, of_gmm;
    for (const Situation& s : situations) {
        const auto gmm = trained(s.base, s.nlist, s.metric);
        gmm->add(s.base.n, s.base.x.data());
        std::unique_ptr<faiss::Index> stock(index_factory(
                int(s.base.d),
                ("IVF" + std::to_string(s.nlist) + ",Flat").c_str(),
                s.metric));
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*stock);
        ivf.train(s.base.n, s.base.x.data());
        ivf.add(s.base.n, s.base.x.data());
        // and the trained means, without the search by codes
        faiss::IndexIVFFlat means(gmm->quantizer, s.base.d, s.nlist, s.metric);
        means.add(s.base.n, s.base.x.data());
        const auto last = last_distances(s, 10);
        for (size_t nprobe : kNprobes) {
            gmm->nprobe = ivf.nprobe = means.nprobe = nprobe;
            const auto recall = [&](const faiss::Index& index) {
                return recall_of(s, find(index, s.queries, 10), last) / n;
            };
            of_ivf[nprobe] += recall(ivf);
            of_means[nprobe] += recall(means);
            of_gmm[nprobe] += recall(*gmm);
        }
    }
    for (size_t nprobe : kNprobes) {
        const std::string what =
                situations.front().name + ", nprobe " + std::to_string(nprobe);
        EXPECT_GE(of_means[nprobe], of_ivf[nprobe] - noise) << what;
        if (!means_only) {
            EXPECT_GE(of_gmm[nprobe], of_ivf[nprobe] - noise) << what;
        }
    }
}

constexpr faiss::MetricType kMetrics[] = {
        faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT};

Vectors gaussian(size_t n, size_t d, uint32_t seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> value;
    Vectors out{n, d, std::vector<float>(n * d)};
    for (float& v : out.x) {
        v = value(rng);
    }
    return out;
}

/// Vectors around some of centres, the same ones for every seed.
Vectors clustered(
        size_t n, size_t d, size_t n_clusters, float spread, uint32_t seed) {
    const Vectors centres = gaussian(n_clusters, d, 99);
    Vectors out = gaussian(n, d, seed);
    std::mt19937 rng(seed + 1);
    for (size_t i = 0; i < n; i++) {
        const float* centre = centres.row(rng() % n_clusters);
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = centre[j] + spread * out.x[i * d + j];
        }
    }
    return out;
}

void add_to_rows(Vectors& x, const Vectors& offset, float scale) {
    for (size_t i = 0; i < x.x.size(); i++) {
        x.x[i] += scale * offset.x[i % x.d];
    }
}

void normalise(Vectors& x) {
    faiss::fvec_renorm_L2(x.d, x.n, x.x.data());
}

Vectors scaled(Vectors x, float scale) {
    for (float& v : x.x) {
        v *= scale;
    }
    return x;
}

/// Unit vectors whose queries lie aside of them, as texts do of images.
Situation two_towers(float gap, faiss::MetricType metric) {
    const size_t d = 64;
    Situation s;
    s.name = "unit vectors, gap " + std::to_string(int(gap));
    s.metric = metric;
    s.base = clustered(12000, d, 200, 0.6f, 5);
    s.queries = rows_of(clustered(12000, d, 200, 0.6f, 5), 0, kQueries);
    add_to_rows(s.base, gaussian(1, d, 11), gap);
    add_to_rows(s.queries, gaussian(1, d, 12), gap);
    const Vectors noise = gaussian(kQueries, d, 7);
    for (size_t i = 0; i < noise.x.size(); i++) {
        s.queries.x[i] += 0.8f * noise.x[i];
    }
    normalise(s.base);
    normalise(s.queries);
    return s;
}

TEST(Defaults, QueriesOfAnotherKind) {
    for (auto metric : kMetrics) {
        for (float gap : {0.0f, 1.0f, 2.0f}) {
            expect_not_behind(two_towers(gap, metric), {1, 10, 100});
        }
    }
}

Situation sift(float base_scale, float query_scale, faiss::MetricType metric) {
    Situation s;
    s.name = "sift times " + std::to_string(base_scale) + ", queries times " +
            std::to_string(query_scale);
    s.base = scaled(sift_base(12000), base_scale);
    s.queries = scaled(sift_queries(kQueries), query_scale);
    s.metric = metric;
    return s;
}

TEST(Defaults, UsualVectors) {
    for (auto metric : kMetrics) {
        expect_not_behind(sift(1, 1, metric), {1, 10, 100, 1000});
    }
}

/// All inner products are negative, or all distances large.
TEST(Defaults, NegatedAndScaledQueries) {
    for (auto metric : kMetrics) {
        expect_not_behind(sift(1, -1, metric), {1, 10, 100});
        expect_not_behind(sift(-1, 1, metric), {10});
        expect_not_behind(sift(1, 3, metric), {10});
        expect_not_behind(sift(1, 0.1f, metric), {10});
        expect_not_behind(sift(1e-6f, 1e-6f, metric), {10});
    }
    // Squares of such are no floats, and products need none.
    for (float scale : {1e-30f, 1e25f}) {
        expect_not_behind(sift(1, scale, faiss::METRIC_INNER_PRODUCT), {10});
    }
}

/// Norms from one to seven: the longest vectors have the largest products.
TEST(Defaults, NormsThatDiffer) {
    for (auto metric : kMetrics) {
        Situation s = sift(1, 1, metric);
        s.name = "sift of different norms";
        for (size_t i = 0; i < s.base.n; i++) {
            for (size_t j = 0; j < s.base.d; j++) {
                s.base.x[i * s.base.d + j] *= float(i % 7 + 1) / 512;
            }
        }
        expect_not_behind(s, {1, 10, 100});
    }
}

/// One of them is far from all others, and so is the centre.
TEST(Defaults, AVectorFarAway) {
    for (auto metric : kMetrics) {
        for (float far : {1e4f, 1e6f, 1e9f}) {
            Situation s = sift(1, 1, metric);
            s.name = "a vector at " + std::to_string(far);
            s.base.x[77 * s.base.d + 3] = far;
            expect_not_behind(s, {10});
        }
    }
    for (float far : {1e4f, 1e6f}) {
        Situation s;
        s.name = "tight clusters and a vector at " + std::to_string(far);
        s.base = clustered(12000, 32, 50, 0.01f, 5);
        s.queries = clustered(kQueries, 32, 50, 0.01f, 6);
        s.base.x[77 * s.base.d + 3] = far;
        expect_not_behind(s, {10}, 0.01);
    }
}

/// All in one corner: distances are small beside the vectors' norms.
TEST(Defaults, VectorsFarFromZero) {
    for (float offset : {10.0f, 100.0f}) {
        Situation s = sift(1, 1, faiss::METRIC_L2);
        s.name = "sift / 512 + " + std::to_string(offset);
        s.queries = sift_queries(500); // which lists IVF takes is luck
        for (Vectors* x : {&s.base, &s.queries}) {
            for (float& v : x->x) {
                v = v / 512 + offset;
            }
        }
        expect_not_behind(s, {10}, 0.006); // IVF's own rounding is worth that
    }
}

TEST(Defaults, FewTightClusters) {
    for (auto metric : kMetrics) {
        for (size_t n_clusters : {4, 50}) {
            for (size_t d : {16, 64}) {
                for (float spread : {0.1f, 0.03f}) {
                    Situation s;
                    s.name = std::to_string(n_clusters) + " clusters, d " +
                            std::to_string(d) + ", spread " +
                            std::to_string(spread);
                    s.metric = metric;
                    s.base = clustered(12000, d, n_clusters, spread, 5);
                    s.queries = clustered(kQueries, d, n_clusters, spread, 6);
                    expect_not_behind(s, {1, 10, 100});
                }
            }
        }
    }
}

TEST(Defaults, ClustersBesideKMeans) {
    for (size_t n_clusters : {4, 50, 2000}) {
        for (float spread : {1e-3f, 1e-2f, 1.0f}) {
            std::vector<Situation> situations;
            for (size_t d : {8, 16, 64}) {
                Situation s;
                s.name = std::to_string(n_clusters) + " clusters, spread " +
                        std::to_string(spread);
                s.base = clustered(12000, d, n_clusters, spread, 5);
                s.queries = clustered(kQueries, d, n_clusters, spread, 6);
                situations.push_back(std::move(s));
            }
            // of four clusters 0.07 is luck, as said there
            expect_not_behind_kmeans(
                    situations, false, n_clusters == 4 ? 0.08 : 0.05);
        }
    }
}

TEST(Defaults, UsualVectorsBesideKMeans) {
    expect_not_behind_kmeans({sift(1, 1, faiss::METRIC_L2)});
    Situation s = sift(1, 1, faiss::METRIC_L2);
    s.name = "sift, one vector at 1e6";
    s.base.x[77 * s.base.d + 3] = 1e6f;
    expect_not_behind_kmeans({s});
    s = {};
    s.name = "tight clusters, one vector at 1e6";
    s.base = clustered(12000, 16, 50, 0.01f, 5);
    s.queries = clustered(kQueries, 16, 50, 0.01f, 6);
    s.base.x[77 * s.base.d + 3] = 1e6f;
    // Rounding of what it makes of the others' cells is another matter.
    expect_not_behind_kmeans({s}, /*means_only=*/true);
}

TEST(Defaults, Duplicates) {
    for (auto metric : kMetrics) {
        // two thirds are forty vectors; the others are fewer than lists
        Situation s;
        s.name = "duplicates";
        s.metric = metric;
        s.base = sift_base(9000);
        for (size_t i = 0; i < s.base.n; i++) {
            if (i % 3 > 0) {
                std::copy_n(
                        s.base.row(i % 40 * 3),
                        s.base.d,
                        &s.base.x[i * s.base.d]);
            }
        }
        s.queries = sift_queries(kQueries);
        expect_not_behind(s, {1, 10, 100});
        // Among lists whose means are equal rounding chooses.
        s.name = "fewer distinct vectors than lists";
        for (size_t i = 0; i < s.base.n; i++) {
            std::copy_n(s.base.row(i % 40), s.base.d, &s.base.x[i * s.base.d]);
        }
        expect_not_behind(s, {10}, 0.03);
    }
}

TEST(Defaults, NoiseAndFewDimensions) {
    for (auto metric : kMetrics) {
        for (size_t d : {2, 8, 16, 17, 32, 100}) {
            Situation s;
            s.name = "uniform, d " + std::to_string(d);
            s.metric = metric;
            s.base = uniform(12000, d, 3);
            s.queries = uniform(kQueries, d, 4);
            expect_not_behind(s, {1, 10});
        }
    }
}

/// One that is a hundred times as long as the others is in a list of its own,
/// and costs the others' queries nothing.
TEST(Defaults, AVectorFarAwayCostsOthersNothing) {
    Situation s = sift(1, 1, faiss::METRIC_L2);
    size_t scores[2];
    for (bool far : {false, true}) {
        if (far) {
            for (size_t j = 0; j < s.base.d; j++) {
                s.base.x[777 * s.base.d + j] *= 100;
            }
        }
        const auto index = trained(s.base, 256);
        index->add(s.base.n, s.base.x.data());
        index->nprobe = 2;
        index->probe_order = ProbeOrder::codes;
        ivf_gmm_stats.reset();
        find(*index, s.queries, 10);
        scores[far] = ivf_gmm_stats.n_cell_scores;
    }
    EXPECT_LE(scores[1], 1.5 * scores[0]);
    EXPECT_GT(scores[0], 0u);
}

TEST(Defaults, ShortAndManyLists) {
    for (auto metric : kMetrics) {
        for (size_t nlist : {2, 3, 16, 1000}) {
            Situation s = sift(1, 1, metric);
            s.name = std::to_string(nlist) + " lists";
            s.nlist = nlist;
            expect_not_behind(s, {1, 10, 100});
        }
    }
}

/// Whatever they are: -1 is the only label that means that there is none.
TEST(Defaults, IdsOfAllKinds) {
    const Situation s = sift(1, 1, faiss::METRIC_L2);
    std::mt19937_64 rng(3);
    for (bool random : {true, false}) {
        std::vector<idx_t> ids(s.base.n);
        std::map<idx_t, size_t> row_of;
        for (size_t i = 0; i < ids.size(); i++) {
            ids[i] = random ? idx_t(rng()) : -2 - idx_t(i);
            row_of[ids[i]] = i;
        }
        Pair named(s, ids.data()), plain(s);
        for (size_t k : {1, 10, 100}) {
            const auto last = last_distances(s, k);
            for (size_t nprobe : kNprobes) {
                SCOPED_TRACE(
                        testing::Message() << "random " << random << ", k " << k
                                           << ", nprobe " << nprobe);
                named.set_nprobe(nprobe);
                plain.set_nprobe(nprobe);
                faiss::indexIVF_stats.reset();
                const Found found = find(*named.gmm, s.queries, k);
                const size_t n = faiss::indexIVF_stats.ndis;
                faiss::indexIVF_stats.reset();
                const Found expected = find(*plain.gmm, s.queries, k);
                EXPECT_EQ(n, faiss::indexIVF_stats.ndis);
                EXPECT_EQ(found.dis, expected.dis);
                EXPECT_EQ(
                        recall_of(s, found, last, &row_of),
                        recall_of(s, expected, last));
            }
        }
        // targets stop as early
        for (Pair* p : {&named, &plain}) {
            p->gmm->calibration.costs = {3000, 1, 30, 10};
            p->gmm->calibrate(100, nullptr, 10);
            p->gmm->target_recall = 0.9f;
        }
        const double n = distances_per_query(*plain.gmm, s.queries, 10);
        EXPECT_NEAR(
                distances_per_query(*named.gmm, s.queries, 10), n, 0.02 * n);
    }
}

TEST(Defaults, Selectors) {
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        std::mt19937 rng(1);
        for (size_t passing : {12, 1200}) { // 0.1 %, 10 %
            std::vector<idx_t> ids;
            while (ids.size() < passing) {
                ids.push_back(rng() % s.base.n);
                std::sort(ids.begin(), ids.end());
                ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
            }
            faiss::IDSelectorBatch sel(ids.size(), ids.data());
            for (size_t k : {1, 10, 100}) {
                const auto last = last_distances(s, k, &sel);
                for (size_t nprobe : kNprobes) {
                    faiss::SearchParametersIVF params;
                    params.sel = &sel;
                    params.nprobe = nprobe;
                    const Found expected =
                            find(*pair.ivf, s.queries, k, &params);
                    const Found found = find(*pair.gmm, s.queries, k, &params);
                    const double r = recall_of(s, found, last);
                    const double r_ivf = recall_of(s, expected, last);
                    const std::string what = "metric " +
                            std::to_string(int(metric)) + ", " +
                            std::to_string(passing) + " passing, k " +
                            std::to_string(k) + ", nprobe " +
                            std::to_string(nprobe) + ": recall " +
                            std::to_string(r) + " of IVF's " +
                            std::to_string(r_ivf) + ", found " +
                            std::to_string(n_found(found)) + " of " +
                            std::to_string(n_found(expected));
                    EXPECT_GE(r, r_ivf - kNoise) << what;
                    // where lists differ by rounding only, so do their sizes
                    EXPECT_GE(n_found(found), 0.98 * n_found(expected)) << what;
                    for (idx_t id : found.ids) {
                        ASSERT_TRUE(id < 0 || sel.is_member(id));
                    }
                }
            }
        }
    }
}

/// With a target a search goes on until there are k, or all that pass.
TEST(Defaults, SelectorsWithATarget) {
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        pair.gmm->calibration.costs = {3000, 1, 30, 10};
        pair.gmm->calibrate(200, nullptr, 10);
        pair.gmm->target_recall = 0.95f;
        std::mt19937 rng(1);
        for (size_t passing : {12, 60, 1200}) {
            std::vector<idx_t> ids;
            while (ids.size() < passing) {
                ids.push_back(rng() % s.base.n);
                std::sort(ids.begin(), ids.end());
                ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
            }
            faiss::IDSelectorBatch sel(ids.size(), ids.data());
            faiss::SearchParameters params;
            params.sel = &sel;
            for (size_t k : {1, 10, 100}) {
                const Found found = find(*pair.gmm, s.queries, k, &params);
                const std::string what = "metric " +
                        std::to_string(int(metric)) + ", " +
                        std::to_string(passing) + " passing, k " +
                        std::to_string(k);
                EXPECT_EQ(n_found(found), s.queries.n * std::min(k, passing))
                        << what;
                if (k <= passing) {
                    const double r =
                            recall_of(s, found, last_distances(s, k, &sel));
                    EXPECT_GE(r, 0.9) << what;
                }
            }
        }
    }
}

/// A selector that keeps out what is near a query lets pass what is as hard to
/// find as without one: as many that pass are looked at.
TEST(Defaults, SelectorsThatKeepOutWhatIsNear) {
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        pair.gmm->calibration.costs = {3000, 1, 30, 10};
        pair.gmm->calibrate(200, nullptr, 10);
        pair.gmm->target_recall = 0.95f;
        faiss::IndexFlat flat(s.base.d, metric);
        flat.add(s.base.n, s.base.x.data());
        constexpr size_t k = 10;
        for (size_t left_out : {2, 8}) { // lists, of the nearest
            size_t found = 0, n = 0;
            for (size_t i = 0; i < s.queries.n; i += 2) {
                const float* q = s.queries.row(i);
                std::vector<float> distances(k);
                std::vector<idx_t> near(left_out), truth(k), labels(k);
                pair.gmm->quantizer->search(
                        1, q, left_out, distances.data(), near.data());
                std::vector<uint8_t> bits(s.base.n / 8 + 1, 0xff);
                for (idx_t list : near) {
                    const auto& lists = *pair.gmm->invlists;
                    for (size_t j = 0; j < lists.list_size(list); j++) {
                        const idx_t id = lists.get_single_id(list, j);
                        bits[id / 8] &= ~(1 << (id % 8));
                    }
                }
                faiss::IDSelectorBitmap sel(s.base.n, bits.data());
                faiss::SearchParameters params;
                params.sel = &sel;
                flat.search(1, q, k, distances.data(), truth.data(), &params);
                pair.gmm->search(
                        1, q, k, distances.data(), labels.data(), &params);
                for (idx_t id : labels) {
                    found += std::count(truth.begin(), truth.end(), id);
                }
                n += k;
            }
            EXPECT_GE(double(found) / n, 0.93)
                    << int(metric) << ", " << left_out << " lists";
        }
    }
}

/// What is within the radius, over what a search of all lists finds.
double range_recall(
        const faiss::Index& index,
        const Vectors& q,
        float radius,
        const faiss::RangeSearchResult& truth,
        size_t& n_distances) {
    faiss::RangeSearchResult result(q.n);
    faiss::indexIVF_stats.reset();
    index.range_search(q.n, q.x.data(), radius, &result);
    n_distances = faiss::indexIVF_stats.ndis;
    const size_t all = truth.lims[q.n];
    return all > 0 ? double(result.lims[q.n]) / all : 1;
}

TEST(Defaults, Ranges) {
    std::vector<Situation> situations;
    for (auto metric : kMetrics) {
        situations.push_back(sift(1, 1, metric));
        situations.push_back(sift(1, -1, metric));
        situations.push_back(two_towers(0, metric));
        situations.push_back(two_towers(2, metric));
    }
    for (const Situation& s : situations) {
        Pair pair(s);
        const double sign = s.metric == faiss::METRIC_L2 ? 1 : -1;
        std::vector<double> radii;
        for (size_t k : {1, 10, 100, 1000}) {
            std::vector<double> last = last_distances(s, k);
            std::nth_element(last.begin(), last.begin() + 50, last.end());
            radii.push_back(sign * last[50]);
        }
        if (s.metric == faiss::METRIC_L2) {
            radii.push_back(0.5 * radii[1]);
        }
        for (double radius : radii) {
            pair.set_nprobe(s.nlist);
            faiss::RangeSearchResult truth(s.queries.n);
            pair.ivf->range_search(
                    s.queries.n, s.queries.x.data(), float(radius), &truth);
            for (size_t nprobe : kNprobes) {
                pair.set_nprobe(nprobe);
                size_t n_gmm, n_ivf;
                const double r = range_recall(
                        *pair.gmm, s.queries, float(radius), truth, n_gmm);
                const double r_ivf = range_recall(
                        *pair.ivf, s.queries, float(radius), truth, n_ivf);
                const std::string what = s.name + ", metric " +
                        std::to_string(int(s.metric)) + ", radius " +
                        std::to_string(radius) + ", nprobe " +
                        std::to_string(nprobe) + ": recall " +
                        std::to_string(r) + " of IVF's " +
                        std::to_string(r_ivf) + ", distances " +
                        std::to_string(n_gmm / s.queries.n) + " of " +
                        std::to_string(n_ivf / s.queries.n);
                EXPECT_GE(r, r_ivf - kNoise) << what;
                EXPECT_LE(
                        n_gmm * r_ivf,
                        std::max(n_ivf * r * 1.1, of_usual_lists(s, nprobe)) +
                                1)
                        << what;
            }
        }
    }
}

/// Where codes tell most of what is out of the radius, the time that they save
/// is spent on cells of other lists.
TEST(Defaults, RangesUseTheTimeThatIsLeft) {
    const Situation s = sift(1, 1, faiss::METRIC_L2);
    Pair pair(s);
    std::vector<double> last = last_distances(s, 10);
    std::nth_element(last.begin(), last.begin() + 50, last.end());
    const float radius = float(last[50]);
    pair.set_nprobe(s.nlist);
    faiss::RangeSearchResult truth(s.queries.n);
    pair.ivf->range_search(s.queries.n, s.queries.x.data(), radius, &truth);
    for (size_t nprobe : {2, 4}) {
        pair.set_nprobe(nprobe);
        size_t n_gmm, n_ivf;
        const double r =
                range_recall(*pair.gmm, s.queries, radius, truth, n_gmm);
        const double r_ivf =
                range_recall(*pair.ivf, s.queries, radius, truth, n_ivf);
        EXPECT_GE(r, r_ivf + 0.03) << nprobe << " " << r_ivf;
        EXPECT_LE(n_gmm, n_ivf / 3) << r;
    }
}

/// Its means are not those that it had, but those of a stock index beside it.
TEST(Defaults, AnIndexThatWasSwapped) {
    for (auto metric : kMetrics) {
        const Situation s = two_towers(1, metric);
        std::unique_ptr<faiss::Index> before(
                index_factory(s.base.d, "IVF64,Flat", metric));
        before->train(s.base.n, s.base.x.data());
        before->add(s.base.n, s.base.x.data());
        const auto after = swap_to_gmm(dynamic_cast<faiss::IndexIVF&>(*before));
        faiss::IndexIVFFlat stock(
                after->quantizer, s.base.d, after->nlist, metric);
        stock.add(s.base.n, s.base.x.data());
        for (size_t k : {1, 10, 100}) {
            const auto last = last_distances(s, k);
            for (size_t nprobe : kNprobes) {
                stock.nprobe = after->nprobe = nprobe;
                const double r_ivf =
                        recall_of(s, find(stock, s.queries, k), last);
                const double r = recall_of(s, find(*after, s.queries, k), last);
                EXPECT_GE(r, r_ivf - kNoise)
                        << "metric " << int(metric) << ", k " << k
                        << ", nprobe " << nprobe << ": " << r << " of "
                        << r_ivf;
            }
        }
    }
}

} // namespace
} // namespace faiss_ext
