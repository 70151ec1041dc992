// An index's life from sources, block by block.
#include "faiss_ext/sources.h"

#include <cstring>
#include <fstream>

#include <faiss/IVFlib.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexShards.h>
#include <faiss/VectorTransform.h>

#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr size_t kN = 4000;

/// Whole numbers, so that they are the same as bytes.
const Vectors& base() {
    static const Vectors data = sift_base(kN);
    return data;
}

std::unique_ptr<faiss::Index> make(
        const char* description, faiss::MetricType metric = faiss::METRIC_L2) {
    std::unique_ptr<faiss::Index> index(
            index_factory(base().d, description, metric));
    train_quickly(index.get());
    return index;
}

/// The base as bytes, from a function that counts what it is asked for.
struct ByteCallback {
    size_t most_rows = 0, fails_from = kN;
    std::unique_ptr<gmm::VectorSource> source = gmm::callback_source(
            kN,
            base().d,
            gmm::ElementType::u8,
            [this](size_t begin, size_t count, void* out) {
                if (begin + count > fails_from) {
                    throw std::runtime_error("the line is down");
                }
                most_rows = std::max(most_rows, count);
                auto bytes = static_cast<uint8_t*>(out);
                const float* x = base().row(begin);
                for (size_t i = 0; i < count * base().d; i++) {
                    bytes[i] = uint8_t(x[i]);
                }
            });
};

std::unique_ptr<gmm::VectorSource> floats() {
    return gmm::memory_source(base().x.data(), kN, base().d);
}

struct Described : testing::TestWithParam<const char*> {};

TEST_P(Described, BytesMakeTheIndexThatFloatsMake) {
    auto by_bytes = make(GetParam()), whole = make(GetParam());
    ByteCallback bytes;
    train(by_bytes.get(), *bytes.source);
    const auto by_floats = clone_index(by_bytes.get());
    add(by_bytes.get(), *bytes.source);
    add(by_floats.get(), *floats());
    EXPECT_EQ(by_bytes->ntotal, idx_t(kN));
    const Vectors q = sift_queries(60);
    EXPECT_EQ(find(*by_bytes, q, 10), find(*by_floats, q, 10));

    whole->train(kN, base().x.data());
    whole->add(kN, base().x.data());
    const Found truth = exact(model_of(base()), q, 10, faiss::METRIC_L2);
    EXPECT_NEAR(
            recall(find(*by_bytes, q, 10), truth, faiss::METRIC_L2),
            recall(find(*whole, q, 10), truth, faiss::METRIC_L2),
            0.06);
    if (IVFGMM* gmm = extract_gmm(by_bytes.get())) {
        EXPECT_FALSE(gmm->cells.empty());
        EXPECT_TRUE(gmm->calibration.fitted);
        EXPECT_FALSE(gmm->maintenance_due());
        EXPECT_EQ(gmm->cells_per_list, 0u);
        EXPECT_TRUE(gmm->calibrate_on_add);
        check_cells(dynamic_cast<faiss::IndexIVF&>(*gmm), gmm->cells, false);
    }
}

INSTANTIATE_TEST_SUITE_P(
        Sources,
        Described,
        testing::Values(
                "GMM32,Flat",
                "GMM32,PQ16x4",
                "GMM32_HNSW16,Flat",
                "PCA32,GMM32,SQ8,RFlat",
                "PCA32,IVF32,SQ8"));

TEST(Sources, ASampleTrainsWhereThereAreMoreThanAreWanted) {
    auto index = make("GMM16,Flat");
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    ivf.cp.max_points_per_centroid = 100;
    ByteCallback bytes;
    train(index.get(), *bytes.source);
    EXPECT_LT(bytes.most_rows, kN);
    add(index.get(), *bytes.source);
    ivf.nprobe = 16;
    expect_model(ivf, model_of(base()), sift_queries(20));
}

