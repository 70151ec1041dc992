// As DefaultsTest, of calls of other kinds: ids, selectors, ranges.
#include "DefaultsTools.h"

#include <climits>

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
        EXPECT_GE(r, r_ivf + 0.03) << nprobe << " " << r_ivf;
        EXPECT_LE(n_gmm, n_ivf / 3) << r;
    }
}

} // namespace
} // namespace faiss_ext
