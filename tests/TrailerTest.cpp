#include "faiss_ext/io/trailer.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include "IndexBytes.h"
#include "TestData.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/io/StockShell.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

// What a checksum lets through: payloads made to be wrong.

std::unique_ptr<faiss::Index> filled(const char* description) {
    const Vectors base = sift_base(1500);
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(128, description));
    train_quickly(index.get());
    index->train(base.n, base.x.data());
    index->add(base.n, base.x.data());
    return index;
}

/// The stock index in the file of a GMM index.
std::unique_ptr<faiss::Index> stock_of(const faiss::Index& index) {
    faiss::VectorIOWriter writer;
    faiss::write_index(StockShell(index).index(), &writer);
    return read_by_faiss(writer.data);
}

Bytes serialize_gmm(const faiss::Index* index) {
    faiss::VectorIOWriter writer;
    write_gmm(index, &writer, 0);
    return writer.data;
}

void deserialize_gmm(faiss::Index** index, const Bytes& bytes) {
    faiss::VectorIOReader reader;
    reader.data = bytes;
    read_gmm(index, {&reader, bytes.size()});
}

/// Whether the index's stock part, once it was changed, takes the payload; it
/// throws nothing but a FaissException.
bool taken(
        const faiss::Index& index,
        const Bytes& payload,
        const std::function<void(faiss::Index*)>& change = {}) {
    faiss::Index* root = stock_of(index).release();
    if (change) {
        change(root);
    }
    bool ok = true;
    try {
        deserialize_gmm(&root, payload);
    } catch (const faiss::FaissException&) {
        ok = false;
    }
    delete root;
    return ok;
}

/// Whether an index takes the trailer of a copy whose GMM part was changed.
bool taken_changed(
        const faiss::Index& index, const std::function<void(IVFGMM&)>& change) {
    const auto other = clone_index(&index);
    change(*extract_gmm(other.get()));
    return taken(index, serialize_gmm(other.get()));
}

TEST(Trailer, RoundTrip) {
    for (const char* description :
         {"GMM8x3,Flat", "IDMap,GMM8,SQ8", "GMM8,PQ32x4fs", "GMM8x3,RaBitQ4"}) {
        const std::string plain = description;
        auto index =
                filled(plain.starts_with("IDMap") ? "GMM8,SQ8" : description);
        const auto payload = serialize_gmm(index.get());
        faiss::Index* root = stock_of(*index).release();
        deserialize_gmm(&root, payload);
        EXPECT_EQ(serialize_gmm(root), payload);
        delete root;
    }
    std::unique_ptr<faiss::Index> stock(faiss_ext::index_factory(128, "Flat"));
    EXPECT_TRUE(serialize_gmm(stock.get()).empty());
}

TEST(Trailer, CutAnywhere) {
    for (const char* description :
         {"GMM8x3,Flat", "GMM8,PQ32x4fs", "GMM8x3,RaBitQ2"}) {
        auto index = filled(description);
        const auto payload = serialize_gmm(index.get());
        EXPECT_TRUE(taken(*index, payload));
        for (size_t n = 0; n < payload.size(); n += 1 + n / 20) {
            EXPECT_FALSE(taken(*index, {payload.begin(), payload.begin() + n}));
        }
        auto longer = payload;
        longer.push_back(0);
        EXPECT_FALSE(taken(*index, longer));
    }
}

TEST(Trailer, HugeNumbersTakeNoMemory) {
    for (const char* description :
         {"GMM8x3,Flat", "GMM8,PQ32x4fs", "GMM8x3,RaBitQ2"}) {
        auto index = filled(description);
        const auto payload = serialize_gmm(index.get());
        // 2^62 wherever a length could stand: taken, where it is a number
        // that means nothing for memory, or refused.
        for (size_t at = 0; at + 8 <= payload.size(); at += 1 + at / 30) {
            auto wrong = payload;
            const uint64_t huge = uint64_t(1) << 62;
            memcpy(wrong.data() + at, &huge, 8);
            EXPECT_NO_THROW(taken(*index, wrong)) << at;
        }
    }
}

TEST(Trailer, WrongPlaces) {
    auto index = filled("GMM8x3,Flat");
    ASSERT_FALSE(extract_gmm(index.get())->cells.empty());
    auto refused = [&](auto change) { return !taken_changed(*index, change); };
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.partner[3] = 8; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.partner[3] = -1; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.offsets[1] = 1u << 31; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.a[0] = NAN; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.cells.gap[5] = HUGE_VALF; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.variances[0] = 0; }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.variances.pop_back(); }));
    EXPECT_TRUE(refused([](IVFGMM& g) { g.probe_order = ProbeOrder(9); }));
    EXPECT_FALSE(refused([](IVFGMM&) {}));
    // The trailer of another kind of index.
    auto other = filled("GMM8,PQ32x4fs");
    EXPECT_FALSE(taken(*other, serialize_gmm(index.get())));
    EXPECT_FALSE(taken(*index, serialize_gmm(filled("GMM9,Flat").get())));
}

