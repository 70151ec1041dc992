// Which cells a query looks at, against all cells sorted by their distance in
// double.
#include "faiss_ext/rank/CellSelector.h"

#include <cmath>

#include "IvfTestTools.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/index_factory.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 32;

const Vectors& base() {
    static const Vectors data = sift_base(8000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(20);
    return data;
}

/// A cell with entries, and its distance to a query.
struct Cell {
    double score;
    size_t list, begin, end;

    size_t size() const {
        return end - begin;
    }
};

/// All of them, the nearest first. For inner products the distances are those
/// of directions, of a mean that is no direction any more: 2 - 2 q.m / |q|.
std::vector<Cell> sorted_cells(const IndexIVFFlatGMM& index, const float* q) {
    const PairCells& cells = index.cells;
    const std::vector<float> means = index.mixture().means;
    const size_t d = index.d;
    const bool ip = is_ip(index);
    double norm = 0;
    for (size_t j = 0; j < d; j++) {
        norm += double(q[j]) * q[j];
    }
    std::vector<Cell> out;
    for (size_t i = 0; i < index.nlist; i++) {
        for (size_t l = 0; l < cells.cells_per_list; l++) {
            const size_t partner = cells.partners(i)[l];
            double s = 0, product = 0;
            for (size_t j = 0; j < d; j++) {
                const double a = cells.a[i];
                const double m =
                        (1 - a) * means[i * d + j] + a * means[partner * d + j];
                s += (q[j] - m) * (q[j] - m);
                product += q[j] * m;
            }
            const auto [begin, end] = cells.range(i, l);
            if (begin < end) {
                out.push_back(
                        {ip ? 2 - 2 * product / std::sqrt(norm) : s,
                         i,
                         begin,
                         end});
            }
        }
    }
    std::sort(out.begin(), out.end(), [](const Cell& p, const Cell& q) {
        return p.score < q.score;
    });
    return out;
}

/// A selector of an index and the distances of the query that it is started
/// for.
class Selection {
public:
    explicit Selection(const IndexIVFFlatGMM& index_in)
            : index(index_in), coarse(index_in),
              selector(index_in.cells, *index_in.invlists) {}

    void start(const float* q, size_t forced = 0) {
        if (coarse.by_graph()) {
            coarse.start_graph(q);
        } else {
            distances = mean_distances(index, q);
            const auto [least, largest] =
                    std::minmax_element(distances.begin(), distances.end());
            coarse.start(distances.data(), *least, *largest);
        }
        selector.start(coarse, forced);
    }

    std::vector<Segment> choose(size_t first, size_t last) {
        std::vector<Segment> out;
        selector.choose(first, last, 1, 1, 0, out);
        return out;
    }

    const IndexIVFFlatGMM& index;
    QueryCoarse coarse;
    CellSelector selector;
    std::vector<float> distances;
};

size_t entries_of(const std::vector<Segment>& segments) {
    size_t n = 0;
    for (const Segment& s : segments) {
        n += s.end - s.begin;
    }
    return n;
}

constexpr size_t kLast = CellSelector::kBuckets - 1;

class CellSelectorOf : public testing::TestWithParam<faiss::MetricType> {
protected:
    std::unique_ptr<IndexIVFFlatGMM> index = filled(base(), kLists, GetParam());
};

INSTANTIATE_TEST_SUITE_P(
        Metrics,
        CellSelectorOf,
        testing::Values(faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT),
        [](const auto& info) {
            return info.param == faiss::METRIC_L2 ? "L2" : "InnerProduct";
        });

TEST_P(CellSelectorOf, TheNearestListsInOrder) {
    Selection selection(*index);
    std::vector<uint32_t> lists;
    for (size_t i = 0; i < queries().n; i++) {
        selection.start(queries().row(i));
        std::vector<std::pair<float, uint32_t>> all;
        for (uint32_t l = 0; l < kLists; l++) {
            all.push_back({selection.distances[l], l});
        }
        std::sort(all.begin(), all.end());
        for (size_t n : {1, 5, 32, 100}) {
            selection.selector.nearest_lists(n, lists);
            ASSERT_EQ(lists.size(), std::min<size_t>(n, kLists));
            for (size_t p = 0; p < lists.size(); p++) {
                EXPECT_EQ(lists[p], all[p].second);
            }
        }
    }
}

TEST_P(CellSelectorOf, SegmentsAreCellsWithTheirDistances) {
    const bool ip = GetParam() == faiss::METRIC_INNER_PRODUCT;
    Selection s(*index);
    for (size_t i = 0; i < queries().n; i++) {
        const float* q = queries().row(i);
        s.start(q);
        s.selector.score(index->ntotal);
        EXPECT_TRUE(s.selector.all_scored());
        EXPECT_EQ(s.selector.entries_scored(), size_t(index->ntotal));
        EXPECT_EQ(
                s.selector.n_cells_scored(),
                kLists * index->cells.cells_per_list);
        std::map<std::pair<size_t, size_t>, Cell> expected;
        for (const Cell& cell : sorted_cells(*index, q)) {
            expected[{cell.list, cell.begin}] = cell;
        }
        const float q_norm = 5, slack2 = 0.09f, rounding2 = 40;
        std::vector<Segment> segments;
        s.selector.choose(0, kLast, q_norm, slack2, rounding2, segments);
        ASSERT_EQ(segments.size(), expected.size()); // each once
        for (const Segment& segment : segments) {
            const auto at = expected.find({segment.list, segment.begin});
            ASSERT_NE(at, expected.end());
            const Cell& cell = at->second;
            EXPECT_EQ(segment.end, cell.end);
            EXPECT_EQ(
                    segment.blocks,
                    index->cells.codes.blocks[cell.list].data());
            const double rounding = ip ? 1e-4 : 1e-5 * 512 * 512;
            if (ip) {
                EXPECT_NEAR(
                        segment.score,
                        q_norm * (0.5 * cell.score - 1),
                        q_norm * rounding);
                EXPECT_FLOAT_EQ(
                        segment.slack, std::sqrt(slack2 * 25 + rounding2));
            } else {
                EXPECT_NEAR(segment.score, cell.score, rounding);
                EXPECT_NEAR(
                        segment.slack,
                        std::sqrt(slack2 * cell.score + rounding2),
                        1e-4 * segment.slack + 1e-3);
            }
        }
    }
}

TEST_P(CellSelectorOf, BucketsAreOrderedAndHoldWhatTheySay) {
    Selection s(*index);
    for (size_t i = 0; i < queries().n; i++) {
        s.start(queries().row(i));
        s.selector.score(index->ntotal);
        size_t total = 0;
        float before = -HUGE_VALF;
        std::vector<size_t> up_to;
        for (size_t b = 0; b <= kLast; b++) {
            const auto segments = s.choose(b, b);
            float largest = before;
            for (const Segment& segment : segments) {
                ASSERT_GE(segment.score, before) << b;
                largest = std::max(largest, segment.score);
            }
            before = largest;
            total += entries_of(segments);
            up_to.push_back(total);
        }
        EXPECT_EQ(total, size_t(index->ntotal));
        for (size_t entries : {1, 7, 100, 1000, 5000, 8000}) {
            const size_t b = s.selector.bucket_of_entries(entries);
            EXPECT_GE(up_to[b], entries);
            EXPECT_TRUE(b == 0 || up_to[b - 1] < entries);
            EXPECT_EQ(entries_of(s.choose(0, b)), up_to[b]);
            EXPECT_EQ(s.selector.entries_up_to(b), up_to[b]);
            EXPECT_EQ(
                    entries_of(s.choose(b / 2, b)),
                    up_to[b] - (b / 2 > 0 ? up_to[b / 2 - 1] : 0));
        }
        EXPECT_EQ(s.selector.bucket_of_entries(8001), kLast);
    }
}

TEST_P(CellSelectorOf, TheNearestCellsAreChosen) {
    Selection s(*index);
    for (size_t entries : {50, 500, 3000}) {
        double in_common = 0, in_reference = 0;
        for (size_t i = 0; i < queries().n; i++) {
            s.start(queries().row(i));
            s.selector.score(entries * 4);
            const auto segments =
                    s.choose(0, s.selector.bucket_of_entries(entries));
            ASSERT_GE(entries_of(segments), entries);
            std::set<std::pair<size_t, size_t>> chosen;
            for (const Segment& segment : segments) {
                chosen.insert({segment.list, segment.begin});
            }
            size_t total = 0;
            for (const Cell& cell : sorted_cells(*index, queries().row(i))) {
                if (total >= entries) {
                    break;
                }
                total += cell.size();
                in_reference += cell.size();
                in_common +=
                        chosen.count({cell.list, cell.begin}) ? cell.size() : 0;
            }
        }
        // the others are in lists that are far away themselves
        EXPECT_GE(in_common, 0.65 * in_reference) << entries;
    }
}

TEST_P(CellSelectorOf, ListsAreScoredUntilTheyHoldEnough) {
    Selection s(*index);
    for (size_t i = 0; i < queries().n; i++) {
        s.start(queries().row(i));
        size_t before = 0;
        for (size_t entries : {1, 300, 2000, 2000, 6000, 100000}) {
            s.selector.score(entries);
            const size_t scored = s.selector.entries_scored();
            EXPECT_GE(scored, std::min<size_t>(entries, index->ntotal));
            EXPECT_GE(scored, before);
            before = scored;
            EXPECT_EQ(s.selector.all_scored(), scored == size_t(index->ntotal));
            // whole lists, the nearest ones
            std::map<size_t, size_t> entries_in;
            for (const Segment& segment : s.choose(0, kLast)) {
                entries_in[segment.list] += segment.end - segment.begin;
            }
            float farthest = -HUGE_VALF, nearest_left = HUGE_VALF;
            for (size_t list = 0; list < kLists; list++) {
                if (entries_in.count(list)) {
                    EXPECT_EQ(
                            entries_in[list], index->invlists->list_size(list));
                    farthest = std::max(farthest, s.distances[list]);
                } else if (index->invlists->list_size(list) > 0) {
                    nearest_left = std::min(nearest_left, s.distances[list]);
                }
            }
            EXPECT_LE(farthest, nearest_left);
        }
    }
}

TEST_P(CellSelectorOf, ForcedListsComeFirst) {
    Selection s(*index);
    for (size_t forced : {1, 3, 10, 32}) {
        for (size_t i = 0; i < queries().n; i++) {
            s.start(queries().row(i), forced);
            s.selector.score(10);
            std::vector<std::pair<float, size_t>> near;
            for (size_t list = 0; list < kLists; list++) {
                near.push_back({s.distances[list], list});
            }
            std::sort(near.begin(), near.end());
            std::set<uint32_t> nearest;
            size_t entries = 0;
            for (size_t r = 0; r < forced; r++) {
                nearest.insert(uint32_t(near[r].second));
                entries += index->invlists->list_size(near[r].second);
            }
            // more cells that are scored change nothing
            for (size_t up_to : {size_t(10), size_t(index->ntotal)}) {
                s.selector.score(up_to);
                s.selector.bring_forward_forced(0);
                const std::vector<uint32_t> lists = s.selector.forced_lists();
                EXPECT_EQ(
                        std::set<uint32_t>(lists.begin(), lists.end()),
                        nearest);
                EXPECT_EQ(lists.size(), nearest.size());
                EXPECT_EQ(s.selector.forced_entries(), entries);
                std::map<size_t, size_t> first;
                for (const Segment& segment : s.choose(0, 0)) {
                    first[segment.list] += segment.end - segment.begin;
                }
                for (uint32_t list : nearest) {
                    EXPECT_EQ(first[list], index->invlists->list_size(list))
                            << forced << ", list " << list;
                }
            }
        }
    }
}

/// Of lists at the same distance as many come first as there must.
TEST_P(CellSelectorOf, NoMoreListsAreForcedThanAskedFor) {
    Selection s(*index);
    std::vector<float> equal(kLists, 0.5f);
    for (size_t forced : {1, 5, 31}) {
        s.coarse.start(equal.data(), 0.5f, 0.5f);
        s.selector.start(s.coarse, forced);
        s.selector.score(1);
        EXPECT_EQ(s.selector.forced_lists().size(), forced);
    }
}

TEST_P(CellSelectorOf, EffortIsLessWhereNeighboursAreNear) {
    Selection s(*index);
    for (size_t i = 0; i < queries().n; i++) {
        s.start(queries().row(i));
        s.selector.score(index->ntotal);
        const auto cells = sorted_cells(*index, queries().row(i));
        for (double entries : {40.0, 400.0, 4000.0}) {
            // from all cells far above t to all below
            size_t before = 0;
            for (float factor : {0.01f, 0.5f, 1.0f, 1.5f, 4.0f}) {
                const float t = factor * float(cells.front().score);
                const size_t b = s.selector.bucket_of_effort(entries, t);
                EXPECT_GE(b, before) << factor;
                before = b;
                // between half and twice the ratio, squared
                EXPECT_GE(b, s.selector.bucket_of_entries(entries / 4));
                EXPECT_LE(b, s.selector.bucket_of_entries(entries * 4));
            }
            EXPECT_EQ(
                    s.selector.bucket_of_effort(entries, 1e-9f),
                    s.selector.bucket_of_entries(entries / 4));
            EXPECT_EQ(
                    s.selector.bucket_of_effort(entries, 1e30f),
                    s.selector.bucket_of_entries(entries * 4));
        }
    }
}

TEST_P(CellSelectorOf, EntriesInNoCellAreNamed) {
    std::vector<uint8_t> codes(300 * index->sa_code_size());
    index->sa_encode(300, base().x.data(), codes.data());
    index->add_sa_codes(300, codes.data(), nullptr);
    CellSelector selector(index->cells, *index->invlists);
    size_t n = 0;
    for (const auto& u : selector.untracked) {
        EXPECT_EQ(u.begin, index->cells.list_size(u.list));
        EXPECT_EQ(u.end, index->invlists->list_size(u.list));
        EXPECT_LT(u.begin, u.end);
        n += u.end - u.begin;
    }
    EXPECT_EQ(n, 300u);
    Selection s(*index);
    s.start(queries().row(0));
    s.selector.score(100000);
    EXPECT_EQ(entries_of(s.choose(0, kLast)), base().n);
}

TEST_P(CellSelectorOf, EqualDistancesAreOneBucket) {
    Vectors same = rows_of(base(), 0, 500);
    for (size_t i = 1; i < same.n; i++) {
        std::copy_n(same.row(0), same.d, &same.x[i * same.d]);
    }
    auto equal = trained(same, 8, GetParam());
    equal->cells_per_list = 4;
    equal->add(same.n, same.x.data());
    Selection s(*equal);
    s.start(queries().row(0));
    s.selector.score(1);
    EXPECT_EQ(entries_of(s.choose(0, kLast)), same.n);
    EXPECT_GE(entries_of(s.choose(0, s.selector.bucket_of_entries(1))), 1u);
}

TEST(CellSelector, ByAGraphToo) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        std::unique_ptr<faiss::Index> made(
                index_factory(base().d, "GMM300x6_HNSW16,Flat", metric));
        auto& index = dynamic_cast<IndexIVFFlatGMM&>(*made);
        index.cp.niter = 2;
        index.calibrate_on_add = false;
        index.train(base().n, base().x.data());
        index.add(base().n, base().x.data());
        Selection s(index);
        ASSERT_TRUE(s.coarse.by_graph());
        for (size_t i = 0; i < queries().n; i++) {
            const float* q = queries().row(i);
            for (size_t forced : {0, 5}) {
                s.start(q, forced);
                s.selector.score(500);
                EXPECT_GE(s.selector.entries_scored(), 500u);
                s.selector.bring_forward_forced(0);
                std::set<std::pair<size_t, size_t>> seen;
                for (size_t b = 0; b <= kLast; b++) {
                    for (const Segment& segment : s.choose(b, b)) {
                        EXPECT_TRUE(seen.insert({segment.list, segment.begin})
                                            .second);
                    }
                }
                std::vector<float> distances(index.nlist);
                std::vector<idx_t> lists(5);
                index.quantizer->search(
                        1, q, 5, distances.data(), lists.data());
                std::map<size_t, size_t> first;
                for (const Segment& segment : s.choose(0, 0)) {
                    first[segment.list] += segment.end - segment.begin;
                }
                for (size_t r = 0; r < forced; r++) {
                    const size_t list = lists[r];
                    EXPECT_EQ(first[list], index.invlists->list_size(list));
                }
                s.selector.score(index.ntotal);
                EXPECT_TRUE(s.selector.all_scored());
                EXPECT_EQ(entries_of(s.choose(0, kLast)), size_t(index.ntotal));
            }
        }
    }
}

} // namespace
} // namespace faiss_ext
