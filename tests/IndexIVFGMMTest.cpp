// The lifecycle of an index with cells: whatever is added, removed, updated,
// merged and folded in, the index holds what a map of vectors holds.
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/store/list_storage.h"

#include <atomic>
#include <numeric>
#include <random>
#include <set>
#include <shared_mutex>
#include <thread>

#include <omp.h>

#include <faiss/IndexIVFFlat.h>

#include "IvfTestTools.h"
#include "faiss_ext/ivflib.h"

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

/// Random operations on an index and on the map that it should equal.
class Lifecycle {
public:
    Lifecycle(uint32_t seed, faiss::DirectMap::Type map_type)
            : rng(seed), map_type(map_type) {
        index = make();
    }

    std::unique_ptr<IndexIVFFlatGMM> make() {
        // trained alike each time: the same seed gives the same means
        auto out = trained(rows_of(base(), 0, 800), kLists);
        out->cells_per_list = 4 + rng() % 8;
        return out;
    }

    void add(size_t n) {
        const size_t row = rng() % (base().n - n);
        if (rng() % 2 == 0 && ids_are_sequential()) {
            for (size_t i = 0; i < n; i++) {
                put(index->ntotal + i, row + i);
            }
            index->add(n, base().row(row));
        } else if (map_type != faiss::DirectMap::Array) {
            std::vector<idx_t> ids(n);
            for (size_t i = 0; i < n; i++) {
                ids[i] = next_id;
                next_id += 1 + rng() % 3;
                put(ids[i], row + i);
            }
            index->add_with_ids(n, base().row(row), ids.data());
        }
    }

    void remove() {
        if (map_type == faiss::DirectMap::Array || model.empty()) {
            return;
        }
        std::vector<idx_t> ids = some_ids(1 + rng() % 300);
        ids.push_back(next_id + 5); // not there
        std::erase_if(model, [&](const auto& entry) {
            return std::find(ids.begin(), ids.end(), entry.first) != ids.end();
        });
        const idx_t before = index->ntotal;
        const size_t removed = index->remove_ids(
                faiss::IDSelectorBatch(ids.size(), ids.data()));
        EXPECT_EQ(removed, before - model.size());
    }

    void update() {
        if (map_type == faiss::DirectMap::NoMap || model.empty()) {
            return;
        }
        const std::vector<idx_t> ids = some_ids(1 + rng() % 100);
        const size_t row = rng() % (base().n - ids.size());
        for (size_t i = 0; i < ids.size(); i++) {
            put(ids[i], row + i);
        }
        index->update_vectors(ids.size(), ids.data(), base().row(row));
    }

    void merge() {
        if (map_type != faiss::DirectMap::NoMap) {
            return;
        }
        auto other = make();
        const size_t n = 100 + rng() % 400, row = rng() % (base().n - n);
        other->add(n, base().row(row));
        const idx_t first = next_id;
        for (size_t i = 0; i < n; i++) {
            put(first + i, row + i);
        }
        index->merge_from(*other, first);
        ASSERT_NO_FATAL_FAILURE(check_consistent(*other, *other, {}));
    }

    void copy_out_and_in() {
        if (map_type != faiss::DirectMap::NoMap) {
            return;
        }
        auto other = make();
        const idx_t middle = next_id / 2;
        index->copy_subset_to(*other, subset_type_t(0), 0, middle);
        Model half;
        for (const auto& [id, v] : model) {
            if (id < middle) {
                half[id] = v;
            }
        }
        ASSERT_NO_FATAL_FAILURE(check_consistent(*other, *other, half));
        expect_model(*other, half, queries());
    }

    void step() {
        switch (rng() % 9) {
            case 0:
            case 1:
            case 2:
                return add(1 + rng() % 600);
            case 3:
            case 4:
                return remove();
            case 5:
                return update();
            case 6:
                return merge();
            case 7:
                return copy_out_and_in();
            case 8:
                if (rng() % 3 > 0) {
                    return index->optimize();
                }
                if (rng() % 3 > 0) {
                    // everything goes, one way or the other
                    model.clear();
                    index->reset();
                    next_id = 0;
                }
        }
    }

