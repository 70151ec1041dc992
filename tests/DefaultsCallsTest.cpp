// As DefaultsTest, of calls of other kinds: ids, selectors, ranges.
#include "DefaultsTools.h"

#include <numeric>

#include <faiss/Clustering.h>
#include <faiss/impl/IDSelector.h>

namespace faiss_ext {
namespace {

/// Whatever they are: -1 is the only label that means that there is none.
TEST(DefaultsCalls, IdsOfAllKinds) {
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

/// So many different ones, ascending.
std::vector<idx_t> some_ids(size_t count, size_t n, std::mt19937& rng) {
    std::vector<idx_t> ids;
    while (ids.size() < count) {
        ids.push_back(rng() % n);
        std::sort(ids.begin(), ids.end());
        ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    }
    return ids;
}

TEST(DefaultsCalls, Selectors) {
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        std::mt19937 rng(1);
        for (size_t passing : {12, 1200}) { // 0.1 %, 10 %
            const std::vector<idx_t> ids = some_ids(passing, s.base.n, rng);
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
TEST(DefaultsCalls, SelectorsWithATarget) {
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        pair.gmm->calibration.costs = {3000, 1, 30, 10};
        pair.gmm->calibrate(200, nullptr, 10);
        pair.gmm->target_recall = 0.95f;
        std::mt19937 rng(1);
        for (size_t passing : {12, 60, 1200}) {
            const std::vector<idx_t> ids = some_ids(passing, s.base.n, rng);
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
TEST(DefaultsCalls, SelectorsThatKeepOutWhatIsNear) {
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

TEST(DefaultsCalls, Ranges) {
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
TEST(DefaultsCalls, RangesUseTheTimeThatIsLeft) {
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
        EXPECT_GE(r, r_ivf + 0.02) << nprobe << " " << r_ivf;
        EXPECT_LE(n_gmm, n_ivf / 3) << r;
    }
}

/// Where lists are compared whole, what is saved by asking a bitmap about many
/// ids at once is spent on entries of the next lists.
TEST(DefaultsCalls, SelectorsUseTheTimeThatIsLeft) {
    constexpr size_t k = 10;
    for (auto metric : kMetrics) {
        const Situation s = sift(1, 1, metric);
        Pair pair(s);
        std::mt19937 rng(1);
        std::vector<uint8_t> bits(s.base.n / 8 + 1);
        for (idx_t id : some_ids(120, s.base.n, rng)) {
            bits[id / 8] |= uint8_t(1 << id % 8);
        }
        faiss::IDSelectorBitmap sel(bits.size(), bits.data());
        const auto last = last_distances(s, k, &sel);
        for (size_t nprobe : {4, 16}) {
            faiss::SearchParametersIVF params;
            params.sel = &sel;
            params.nprobe = nprobe;
            const double r_ivf =
                    recall_of(s, find(*pair.ivf, s.queries, k, &params), last);
            const double r =
                    recall_of(s, find(*pair.gmm, s.queries, k, &params), last);
            EXPECT_GE(r, r_ivf + 0.03)
                    << "metric " << int(metric) << ", nprobe " << nprobe << ": "
                    << r << " of " << r_ivf;
        }
    }
}

/// The user's own centroids, longer than any direction: lists, distances and
/// results of inner products as FAISS has them.
TEST(DefaultsCalls, OwnLongCentroids) {
    for (const char* description : {"GMM32,Flat", "GMM32,SQ8"}) {
        SCOPED_TRACE(description);
        const Situation s = sift(1, 1, faiss::METRIC_INNER_PRODUCT);
        const size_t d = s.base.d;
        faiss::Clustering kmeans{int(d), 32};
        faiss::IndexFlatL2 assigning{idx_t(d)};
        kmeans.train(s.base.n, s.base.x.data(), assigning);
        std::unique_ptr<faiss::Index> owner(
                index_factory(int(d), description, s.metric));
        auto& gmm = dynamic_cast<faiss::IndexIVF&>(*owner);
        gmm.quantizer->add(32, kmeans.centroids.data());
        gmm.train(s.base.n, s.base.x.data());
        faiss::IndexFlatIP means{idx_t(d)};
        means.add(32, kmeans.centroids.data());
        faiss::IndexIVFFlat ivf(&means, d, 32, s.metric);
        ivf.train(s.base.n, s.base.x.data());
        gmm.add(s.base.n, s.base.x.data());
        ivf.add(s.base.n, s.base.x.data());
        const auto last = last_distances(s, 10);
        for (size_t nprobe : {1, 4, 32}) {
            gmm.nprobe = ivf.nprobe = nprobe;
            const Found found = find(gmm, s.queries, 10);
            EXPECT_GE(
                    recall_of(s, found, last),
                    recall_of(s, find(ivf, s.queries, 10), last) -
                            (gmm.code_size < d * 4 ? 0.05 : 0.006))
                    << nprobe;
            gmm.set_direct_map_type(faiss::DirectMap::Hashtable);
            std::vector<float> x(d);
            for (size_t j = 0; j < found.ids.size(); j += 7) {
                gmm.reconstruct(found.ids[j], x.data());
                const float* q = s.queries.row(j / 10);
                EXPECT_NEAR(
                        found.dis[j],
                        true_distance(s.metric, q, x.data(), d),
                        1e-4 * std::fabs(found.dis[j]));
            }
        }
    }
}

/// Vectors on the means say nothing about the codes of those that come later.
TEST(DefaultsCalls, TheMeansCameFirst) {
    Situation s;
    s.name = "the means came first";
    s.metric = faiss::METRIC_L2;
    s.base = clustered(8000, 64, 200, 0.6f, 5);
    s.queries = clustered(kQueries, 64, 200, 0.6f, 6);
    s.nlist = 64;
    const auto gmm = trained(s.base, s.nlist);
    std::vector<float> means(s.nlist * s.base.d);
    gmm->quantizer->reconstruct_n(0, s.nlist, means.data());
    std::vector<idx_t> ids(s.nlist);
    std::iota(ids.begin(), ids.end(), idx_t(s.base.n));
    gmm->add_with_ids(s.nlist, means.data(), ids.data());
    for (size_t at = 0; at < s.base.n;) {
        const size_t n = std::min<size_t>(s.base.n - at, gmm->ntotal - 1);
        std::vector<idx_t> own(n);
        std::iota(own.begin(), own.end(), idx_t(at));
        gmm->add_with_ids(n, s.base.row(at), own.data());
        at += n;
    }
    gmm->nprobe = 32;
    gmm->remove_ids(faiss::IDSelectorBatch(ids.size(), ids.data()));
    EXPECT_GE(
            recall_of(s, find(*gmm, s.queries, 10), last_distances(s, 10)),
            0.99);
}

/// Squares of a query's length are no floats.
TEST(DefaultsCalls, TinyQueriesOfInnerProducts) {
    const Situation s = sift(1, 1, faiss::METRIC_INNER_PRODUCT);
    Pair pair(s);
    pair.set_nprobe(8);
    const Found expected = find(*pair.gmm, s.queries, 10);
    for (float scale : {1e-20f, 1e-26f}) {
        Vectors q = s.queries;
        for (float& v : q.x) {
            v *= scale;
        }
        const Found found = find(*pair.gmm, q, 10);
        size_t same = 0;
        for (size_t j = 0; j < found.ids.size(); j++) {
            same += found.ids[j] == expected.ids[j];
        }
        EXPECT_GE(same, 0.99 * double(found.ids.size())) << scale;
    }
}

/// A cap on distances is spent on what codes say is nearest, whatever nprobe.
TEST(DefaultsCalls, MaxCodesCutsNoListShort) {
    const Situation s = sift(1, 1, faiss::METRIC_L2);
    Pair pair(s);
    const auto last = last_distances(s, 10);
    double before = 0;
    for (size_t nprobe : {1, 4, 16, 64}) {
        faiss::SearchParametersIVF params;
        params.nprobe = nprobe;
        params.max_codes = 100;
        faiss::indexIVF_stats.reset();
        const double r =
                recall_of(s, find(*pair.gmm, s.queries, 10, &params), last);
        EXPECT_LE(faiss::indexIVF_stats.ndis, 100 * s.queries.n);
        EXPECT_GE(r, before - 0.02) << nprobe;
        before = std::max(before, r);
    }
    EXPECT_GE(before, 0.9);
}

/// Of what max_codes cannot cut short nothing is left out.
TEST(DefaultsCalls, AllOfAllListsIsExact) {
    Situation s;
    s.metric = faiss::METRIC_L2;
    s.base = uniform(3000, 32, 3);
    s.queries = uniform(kQueries, 32, 4);
    s.nlist = 32;
    Pair pair(s);
    const auto last = last_distances(s, 10);
    for (size_t cap : {size_t(0), s.base.n, 2 * s.base.n}) {
        faiss::SearchParametersIVF params;
        params.nprobe = s.nlist;
        params.max_codes = cap;
        EXPECT_EQ(
                recall_of(s, find(*pair.gmm, s.queries, 10, &params), last), 1)
                << cap;
    }
}

} // namespace
} // namespace faiss_ext
