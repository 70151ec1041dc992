// Searches of one index by several processes, here in one.
#include "faiss_ext/ListShard.h"

#include <faiss/impl/FaissException.h>

#include "IvfTestTools.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/scan/told.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr size_t kN = 6000, kShards = 3;

const Vectors& base() {
    static const Vectors data = sift_base(kN);
    return data;
}

std::unique_ptr<faiss::Index> filled(
        const char* description, faiss::MetricType metric) {
    std::unique_ptr<faiss::Index> index(
            index_factory(base().d, description, metric));
    train_quickly(index.get());
    index->train(kN, base().x.data());
    index->add(kN, base().x.data());
    return index;
}

std::vector<ListShard> shards_of(const faiss::Index& index) {
    std::vector<ListShard> out;
    for (size_t s = 0; s < kShards; s++) {
        out.emplace_back(clone_index(&index), s, kShards);
    }
    return out;
}

struct Sharded {
    Found found;
    size_t rounds;
};

Sharded find_sharded(
        const std::vector<ListShard>& shards,
        const Vectors& x,
        size_t k,
        const faiss::SearchParameters* params) {
    const std::vector<float> q = shards[0].transform(x.n, x.x.data());
    ListShard::Answers answers;
    for (;;) {
        // Any shard takes any round.
        const ListShard& planner = shards[answers.size() % kShards];
        auto step = planner.step(x.n, q.data(), k, params, answers);
        if (step.done) {
            return {{k, step.distances, step.labels}, answers.size()};
        }
        answers.emplace_back();
        for (size_t s = 0; s < kShards; s++) {
            answers.back().push_back(shards[s].answer(
                    x.n, q.data(), k, step.requests[s], params));
        }
    }
}

struct Case {
    const char* description;
    faiss::MetricType metric = faiss::METRIC_L2;
};

class ListShards : public testing::TestWithParam<Case> {};

/// What the index finds to which transformed queries are given.
void expect_equal(
        const faiss::Index& whole,
        const std::vector<ListShard>& shards,
        const Vectors& q,
        size_t k,
        const SearchParametersIVFGMM& params) {
    SCOPED_TRACE(
            testing::Message()
            << "k " << k << ", nprobe " << params.nprobe << ", target "
            << params.target_recall << ", " << to_string(params.probe_order)
            << ", max_codes " << params.max_codes << ", sel "
            << (params.sel != nullptr));
    const Vectors seen{
            q.n,
            size_t(shards[0].ivf().d),
            shards[0].transform(q.n, q.x.data())};
    const auto& bare = dynamic_cast<const faiss::Index&>(*extract_gmm(&whole));
    const Found expected = find(bare, seen, k, &params);
    const Sharded sharded = find_sharded(shards, q, k, &params);
    // What passes a selector may have to be looked for farther away, and what
    // a target asks for where a query has found little.
    EXPECT_LE(sharded.rounds, params.sel || params.target_recall > 0 ? 5u : 3u);
    ASSERT_EQ(sharded.found.dis, expected.dis);
    size_t others = 0; // where distances are equal
    for (size_t i = 0; i < expected.ids.size(); i++) {
        others += sharded.found.ids[i] != expected.ids[i];
        ASSERT_EQ(sharded.found.ids[i] < 0, expected.ids[i] < 0);
    }
    EXPECT_LE(others, expected.ids.size() / 100);
}

TEST_P(ListShards, FindWhatTheWholeIndexFinds) {
    const auto [description, metric] = GetParam();
    const auto whole = filled(description, metric);
    const auto shards = shards_of(*whole);
    const Vectors q = sift_queries(120);
    SearchParametersIVFGMM params;
    for (size_t k : {1, 10, 100}) {
        for (size_t nprobe : {1, 2, 5, 12, 32}) {
            params = {};
            params.nprobe = nprobe;
            expect_equal(*whole, shards, q, k, params);
            params.probe_order = ProbeOrder::codes;
            expect_equal(*whole, shards, q, k, params);
            if (shards[0].ivf().code_size > 0) {
                params.probe_order = ProbeOrder::distance;
                expect_equal(*whole, shards, q, k, params);
            }
        }
        for (float target : {0.5f, 0.8f, 0.9f, 0.99f}) {
            params = {};
            params.target_recall = target;
            expect_equal(*whole, shards, q, k, params);
        }
    }
}