TEST(Trailer, CodesAloneInWrongPlaces) {
    for (const char* description : {"GMM8x3,RaBitQ2", "GMM8x1,RaBitQ4"}) {
        auto index = filled(description);
        auto& alone = dynamic_cast<IndexIVFRaBitQGMM&>(*index);
        alone.set_direct_map_type(faiss::DirectMap::Hashtable);
        auto refused = [&](const std::function<void(IVFGMM&)>& change) {
            return !taken_changed(alone, change);
        };
        EXPECT_FALSE(refused([](auto&) {}));
        EXPECT_TRUE(refused([](auto& i) { i.cells.partner[3] = 8; }));
        EXPECT_TRUE(refused([](auto& i) { i.cells.offsets[1] = 1u << 31; }));
        EXPECT_TRUE(refused([](auto& i) { i.cells.a[2] = 2; }));
        EXPECT_TRUE(refused([](auto& i) { i.cells.codes.error = NAN; }));
        EXPECT_TRUE(refused([](auto& i) { i.cells.codes.shape.bits = 3; }));
        EXPECT_TRUE(
                refused([](auto& i) { i.cells.codes.blocks[1].resize(0); }));
        EXPECT_TRUE(refused([](auto& i) { // A of the first entry
            const float nan = NAN;
            memcpy(i.cells.codes.blocks[1].data() +
                           i.cells.codes.shape.groups * 32,
                   &nan,
                   sizeof(nan));
        }));
        EXPECT_TRUE(refused([](auto& i) { // entries without codes
            uint32_t* o = i.cells.list_offsets(2);
            o[i.cells.cells_per_list]--;
        }));
        EXPECT_TRUE(refused([](auto& i) { i.cells.undivide(); }));
        // the shell of another index, or none
        EXPECT_FALSE(taken(*filled("GMM9x3,RaBitQ2"), serialize_gmm(&alone)));
        EXPECT_FALSE(taken(*filled("GMM8x3,Flat"), serialize_gmm(&alone)));
        EXPECT_FALSE(taken(*filled("GMM8x3,SQ8"), serialize_gmm(&alone)));
        EXPECT_FALSE(taken(alone, serialize_gmm(filled("GMM8,Flat").get())));
    }
}

/// Whether a stock index that was changed takes the trailer that was written
/// for it before; its own is taken.
bool taken_by(
        const faiss::Index& index,
        const std::function<void(faiss::Index*)>& change) {
    return taken(index, serialize_gmm(&index), change);
}

/// A quantizer of another shape in the place of the index's own.
void replace_quantizer(faiss::IndexIVF& ivf, faiss::Index* quantizer) {
    delete ivf.quantizer;
    ivf.quantizer = quantizer;
    ivf.own_fields = true;
}

faiss::Index* flat_of(
        size_t d, size_t n, faiss::MetricType metric = faiss::METRIC_L2) {
    auto flat = std::make_unique<faiss::IndexFlat>(d, metric);
    std::vector<float> x(n * d);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = float(i % 17);
    }
    flat->add(n, x.data());
    return flat.release();
}

faiss::Index* graph_of(size_t d, size_t n) {
    auto graph = std::make_unique<faiss::IndexHNSWFlat>(d, 4);
    const std::unique_ptr<faiss::Index> flat(flat_of(d, n));
    graph->add(n, static_cast<faiss::IndexFlat&>(*flat).get_xb());
    return graph.release();
}