    void run(int steps) {
        index->set_direct_map_type(map_type);
        for (int s = 0; s < steps; s++) {
            step();
            ASSERT_NO_FATAL_FAILURE(check_consistent(*index, *index, model))
                    << "step " << s;
            ASSERT_NO_FATAL_FAILURE(expect_model(*index, model, queries()))
                    << "step " << s;
            ASSERT_NO_FATAL_FAILURE(expect_honest(
                    find(*index, queries(), 5),
                    model,
                    queries(),
                    faiss::METRIC_L2));
        }
    }

private:
    bool ids_are_sequential() const {
        return model.empty() ? next_id == 0
                             : model.rbegin()->first + 1 == index->ntotal;
    }
    void put(idx_t id, size_t row) {
        model[id] = {base().row(row), base().row(row) + base().d};
        next_id = std::max(next_id, id + 1);
    }
    std::vector<idx_t> some_ids(size_t n) {
        std::vector<idx_t> ids;
        for (const auto& entry : model) {
            ids.push_back(entry.first);
        }
        std::shuffle(ids.begin(), ids.end(), rng);
        ids.resize(std::min(n, ids.size()));
        return ids;
    }

    std::mt19937 rng;
    faiss::DirectMap::Type map_type;
    std::unique_ptr<IndexIVFFlatGMM> index;
    Model model;
    idx_t next_id = 0;
};

TEST(IndexIVFGMM, HoldsWhatAMapHoldsUnderRandomOperations) {
    for (uint32_t seed = 1; seed <= 10; seed++) {
        SCOPED_TRACE(seed);
        Lifecycle(seed, faiss::DirectMap::NoMap).run(40);
    }
}

/// Several indexes are built side by side, as many do, each by one thread,
/// whose number is beyond that of the threads that it may use.
TEST(IndexIVFGMM, ThreadsOfTheCallerBuildOneEach) {
    const Vectors base = sift_base(3000);
    const auto empty = trained(base, 16);
    std::atomic<size_t> wrong = 0;
#pragma omp parallel num_threads(6)
    {
        omp_set_num_threads(1);
        const auto index = clone_index(empty.get());
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
        ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
        ivf.add(base.n, base.x.data());
        std::vector<float> x(base.d);
        for (size_t i = 0; i < base.n; i++) {
            ivf.reconstruct(idx_t(i), x.data());
            wrong += !std::equal(x.begin(), x.end(), base.row(i));
        }
    }
    EXPECT_EQ(wrong, 0u);
}

TEST(IndexIVFGMM, HoldsWhatAMapHoldsWithAHashtable) {
    for (uint32_t seed = 11; seed <= 20; seed++) {
        SCOPED_TRACE(seed);
        Lifecycle(seed, faiss::DirectMap::Hashtable).run(40);
    }
}

TEST(IndexIVFGMM, HoldsWhatAMapHoldsWithAnArray) {
    for (uint32_t seed = 21; seed <= 30; seed++) {
        SCOPED_TRACE(seed);
        Lifecycle(seed, faiss::DirectMap::Array).run(40);
    }
}

/// More moves than the direct map looks up together, and an id that comes back
/// to where another was.
TEST(IndexIVFGMM, TheDirectMapFollowsALongWayThroughAList) {
    const size_t d = 16, nlist = 140, n = 4000;
    auto index = trained(uniform(1000, d, 11), nlist);
    index->cells_per_list = nlist - 1;
    // all about one mean, towards each of the others
    const std::vector<float> means = index->mixture().means;
    Vectors x = uniform(n + 400, d, 12);
    for (size_t i = 0; i < x.n; i++) {
        const float* other = &means[(1 + i % (nlist - 1)) * d];
        for (size_t j = 0; j < d; j++) {
            float& v = x.x[i * d + j];
            v = means[j] + 0.3f * (other[j] - means[j]) + 0.01f * v;
        }
    }
    index->add(n, x.row(0));
    const uint32_t* offset = index->cells.list_offsets(0);
    size_t filled_cells = 0;
    for (size_t l = 0; l < index->cells.cells_per_list; l++) {
        filled_cells += offset[l + 1] > offset[l];
    }
    ASSERT_GT(filled_cells, 80u);
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    Model model = model_of(rows_of(x, 0, n));
    std::mt19937 rng(3);
    for (size_t i = 0; i < 400; i++) {
        const idx_t id = idx_t(rng() % n);
        const std::vector<float> v(x.row(n + i), x.row(n + i) + x.d);
        if (model.count(id) == 0) {
            index->add_with_ids(1, v.data(), &id);
            model[id] = v;
        } else if (i % 2 > 0) {
            index->update_vectors(1, &id, v.data());
            model[id] = v;
        } else {
            index->remove_ids(faiss::IDSelectorArray(1, &id));
            model.erase(id);
        }
        if (i % 20 == 0) {
            ASSERT_NO_FATAL_FAILURE(check_consistent(*index, *index, model));
        }
    }
    check_consistent(*index, *index, model);
}