TEST_P(ListShards, FindWhatASelectorAndACapLeave) {
    const auto [description, metric] = GetParam();
    const auto whole = filled(description, metric);
    const auto shards = shards_of(*whole);
    const Vectors q = sift_queries(30);
    std::vector<idx_t> few, half;
    for (idx_t i = 0; i < idx_t(kN); i++) {
        if (i % 2 == 0) {
            half.push_back(i);
        }
        if (i % 211 == 0) {
            few.push_back(i);
        }
    }
    const faiss::IDSelectorBatch few_pass(few.size(), few.data()),
            half_pass(half.size(), half.data());
    using Selectors = std::vector<const faiss::IDSelector*>;
    for (size_t k : {1, 40}) {
        for (const auto* sel : Selectors{nullptr, &few_pass, &half_pass}) {
            for (size_t max_codes : {0, 25, 300}) {
                SearchParametersIVFGMM params;
                params.sel = const_cast<faiss::IDSelector*>(sel);
                params.max_codes = max_codes;
                for (size_t nprobe : {2, 12}) {
                    params.nprobe = nprobe;
                    params.probe_order = ProbeOrder::calibrated;
                    expect_equal(*whole, shards, q, k, params);
                    if (shards[0].ivf().code_size > 0) {
                        params.probe_order = ProbeOrder::distance;
                        expect_equal(*whole, shards, q, k, params);
                    }
                }
                params.probe_order = ProbeOrder::calibrated;
                params.target_recall = 0.9f;
                expect_equal(*whole, shards, q, k, params);
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
        Codecs,
        ListShards,
        testing::Values(
                Case{"GMM32,Flat"},
                Case{"GMM32,Flat", faiss::METRIC_INNER_PRODUCT},
                Case{"GMM32,SQ8"},
                Case{"GMM32,PQ16"},
                Case{"GMM32_HNSW16,Flat"},
                Case{"PCA48,GMM32,Flat"},
                Case{"GMM32,RaBitQ4"},
                Case{"GMM32,RaBitQ4", faiss::METRIC_INNER_PRODUCT}));

TEST(ListShard, NoCodesButItsOwnListsAreInMemory) {
    const auto whole = filled("GMM32,Flat", faiss::METRIC_L2);
    size_t all = 0, kept = 0;
    for (const auto& block : extract_gmm(whole.get())->cells.codes.blocks) {
        all += block.size();
    }
    for (const ListShard& shard : shards_of(*whole)) {
        const auto& gmm = dynamic_cast<const IVFGMM&>(shard.ivf());
        for (const auto& block : gmm.cells.codes.blocks) {
            kept += block.size();
        }
    }
    EXPECT_LE(kept, all);
    EXPECT_GT(kept, 0u);
}

TEST(ListShard, QueriesThatAreNotFiniteFindNothing) {
    const auto whole = filled("GMM32,Flat", faiss::METRIC_L2);
    const auto shards = shards_of(*whole);
    Vectors q = sift_queries(3);
    q.x[q.d + 5] = std::nanf("");
    for (ProbeOrder order : {ProbeOrder::codes, ProbeOrder::distance}) {
        SearchParametersIVFGMM params;
        params.nprobe = 4;
        params.probe_order = order;
        const Found found = find_sharded(shards, q, 5, &params).found;
        EXPECT_EQ(found.ids, find(*whole, q, 5, &params).ids);
        EXPECT_EQ(found.ids[5], -1);
    }
}

TEST(ListShard, WrongInput) {
    const auto whole = filled("GMM32,Flat", faiss::METRIC_L2);
    EXPECT_THROW(
            ListShard(clone_index(whole.get()), 3, 3), faiss::FaissException);
    std::unique_ptr<faiss::Index> flat(index_factory(8, "Flat"));
    EXPECT_THROW(ListShard(std::move(flat), 0, 1), faiss::FaissException);

    const auto shards = shards_of(*whole);
    const Vectors q = sift_queries(4);
    const float* x = q.x.data();
    SearchParametersIVFGMM params;
    params.nprobe = 4;
    EXPECT_THROW(shards[0].step(q.n, x, 0, &params, {}), faiss::FaissException);
    const auto step = shards[0].step(q.n, x, 5, &params, {});
    ASSERT_FALSE(step.done);
    // another shard's, a part of one, about a query that there is not
    ListShard::Bytes cut = step.requests[0];
    cut.pop_back();
    for (const auto& [n, request] :
         {std::pair{q.n, step.requests[1]},
          {q.n, cut},
          {q.n - 1, step.requests[0]}}) {
        EXPECT_THROW(shards[0].answer(n, x, 5, request), faiss::FaissException);
    }
    EXPECT_FAISS_ERROR(shards[0].answer(q.n, x, 0, step.requests[0]), "k = 0");
    const size_t most = size_t(1) << 58;
    EXPECT_FAISS_ERROR(
            shards[0].step(q.n, x, 16 * most + 1, &params, {}), "k = ");
    EXPECT_FAISS_ERROR(
            shards[0].step(q.n, x, most, &params, {}),
            "n = " + std::to_string(q.n));
    // of a kind that there is not, or of cells where there are none
    for (uint32_t kind : {3u, 77u}) {
        ListShard::Bytes other = step.requests[0];
        memcpy(&other[2 * sizeof(uint32_t)], &kind, sizeof(kind));
        EXPECT_FAISS_ERROR(shards[0].answer(q.n, x, 5, other), "kind");
    }
    // cells in another order, of two kinds, or empty
    const auto items = [](const ListShard::Bytes& bytes) {
        std::vector<AskedEntries> out(bytes.size() / sizeof(AskedEntries));
        memcpy(out.data(), bytes.data(), bytes.size());
        return out;
    };
    const auto bytes_of = [](const std::vector<AskedEntries>& asked) {
        ListShard::Bytes out(asked.size() * sizeof(AskedEntries));
        memcpy(out.data(), asked.data(), out.size());
        return out;
    };
    const auto honest = items(step.requests[0]);
    ASSERT_GE(honest.size(), 1u);
    ASSERT_GT(honest[0].end, honest[0].begin);
    auto turned = std::vector<AskedEntries>(2, honest[0]); // the same twice
    EXPECT_FAISS_ERROR(
            shards[0].answer(q.n, x, 5, bytes_of(turned)), "do not ascend");
    turned[1].begin = turned[1].end;
    EXPECT_FAISS_ERROR(
            shards[0].answer(q.n, x, 5, bytes_of(turned)), "without entries");
    turned[1] = honest[0];
    turned[1].kind = AskedEntries::nearest;
    EXPECT_FAISS_ERROR(
            shards[0].answer(q.n, x, 5, bytes_of(turned)), "two kinds");
    const auto no_cells = shards_of(*filled("GMM32x1,Flat", faiss::METRIC_L2));
    EXPECT_FAISS_ERROR(
            no_cells[0].answer(q.n, x, 5, step.requests[0]), "kind 0");

    // answers that say nothing of what was asked for
    EXPECT_THROW(
            shards[0].step(q.n, x, 5, &params, {{{1, 2, 3}, {}, {}}}),
            faiss::FaissException);
    EXPECT_THROW(
            shards[0].step(q.n, x, 5, &params, {{{}, {}}}),
            faiss::FaissException);
}

} // namespace
} // namespace faiss_ext