TEST(Sources, InnerProductsTrainOnDirections) {
    auto index = make("GMM32,Flat", faiss::METRIC_INNER_PRODUCT);
    train(index.get(), *floats());
    const auto means = extract_gmm(index.get())->mixture().means;
    for (size_t i = 0; i < 32; i++) {
        EXPECT_LE(
                faiss::fvec_norm_L2sqr(&means[i * base().d], base().d), 1.001f);
    }
    add(index.get(), *floats());
    expect_model(
            dynamic_cast<faiss::IndexIVF&>(*index),
            model_of(base()),
            sift_queries(20));
}

TEST(Sources, IdsAndWrappers) {
    faiss::IndexIDMap map(make("GMM16,Flat").release());
    map.own_fields = true;
    train(&map, *floats());
    std::vector<idx_t> ids(kN);
    for (size_t i = 0; i < kN; i++) {
        ids[i] = 5 * i + 1;
    }
    add(&map, *floats(), ids.data());
    const Found found = find(map, rows_of(base(), 100, 120), 1);
    for (size_t i = 0; i < 20; i++) {
        EXPECT_EQ(found.dis[i], 0);
        EXPECT_EQ(found.ids[i] % 5, 1);
    }
}

TEST(Sources, AHashtableOfFaissGetsTheIds) {
    constexpr size_t kFirst = 1500;
    for (const char* description :
         {"IDMap2,GMM16,PQ32x4fs", "PCA64,GMM16,RQ2x4", "IVF16,Flat"}) {
        std::unique_ptr<faiss::Index> index = make(description);
        index->train(kN, base().x.data());
        auto* ivf = faiss::ivflib::extract_index_ivf(index.get());
        ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
        for (size_t begin : {size_t(0), kFirst}) {
            const size_t n = begin == 0 ? kFirst : kN - kFirst;
            add(index.get(),
                *gmm::memory_source(base().row(begin), n, base().d));
        }
        const auto& places = ivf->direct_map.hashtable;
        ASSERT_EQ(places.size(), kN) << description;
        for (size_t id = 0; id < kN; id++) {
            ASSERT_EQ(places.count(idx_t(id)), 1u) << description;
        }
        EXPECT_NO_THROW(clone_index(index.get())) << description;
    }
}

/// Which add without ids to what they hold.
TEST(Sources, AHashtableOfFaissInMapsAndRefinements) {
    std::unique_ptr<faiss::Index> index = make("IVF16,SQ8");
    index->train(kN, base().x.data());
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
    faiss::IndexRefineFlat refined(index.get());
    faiss::IndexIDMap2 map(&refined);
    std::vector<idx_t> ids(kN);
    for (size_t i = 0; i < kN; i++) {
        ids[i] = 5 * idx_t(i) + 1;
    }
    for (size_t begin = 0; begin < kN; begin += kN / 4) {
        add(&map,
            *gmm::memory_source(base().row(begin), kN / 4, base().d),
            &ids[begin]);
    }
    EXPECT_EQ(map.ntotal, idx_t(kN));
    map.check_consistency();
    for (idx_t id = 0; id < idx_t(kN); id++) {
        ASSERT_EQ(ivf.direct_map.hashtable.count(id), 1u) << id;
    }
    EXPECT_EQ(find(map, rows_of(base(), 700, 701), 1).ids[0], ids[700]);
}

/// Which FAISS fills without ids, or with ids that maps around it keep.
TEST(Sources, AHashtableOfFaissInPartsOfAnIndex) {
    std::unique_ptr<faiss::Index> trained = make("IVF16,SQ8");
    trained->train(kN, base().x.data());
    std::vector<std::unique_ptr<faiss::Index>> held;
    const auto hashed = [&] {
        held.push_back(clone_index(trained.get()));
        auto ivf = dynamic_cast<faiss::IndexIVF*>(held.back().get());
        ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
        return ivf;
    };
    const auto expect_ids = [&](const char* what, idx_t n) {
        for (const auto& index : held) {
            auto ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
            for (idx_t id = 0; ivf && id < n; id++) {
                ASSERT_EQ(ivf->direct_map.hashtable.count(id), 1u) << what;
            }
        }
        held.clear();
    };
    faiss::IndexReplicas replicas(int(base().d));
    replicas.addIndex(hashed());
    replicas.addIndex(hashed());
    add(&replicas, *floats());
    EXPECT_EQ(replicas.ntotal, idx_t(kN));
    expect_ids("replicas", idx_t(kN));

    faiss::IndexShards maps(int(base().d), false, false);
    faiss::IndexShards refinements(int(base().d), false, true);
    for (int i = 0; i < 2; i++) {
        held.emplace_back(new faiss::IndexIDMap2(hashed()));
        maps.add_shard(held.back().get());
    }
    add(&maps, *floats());
    const Found found = find(maps, rows_of(base(), 700, 701), 1);
    EXPECT_EQ(found.ids[0], 700);
    expect_ids("maps", idx_t(kN / 2));
    for (int i = 0; i < 2; i++) {
        held.emplace_back(new faiss::IndexRefineFlat(hashed()));
        refinements.add_shard(held.back().get());
    }
    add(&refinements, *floats());
    expect_ids("refinements", idx_t(kN / 2));
}