TEST(IndexIVFGMM, MatricesAreRefused) {
    auto index = trained(rows_of(base(), 0, 800), kLists);
    for (auto covariance : {gmm::Covariance::full, gmm::Covariance::tied}) {
        index->covariance = covariance;
        EXPECT_FAISS_ERROR(
                index->train(800, base().x.data()),
                std::string("covariance = ") + to_string(covariance));
    }
}

TEST(IndexIVFGMM, AnEmptiedIndexFillsAgain) {
    auto index = filled(base(), kLists);
    std::vector<idx_t> ids(base().n);
    std::iota(ids.begin(), ids.end(), 0);
    EXPECT_EQ(index->remove_ids(faiss::IDSelectorRange(0, base().n)), base().n);
    check_consistent(*index, *index, {});
    for (idx_t id : find(*index, queries(), 3).ids) {
        EXPECT_EQ(id, -1);
    }
    index->add_with_ids(base().n, base().x.data(), ids.data());
    check_consistent(*index, *index, model_of(base()));
    expect_model(*index, model_of(base()), queries());
}

TEST(IndexIVFGMM, ResetKeepsTheMixtureAndForgetsTheRest) {
    auto index = filled(base(), kLists);
    const std::vector<float> means = index->mixture().means;
    index->reset();
    EXPECT_EQ(index->ntotal, 0);
    EXPECT_TRUE(index->cells.empty());
    EXPECT_FALSE(index->calibration.fitted);
    EXPECT_TRUE(index->is_trained);
    EXPECT_EQ(index->mixture().means, means);
    index->add(500, base().row(0));
    expect_model(*index, model_of(rows_of(base(), 0, 500)), queries());
}

TEST(IndexIVFGMM, UpdatingAnIdTwiceAtOnceKeepsTheLast) {
    for (auto type : {faiss::DirectMap::Array, faiss::DirectMap::Hashtable}) {
        auto index = filled(rows_of(base(), 0, 1000), kLists);
        index->set_direct_map_type(type);
        Model model = model_of(rows_of(base(), 0, 1000));
        const idx_t ids[] = {7, 12, 7};
        index->update_vectors(3, ids, base().row(2000));
        model[12] = {base().row(2001), base().row(2002)};
        model[7] = {base().row(2002), base().row(2003)};
        check_consistent(*index, *index, model);
    }
}

/// All entries: id and vector.
std::multiset<std::pair<idx_t, std::vector<float>>> everything(
        const faiss::IndexIVF& index) {
    std::multiset<std::pair<idx_t, std::vector<float>>> out;
    for (const auto& [id, places] : entries_by_id(index)) {
        for (const Entry& at : places) {
            std::vector<float> x(index.d);
            index.reconstruct_from_offset(at.list, at.offset, x.data());
            out.emplace(id, x);
        }
    }
    return out;
}

TEST(IndexIVFGMM, AnUpdateReplacesOneVectorOfAnId) {
    for (size_t cells : {1, 8}) {
        auto index = trained(base(), kLists);
        index->cells_per_list = cells;
        index->set_direct_map_type(faiss::DirectMap::Hashtable);
        std::vector<idx_t> ids(500);
        for (size_t i = 0; i < ids.size(); i++) {
            ids[i] = idx_t(i / 2); // each twice
        }
        index->add_with_ids(ids.size(), base().row(0), ids.data());
        auto expected = everything(*index);
        const idx_t some[] = {3, 7, 3, 100};
        for (size_t i : {1, 2, 3}) { // of id 3 the last row counts
            std::vector<float> x(index->d);
            index->reconstruct(some[i], x.data());
            expected.erase(expected.find({some[i], x}));
            const float* row = base().row(1000 + i);
            expected.emplace(some[i], std::vector<float>(row, row + base().d));
        }
        index->update_vectors(4, some, base().row(1000));
        EXPECT_EQ(everything(*index), expected);
        EXPECT_EQ(size_t(index->ntotal), expected.size());
        std::vector<float> x(index->d);
        index->reconstruct(7, x.data());
        EXPECT_TRUE(std::equal(x.begin(), x.end(), base().row(1001)));
        EXPECT_EQ(index->remove_ids(faiss::IDSelectorArray(3, some)), 4u);
        EXPECT_EQ(size_t(index->ntotal), everything(*index).size());
        EXPECT_EQ(size_t(index->ntotal), expected.size() - 4);
    }
    // copies say which list they are of, not which vector
    auto index = trained(base(), kLists);
    index->max_assign = 2;
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    const idx_t ids[] = {1, 2, 3, 3, 3};
    index->add_with_ids(5, base().row(0), ids);
    const auto before = everything(*index);
    EXPECT_FAISS_ERROR(
            index->update_vectors(2, ids + 1, base().row(9)), "4 vectors");
    EXPECT_EQ(everything(*index), before);
    index->update_vectors(2, ids, base().row(9));
    EXPECT_EQ(index->remove_ids(faiss::IDSelectorArray(1, ids + 2)), 3u);
    EXPECT_EQ(index->ntotal, 2);
}