TEST(Trailer, QuantizersOfAnotherShape) {
    const size_t d = 128;
    for (const char* description :
         {"GMM8x3,Flat",
          "GMM8x3,SQ8",
          "GMM8x3,PQ16x4",
          "GMM8,PQ32x4fs",
          "GMM8x3,RaBitQ4"}) {
        SCOPED_TRACE(description);
        const auto index = filled(description);
        auto with = [&](faiss::Index* quantizer) {
            return taken_by(*index, [&](faiss::Index* root) {
                replace_quantizer(
                        dynamic_cast<faiss::IndexIVF&>(*root), quantizer);
            });
        };
        EXPECT_TRUE(taken_by(*index, [](faiss::Index*) {}));
        EXPECT_TRUE(with(flat_of(d, 8)));
        for (size_t other : {1, 64, 1024}) {
            EXPECT_FALSE(with(flat_of(other, 8))) << "d = " << other;
            EXPECT_FALSE(with(graph_of(other, 8))) << "d = " << other;
        }
        for (size_t n : {0, 4, 9, 4000}) {
            EXPECT_FALSE(with(flat_of(d, n))) << n << " means";
        }
        EXPECT_FALSE(with(graph_of(d, 9)));
        EXPECT_FALSE(with(flat_of(d, 8, faiss::METRIC_INNER_PRODUCT)));
        EXPECT_FALSE(with(nullptr));
        auto nan = flat_of(d, 8);
        reinterpret_cast<float*>(
                static_cast<faiss::IndexFlat*>(nan)->codes.data())[3] = NAN;
        EXPECT_FALSE(with(nan));
        auto sq = std::make_unique<faiss::IndexScalarQuantizer>(
                d, faiss::ScalarQuantizer::QT_fp16);
        const std::unique_ptr<faiss::Index> x(flat_of(d, 8));
        sq->add(8, static_cast<faiss::IndexFlat&>(*x).get_xb());
        EXPECT_FALSE(with(sq.release()));
    }
}

TEST(Trailer, GraphsThatLeadNowhere) {
    const auto index = filled("GMM8x3_HNSW4,Flat");
    auto with = [&](const std::function<void(faiss::IndexHNSW&)>& change) {
        return taken_by(*index, [&](faiss::Index* root) {
            auto& ivf = dynamic_cast<faiss::IndexIVF&>(*root);
            change(dynamic_cast<faiss::IndexHNSW&>(*ivf.quantizer));
        });
    };
    EXPECT_TRUE(with([](auto&) {}));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.entry_point = 8; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.entry_point = -1; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.max_level = 30; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.neighbors[2] = 8; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.neighbors[2] = -2; }));
    EXPECT_FALSE(with([](auto& q) {
        q.hnsw.neighbors.resize(q.hnsw.neighbors.size() - 1);
    }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.offsets[3] = 1u << 30; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.offsets.pop_back(); }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.levels[3] = 200; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.levels.pop_back(); }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.levels.clear(); }));
    EXPECT_FALSE(
            with([](auto& q) { q.hnsw.cum_nneighbor_per_level.back() = -5; }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.cum_nneighbor_per_level.clear(); }));
    EXPECT_FALSE(with([](auto& q) { q.hnsw.efSearch = -1; }));
    EXPECT_FALSE(with([](auto& q) {
        delete q.storage;
        q.storage = flat_of(64, 8);
    }));
    EXPECT_FALSE(with([](auto& q) {
        delete q.storage;
        q.storage = flat_of(128, 2);
    }));
}