TEST(Sources, ShardsThatThereAreNot) {
    faiss::IndexShards none(int(base().d));
    faiss::IndexIDMap map(&none);
    EXPECT_FAISS_ERROR(train(&none, *floats()), "train: the index has no part");
    EXPECT_FAISS_ERROR(add(&none, *floats()), "add: the index has no parts");
    const std::vector<idx_t> ids(kN);
    EXPECT_FAISS_ERROR(add(&map, *floats(), ids.data()), "has no parts");
}

/// FAISS fills shards of successive ids in one call.
TEST(Sources, ShardsOfSuccessiveIds) {
    constexpr size_t kMany = 40000, kDim = 4;
    const Vectors x = uniform(kMany, kDim, 5);
    size_t broken = kMany;
    const auto source = gmm::callback_source(
            kMany,
            kDim,
            gmm::ElementType::f32,
            [&](size_t begin, size_t count, void* out) {
                if (begin + count > broken) {
                    throw std::runtime_error("cannot be read");
                }
                memcpy(out, x.row(begin), count * kDim * sizeof(float));
            });
    std::unique_ptr<faiss::Index> parts[3];
    faiss::IndexShards shards(int(kDim), false, true);
    for (auto& part : parts) {
        part.reset(index_factory(int(kDim), "GMM16,Flat"));
        extract_gmm(part.get())->calibrate_on_add = false;
        shards.addIndex(part.get());
    }
    shards.train(2000, x.x.data());
    broken = 30000;
    EXPECT_THROW(add(&shards, *source), std::runtime_error);
    EXPECT_EQ(shards.ntotal, 0);
    EXPECT_EQ(parts[0]->ntotal, 0);
    broken = kMany;
    add(&shards, *source);
    EXPECT_EQ(shards.ntotal, idx_t(kMany));
    for (IVFGMM* gmm : extract_gmms(&shards)) {
        EXPECT_FALSE(gmm->cells.empty());
        dynamic_cast<faiss::IndexIVF&>(*gmm).nprobe = 16;
    }
    for (idx_t row : {0, 13332, 13333, 26667, 39999}) {
        EXPECT_EQ(find(shards, rows_of(x, row, row + 1), 1).ids[0], row);
    }
    EXPECT_FAISS_ERROR(add(&shards, *source), "shard 0");
    EXPECT_EQ(shards.ntotal, idx_t(kMany));
    shards.reset(); // by which FAISS forgets that they are trained
    add(&shards, *source);
    EXPECT_EQ(shards.ntotal, idx_t(kMany));
}

/// FAISS fills all shards that it can, and counts nothing if one fails. Those
/// of successive ids are filled in one call.
struct AShardThatFails : testing::TestWithParam<bool> {
    static constexpr size_t kMany = 40000, kDim = 4;
    const Vectors x = uniform(kMany, kDim, 6);
    std::unique_ptr<faiss::Index> parts[3];
    faiss::IndexShards shards{int(kDim), false, GetParam()};
    std::vector<idx_t> ids;