TEST(IndexIVFGMM, TheMapCanBeMadeAfterwards) {
    auto index = filled(rows_of(base(), 0, 3000), kLists);
    Model model = model_of(rows_of(base(), 0, 3000));
    for (auto type :
         {faiss::DirectMap::Array,
          faiss::DirectMap::Hashtable,
          faiss::DirectMap::NoMap}) {
        index->set_direct_map_type(type);
        check_consistent(*index, *index, model);
    }
    index->make_direct_map(true);
    check_consistent(*index, *index, model);
    std::vector<float> all(model.size() * base().d);
    index->reconstruct_n(0, model.size(), all.data());
    EXPECT_TRUE(std::equal(all.begin(), all.end(), base().x.begin()));
}

TEST(IndexIVFGMM, ByTheMapOneIsFoundAmongSelectorsOfEveryKind) {
    const faiss::DirectMap::Type hash = faiss::DirectMap::Hashtable;
    const idx_t ids[] = {7, 3000, 7, 123456};
    for (int kind = 0; kind < 4; kind++) {
        auto index = filled(rows_of(base(), 0, 4000), kLists);
        index->set_direct_map_type(hash);
        Model model = model_of(rows_of(base(), 0, 4000));
        size_t removed = 0;
        if (kind == 0) {
            removed = index->remove_ids(faiss::IDSelectorArray(4, ids));
        } else if (kind == 1) {
            removed = index->remove_ids(faiss::IDSelectorBatch(4, ids));
        } else if (kind == 2) {
            removed = index->remove_ids(faiss::IDSelectorRange(3998, 4100));
        } else { // an id twice: the map does not name all entries
            index->add_with_ids(2, base().row(4000), ids);
            removed = index->remove_ids(faiss::IDSelectorArray(4, ids));
        }
        EXPECT_EQ(removed, kind == 3 ? 4u : 2u);
        std::erase_if(model, [&](const auto& entry) {
            return kind == 2 ? entry.first >= 3998
                             : entry.first == 7 || entry.first == 3000;
        });
        check_consistent(*index, *index, model);
    }
}

TEST(IndexIVFGMM, SearchesBesideAdditionsUnderASharedMutex) {
    auto index = filled(rows_of(base(), 0, 1000), kLists);
    index->nprobe = kLists;
    std::shared_mutex mutex; // as IndexIVFGMM.h says
    std::atomic<size_t> wrong = 0, searches = 0;
    const size_t counted = faiss::indexIVF_stats.nq;
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 8; t++) {
        threads.emplace_back([&, t] {
            for (size_t row = t; row < 1000; row += 41) {
                Found found;
                {
                    const std::shared_lock lock(mutex);
                    found = find(*index, rows_of(base(), row, row + 1), 1);
                }
                wrong += found.dis[0] != 0;
                searches++;
                std::this_thread::yield();
            }
        });
    }
    for (size_t i = 1000; i < 1400; i += 20) {
        const std::unique_lock lock(mutex);
        index->add(20, base().row(i));
        if (i % 200 == 0) {
            index->remove_ids(faiss::IDSelectorRange(i, i + 5));
        }
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(wrong, 0u);
    EXPECT_EQ(faiss::indexIVF_stats.nq - counted, searches);
    EXPECT_EQ(index->ntotal, 1390);
}

} // namespace
} // namespace faiss_ext