TEST(Trailer, CodecsAndListsOfAnotherShape) {
    using SQ = faiss::IndexIVFScalarQuantizer;
    using PQ = faiss::IndexIVFPQ;
    for (const char* description :
         {"GMM8x3,Flat", "GMM8x3,SQ8", "GMM8x3,PQ16x4"}) {
        SCOPED_TRACE(description);
        const auto index = filled(description);
        auto with = [&](const std::function<void(faiss::IndexIVF&)>& change) {
            return taken_by(*index, [&](faiss::Index* root) {
                change(dynamic_cast<faiss::IndexIVF&>(*root));
            });
        };
        EXPECT_FALSE(with([](auto& ivf) { ivf.d = 64; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.d = -1; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.ntotal = -5; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.ntotal = 100; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.ntotal = 1 << 30; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.is_trained = false; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.code_size++; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.nlist = 9; }));
        EXPECT_FALSE(with([](auto& ivf) { ivf.nlist = 0; }));
        EXPECT_FALSE(with(
                [](auto& ivf) { ivf.metric_type = faiss::MetricType(5); }));
        EXPECT_FALSE(with([](auto& ivf) {
            ivf.metric_type = faiss::METRIC_INNER_PRODUCT;
        }));
        auto with_lists = [&](size_t nlist, size_t code_size) {
            return with([&](auto& ivf) {
                delete ivf.invlists;
                ivf.invlists = new faiss::ArrayInvertedLists(nlist, code_size);
            });
        };
        const size_t size = dynamic_cast<faiss::IndexIVF&>(*index).code_size;
        EXPECT_FALSE(with_lists(8, size)); // and not what the cells hold
        EXPECT_FALSE(with_lists(4, size));
        EXPECT_FALSE(with_lists(8, size + 1));
        EXPECT_FALSE(with([](auto& ivf) { ivf.invlists->resize(3, 5); }));
        EXPECT_FALSE(with([](auto& ivf) {
            ivf.direct_map.type = faiss::DirectMap::Array;
        }));
        EXPECT_FALSE(with([](auto& ivf) {
            ivf.direct_map.type = faiss::DirectMap::Hashtable;
            ivf.direct_map.hashtable[5] = faiss::lo_build(3, 1 << 20);
        }));
        if (auto* sq = dynamic_cast<SQ*>(index.get())) {
            ASSERT_GT(sq->sq.trained.size(), 0u);
            auto with_sq = [&](auto change) {
                return with([&](faiss::IndexIVF& ivf) {
                    change(dynamic_cast<SQ&>(ivf).sq);
                });
            };
            EXPECT_FALSE(with_sq([](auto& q) { q.trained.clear(); }));
            EXPECT_FALSE(with_sq([](auto& q) { q.trained[3] = NAN; }));
            EXPECT_FALSE(with_sq([](auto& q) { q.d = 64; }));
            EXPECT_FALSE(with_sq([](auto& q) {
                q.qtype = faiss::ScalarQuantizer::QT_4bit;
            }));
        }
        if (dynamic_cast<PQ*>(index.get())) {
            auto with_pq = [&](auto change) {
                return with([&](faiss::IndexIVF& ivf) {
                    change(dynamic_cast<PQ&>(ivf).pq);
                });
            };
            EXPECT_FALSE(with_pq([](auto& q) { q.centroids.pop_back(); }));
            EXPECT_FALSE(with_pq([](auto& q) { q.centroids[3] = NAN; }));
            EXPECT_FALSE(with_pq([](auto& q) { q.M = 0; }));
            EXPECT_FALSE(with_pq([](auto& q) { q.M = 32; }));
            EXPECT_FALSE(with_pq([](auto& q) { q.nbits = 5; }));
            EXPECT_FALSE(with_pq(
                    [](auto& q) { q = faiss::ProductQuantizer(64, 16, 4); }));
        }
    }
}

TEST(Trailer, WrappersOfAnotherShape) {
    auto with = [](const faiss::Index& index, auto change) {
        using Wrapper = std::remove_reference_t<decltype(*change.first)>;
        return taken_by(index, [&](faiss::Index* root) {
            change.second(dynamic_cast<Wrapper&>(*root));
        });
    };
    auto a = [](auto* type, auto f) { return std::pair(type, f); };
    faiss::IndexIDMap* map = nullptr;
    faiss::IndexRefine* refine = nullptr;
    faiss::IndexPreTransform* pre = nullptr;

    const Vectors base = sift_base(1500);
    // The factory leaves an IDMap out; files may have one.
    faiss::IndexIDMap map_of_gmm(faiss_ext::index_factory(128, "GMM8x3,Flat"));
    map_of_gmm.own_fields = true;
    faiss::Index* mapped = &map_of_gmm;
    mapped->train(base.n, base.x.data());
    std::vector<idx_t> ids(600, 12);
    mapped->add_with_ids(600, base.x.data(), ids.data());
    EXPECT_TRUE(with(*mapped, a(map, [](auto&) {})));
    EXPECT_FALSE(with(*mapped, a(map, [](auto& m) { m.id_map.pop_back(); })));
    EXPECT_FALSE(with(*mapped, a(map, [](auto& m) { m.d = 64; })));
    EXPECT_FALSE(with(*mapped, a(map, [](auto& m) { m.ntotal = 3; })));
    EXPECT_FALSE(with(*mapped, a(map, [](auto& m) {
        const idx_t id = 600;
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*m.index);
        ivf.invlists->update_entry(
                0, 0, id, ivf.invlists->get_single_code(0, 0));
    })));

    auto refined = filled("GMM8x3,SQ8,RFlat");
    EXPECT_TRUE(with(*refined, a(refine, [](auto&) {})));
    EXPECT_FALSE(with(*refined, a(refine, [](auto& r) {
        delete r.refine_index;
        r.refine_index = flat_of(128, 100);
    })));
    EXPECT_FALSE(with(*refined, a(refine, [](auto& r) {
        delete r.refine_index;
        r.refine_index = flat_of(64, r.ntotal);
    })));
    EXPECT_FALSE(with(*refined, a(refine, [](auto& r) { r.k_factor = NAN; })));

    auto reduced = filled("PCA64,GMM8x3,Flat");
    EXPECT_TRUE(with(*reduced, a(pre, [](auto&) {})));
    EXPECT_FALSE(with(*reduced, a(pre, [](auto& p) { p.d = 100; })));
    EXPECT_FALSE(with(*reduced, a(pre, [](auto& p) { p.chain.clear(); })));
    EXPECT_FALSE(with(
            *reduced, a(pre, [](auto& p) { p.chain[0]->is_trained = false; })));
    EXPECT_FALSE(with(*reduced, a(pre, [](auto& p) {
        dynamic_cast<faiss::LinearTransform&>(*p.chain[0]).A.pop_back();
    })));
}