    AShardThatFails() {
        for (auto& part : parts) {
            part.reset(index_factory(int(kDim), "GMM16,Flat"));
            extract_gmm(part.get())->calibrate_on_add = false;
            shards.addIndex(part.get());
        }
        shards.train(2000, x.x.data());
        for (size_t i = 0; i < kMany; i++) {
            ids.push_back(3 * idx_t(i) + 2);
        }
    }

    void add_rest(faiss::Index& index, bool with_ids) const {
        const size_t in = size_t(index.ntotal);
        const auto rest = gmm::memory_source(x.row(in), kMany - in, kDim);
        add(&index, *rest, with_ids ? &ids[in] : nullptr);
    }

    /// The last shard fails, then what is not in is added.
    void expect_each_once(faiss::Index& index, bool with_ids) {
        IVFGMM& last = *extract_gmm(parts[2].get());
        last.max_assign = 99; // refused by an addition
        EXPECT_FAISS_ERROR(
                add_rest(index, with_ids),
                GetParam() ? "max_assign = 99" : "and then: max_assign = 99");
        EXPECT_EQ(index.ntotal, GetParam() ? 0 : idx_t(2 * 32768 / 3));
        EXPECT_EQ(parts[0]->ntotal + parts[1]->ntotal, index.ntotal);
        EXPECT_EQ(shards.ntotal, index.ntotal);
        last.max_assign = 1;
        add_rest(index, with_ids);
        EXPECT_EQ(index.ntotal, idx_t(kMany));
        for (const auto& part : parts) {
            dynamic_cast<faiss::IndexIVF&>(*part).nprobe = 16;
        }
        for (idx_t row : {0, 10922, 10923, 13333, 21844, 21845, 32768, 39999}) {
            const Found found = find(index, rows_of(x, row, row + 1), 2);
            EXPECT_EQ(found.ids[0], with_ids ? ids[row] : row);
            EXPECT_GT(found.dis[1], found.dis[0]) << row;
        }
    }
};

TEST_P(AShardThatFails, Alone) {
    expect_each_once(shards, false);
}

TEST_P(AShardThatFails, InATransform) {
    faiss::RandomRotationMatrix rotation(kDim, kDim);
    rotation.init(1);
    faiss::IndexPreTransform index(&rotation, &shards);
    expect_each_once(index, false);
}

TEST_P(AShardThatFails, InMaps) {
    faiss::RandomRotationMatrix rotation(kDim, kDim);
    rotation.init(1);
    faiss::IndexIDMap2 map(&shards);
    faiss::IndexPreTransform index(&rotation, &map);
    expect_each_once(index, true);
    map.check_consistency();
}

/// FAISS says then that its shards are unlike, and stops counting.
TEST_P(AShardThatFails, SinceItIsNotTrained) {
    faiss::IndexIDMap2 index(&shards);
    parts[2]->is_trained = false;
    EXPECT_FAISS_ERROR(add_rest(index, true), "not trained");
    EXPECT_EQ(index.ntotal, GetParam() ? 0 : idx_t(2 * 32768 / 3));
    EXPECT_EQ(shards.ntotal, index.ntotal);
    parts[2]->is_trained = true;
    add_rest(index, true);
    EXPECT_EQ(index.ntotal, idx_t(kMany));
    index.check_consistency();
}

TEST_P(AShardThatFails, InARefinement) {
    faiss::IndexRefineFlat index(&shards);
    expect_each_once(index, false);
    EXPECT_EQ(index.refine_index->ntotal, idx_t(kMany));
}

INSTANTIATE_TEST_SUITE_P(Sources, AShardThatFails, testing::Bool());

