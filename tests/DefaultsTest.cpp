// Settings that nobody has made are never behind the IVF index that would have
// stood there: an IVF,Flat of the same means at the same nprobe, on queries and
// vectors of many kinds.
#include "DefaultsTools.h"

#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

TEST(Defaults, QueriesOfAnotherKind) {
    for (auto metric : kMetrics) {
        for (float gap : {0.0f, 1.0f, 2.0f}) {
            expect_not_behind(two_towers(gap, metric), {1, 10, 100});
        }
    }
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

/// Where clusters share a few lists' means, rounding decides on the list of a
/// query now and then: one of a hundred.
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
                    expect_not_behind(s, {1, 10, 100}, 1.5 / kQueries);
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
        expect_not_behind(s, {10}, 0.05);
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