TEST(Trailer, NumbersThatAreNone) {
    auto index = filled("GMM8x3,Flat");
    const Calibration& kept = extract_gmm(index.get())->calibration;
    ASSERT_TRUE(kept.fitted);
    auto refused = [&](const std::function<void(Calibration&)>& change) {
        return !taken_changed(
                *index, [&](IVFGMM& g) { change(g.calibration); });
    };
    EXPECT_FALSE(refused([](Calibration&) {}));
    EXPECT_TRUE(refused([](Calibration& c) { c.k = 0; }));
    EXPECT_TRUE(refused([](Calibration& c) { c.k = size_t(1) << 62; }));
    EXPECT_TRUE(refused([](Calibration& c) { c.ntotal = size_t(1) << 62; }));
    EXPECT_TRUE(refused([](Calibration& c) { // times d it is 0
        c.nq = size_t(1) << 61;
        c.own_queries = false;
    }));
    EXPECT_TRUE(refused([](Calibration& c) {
        c.nq = 2;
        c.own_queries = false;
        c.queries.assign(2 * 128, NAN);
    }));
    EXPECT_TRUE(refused([](Calibration& c) { c.curves.clear(); }));
    ASSERT_GE(kept.curves.size(), 2u);
    for (float wrong : {NAN, -3.0f, HUGE_VALF}) {
        for (float Calibration::Costs::*cost :
             {&Calibration::Costs::query,
              &Calibration::Costs::code,
              &Calibration::Costs::distance}) {
            EXPECT_TRUE(
                    refused([&](Calibration& c) { c.costs.*cost = wrong; }));
        }
        EXPECT_TRUE(refused([&](Calibration& c) { c.norm2 = wrong; }));
        for (size_t i = 0; i < kept.curves.size(); i++) {
            for (float Calibration::Point::*number :
                 {&Calibration::Point::budget,
                  &Calibration::Point::bound,
                  &Calibration::Point::recall,
                  &Calibration::Point::codes,
                  &Calibration::Point::distances,
                  &Calibration::Point::cost,
                  &Calibration::Point::reach}) {
                EXPECT_TRUE(refused([&](Calibration& c) {
                    c.curves[i].points[0].*number = wrong;
                }));
            }
        }
    }
    EXPECT_TRUE(refused([](Calibration& c) { c.curves[0].points.clear(); }));
    EXPECT_TRUE(refused([](Calibration& c) { c.curves[0].k = 0; }));
    EXPECT_TRUE(refused([](Calibration& c) { c.curves[1].k = c.curves[0].k; }));
    EXPECT_TRUE(refused(
            [](Calibration& c) { c.curves.back().k = size_t(1) << 62; }));
    auto with = [&](const std::function<void(IVFGMM&)>& change) {
        return taken_changed(*index, change);
    };
    EXPECT_TRUE(with([](IVFGMM&) {}));
    EXPECT_FALSE(with([](IVFGMM& g) { g.probe_mass = NAN; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.target_recall = -1; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.max_assign = 0; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.max_assign = 2; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.max_assign = size_t(1) << 62; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.gap[0] = NAN; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.norm2 = NAN; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.a[1] = 1.5f; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.codes.error = NAN; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.codes.shape.bits = 3; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.codes.blocks[0].resize(0); }));
    EXPECT_FALSE(with([](IVFGMM& g) { // a term of an entry
        std::vector<uint8_t> record(g.cells.codes.shape.entry_bytes());
        const float none = NAN;
        memcpy(&record[record.size() - 4], &none, 4);
        g.cells.codes.set(0, 0, record.data());
    }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.offsets[0] = 1; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.cells.fitted_n = size_t(1) << 63; }));
    EXPECT_FALSE(with([](IVFGMM& g) { g.log_weights[0] = 5; }));
    EXPECT_FALSE(with([](IVFGMM& g) {
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(g);
        ivf.max_codes = size_t(-1); // wraps round where it is added to
    }));
}

} // namespace
} // namespace faiss_ext