TEST(Sources, AFailureSaysHowManyAreIn) {
    constexpr size_t kMany = 2 * 32768 + 100;
    size_t fails_from = 40000;
    const auto source = gmm::callback_source(
            kMany,
            base().d,
            gmm::ElementType::f32,
            [&](size_t begin, size_t count, void* out) {
                if (begin + count > fails_from) {
                    throw std::runtime_error("the line is down");
                }
                for (size_t i = 0; i < count; i++) {
                    memcpy(static_cast<float*>(out) + i * base().d,
                           base().row((begin + i) % kN),
                           base().d * sizeof(float));
                }
            });
    auto index = make("GMM16,SQ8");
    index->train(kN, base().x.data());
    EXPECT_FAISS_ERROR(
            add(index.get(), *source),
            "32768 of 65636 vectors are in, and then: the line is down");
    EXPECT_EQ(index->ntotal, 32768);
    IVFGMM& gmm = *extract_gmm(index.get());
    EXPECT_EQ(gmm.cells_per_list, 0u);
    EXPECT_TRUE(gmm.maintenance_due());
    gmm.calibrate_on_add = false;
    gmm.maintain();
    EXPECT_FALSE(gmm.cells.empty());
    fails_from = kMany;
    const auto rest = gmm::callback_source(
            kMany - 32768,
            base().d,
            gmm::ElementType::f32,
            [&](size_t begin, size_t count, void* out) {
                std::vector<std::byte> scratch;
                source->rows(begin + 32768, count, scratch)
                        .to_float(static_cast<float*>(out));
            });
    add(index.get(), *rest);
    EXPECT_EQ(index->ntotal, idx_t(kMany));
    check_cells(dynamic_cast<faiss::IndexIVF&>(*index), gmm.cells, false);
}

TEST(Sources, WrongRowsAreNamed) {
    Vectors bad = base();
    bad.x[3210 * bad.d + 7] = std::nanf("");
    const auto source = gmm::memory_source(bad.x.data(), bad.n, bad.d);
    auto index = make("GMM16,Flat");
    EXPECT_FAISS_ERROR(train(index.get(), *source), "row 3210");
    EXPECT_FALSE(index->is_trained);
    train(index.get(), *floats());
    EXPECT_FAISS_ERROR(add(index.get(), *source), "row 3210");
    EXPECT_EQ(index->ntotal, 0);
    const auto narrow = gmm::memory_source(bad.x.data(), bad.n, 8);
    EXPECT_FAISS_ERROR(add(index.get(), *narrow), "dimension 8, expected");
    EXPECT_FAISS_ERROR(
            train(make("GMM16,Flat").get(), *narrow), "dimension 8, expected");
    EXPECT_FAISS_ERROR(add(make("GMM16,Flat").get(), *floats()), "not trained");
}

TEST(Sources, AFileThatShrinks) {
    const TemporaryFolder folder;
    const std::string path = folder.file("base.u8bin");
    const uint32_t shape[] = {70000, 16};
    std::vector<uint8_t> rows(size_t(shape[0]) * shape[1]);
    for (size_t i = 0; i < rows.size(); i++) {
        rows[i] = uint8_t(base().x[i % base().x.size()]);
    }
    std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(shape), 8)
            .write(reinterpret_cast<const char*>(rows.data()), rows.size());
    const auto source = gmm::file_source(path);
    std::unique_ptr<faiss::Index> index(index_factory(16, "GMM16,SQ8"));
    train(index.get(), *source);
    std::filesystem::resize_file(path, 8 + 40000 * 16);
    const std::string message = faiss_error([&] { add(index.get(), *source); });
    EXPECT_NE(message.find("32768 of 70000 vectors are in"), std::string::npos);
    EXPECT_NE(message.find("become shorter"), std::string::npos) << message;
    EXPECT_NE(message.find(path), std::string::npos) << message;
    EXPECT_EQ(index->ntotal, 32768);
}

TEST(Sources, CalibratesOnQueriesInBytes) {
    auto index = make("PCA32,GMM32,Flat");
    train(index.get(), *floats());
    add(index.get(), *floats());
    ByteCallback bytes;
    const auto some = gmm::sample_source(*bytes.source, 100, 1);
    calibrate(index.get(), *some, 5);
    auto other = clone_index(index.get());
    Vectors q{100, base().d, std::vector<float>(100 * base().d)};
    std::vector<std::byte> scratch;
    some->rows(0, 100, scratch).to_float(q.x.data());
    calibrate(other.get(), 100, q.x.data(), 5);
    EXPECT_EQ(
            extract_gmm(index.get())->calibration.report(),
            extract_gmm(other.get())->calibration.report());
}

} // namespace
} // namespace faiss_ext
