// Whatever was done to an index: it is written and can be read, or it is
// refused when it is written; and never written and then not readable.

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <faiss/IVFlib.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>

#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr int kD = 8;
/// Below the number from which on an index calibrates itself.
constexpr size_t kN = 600;

/// The first dimensions of real vectors.
const Vectors& base() {
    static const Vectors data = [] {
        const Vectors sift = sift_base(2000);
        Vectors out{sift.n, kD, std::vector<float>(sift.n * kD)};
        for (size_t i = 0; i < sift.n; i++) {
            std::copy_n(sift.row(i), kD, &out.x[i * kD]);
        }
        return out;
    }();
    return data;
}

struct State {
    faiss::Index* index;
    faiss::IndexIVF* ivf;
    IVFGMM* gmm;

    explicit State(faiss::Index* index)
            : index(index),
              ivf(dynamic_cast<faiss::IndexIVF*>(*unwrap(&index))),
              gmm(extract_gmm(index)) {}

    void add(size_t begin, size_t n) const {
        index->add(n, base().row(begin));
    }
    size_t remove(idx_t begin, idx_t end) const {
        return index->remove_ids(faiss::IDSelectorRange(begin, end));
    }
};

using Change = std::function<void(State)>;

std::unique_ptr<faiss::Index> make(
        const char* description, const Change& before = {}) {
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(kD, description));
    train_quickly(index.get());
    if (before) {
        before(State(index.get()));
    }
    index->train(kN, base().x.data());
    index->add(kN, base().x.data());
    return index;
}

/// What stock FAISS reads from the index's file: the same means and codec.
std::unique_ptr<faiss::Index> stock_of(const faiss::Index& index) {
    return read_by_faiss(written(index));
}

/// Empty if the index was written and is the same when it is read; what
/// write_index said if it refused.
std::string written_and_read(faiss::Index* index) {
    faiss::VectorIOWriter writer;
    std::string refused;
    try {
        faiss_ext::write_index(index, &writer);
    } catch (const faiss::FaissException& e) {
        refused = e.what();
    }
    if (!refused.empty()) {
        EXPECT_THROW(clone_index(index), faiss::FaissException);
        return refused;
    }
    faiss::VectorIOReader reader;
    reader.data = writer.data;
    std::unique_ptr<faiss::Index> back;
    EXPECT_NO_THROW(back.reset(
            faiss_ext::read_index(static_cast<faiss::IOReader*>(&reader))));
    if (!back) {
        return refused;
    }
    EXPECT_EQ(back->ntotal, index->ntotal);
    if (!index->is_trained) {
        return refused;
    }
    constexpr size_t nq = 50, k = 5;
    std::vector<float> distances[2];
    std::vector<idx_t> ids[2];
    const faiss::Index* each[] = {index, back.get()};
    for (int i = 0; i < 2; i++) {
        distances[i].resize(nq * k);
        ids[i].resize(nq * k);
        each[i]->search(
                nq, base().row(1500), k, distances[i].data(), ids[i].data());
    }
    EXPECT_EQ(ids[1], ids[0]);
    EXPECT_EQ(distances[1], distances[0]);
    return refused;
}

const char* const kKinds[] = {"GMM16x4,Flat", "GMM16,PQ4x4", "GMM16x1,SQ8"};

TEST(IndexIOStates, CallsThatChangeAnIndex) {
    const std::pair<const char*, Change> changes[] = {
            {"none", [](State) {}},
            {"add one", [](State s) { s.add(1300, 1); }},
            {"add many", [](State s) { s.add(1200, 300); }},
            {"add ids",
             [](State s) {
                 const idx_t ids[] = {-5, idx_t(1) << 62, 7};
                 s.index->add_with_ids(3, base().row(3), ids);
             }},
            {"add to no list",
             [](State s) {
                 const idx_t homes[] = {-1, 3}, ids[] = {5000, 5001};
                 s.ivf->add_core(2, base().row(3), ids, homes);
             }},
            {"remove some", [](State s) { EXPECT_GT(s.remove(3, 500), 0u); }},
            {"remove all", [](State s) { s.remove(0, kN); }},
            {"remove all, add",
             [](State s) {
                 s.remove(0, kN);
                 s.add(0, 40);
             }},
            {"reset", [](State s) { s.index->reset(); }},
            {"reset, add",
             [](State s) {
                 s.index->reset();
                 s.add(0, 500);
             }},
            {"optimize", [](State s) { s.gmm->optimize(); }},
            {"remove, optimize",
             [](State s) {
                 s.remove(0, 400);
                 s.gmm->optimize();
             }},
            {"calibrate",
             [](State s) { s.gmm->calibrate(40, base().row(1400), 5); }},
            {"array map", [](State s) { s.ivf->make_direct_map(); }},
            {"hashtable, update",
             [](State s) {
                 s.ivf->set_direct_map_type(faiss::DirectMap::Hashtable);
                 const idx_t ids[] = {3, 400};
                 s.ivf->update_vectors(2, ids, base().row(1900));
                 s.remove(20, 30);
                 s.add(1990, 3);
             }},
            {"array map, update, add",
             [](State s) {
                 s.ivf->make_direct_map();
                 const idx_t ids[] = {3, 400};
                 s.ivf->update_vectors(2, ids, base().row(1900));
                 s.add(1990, 3);
             }},
            {"merge",
             [](State s) {
                 const auto other = clone_index(s.index);
                 s.index->merge_from(*other, kN);
             }},
            {"merged away",
             [](State s) {
                 const auto other = clone_index(s.index);
                 other->merge_from(*s.index, kN);
             }},
            {"copy of a subset",
             [](State s) {
                 const auto other = clone_index(s.index);
                 s.remove(0, 100);
                 dynamic_cast<faiss::IndexIVF&>(*other).copy_subset_to(
                         *s.ivf, subset_type_t(0), 0, 100);
             }},
            {"settings",
             [](State s) {
                 s.gmm->target_recall = 0.9f;
                 s.gmm->probe_mass = 0.5f;
                 s.gmm->probe_order = ProbeOrder::codes;
                 s.gmm->assign_ratio = INFINITY;
                 s.ivf->max_codes = 700;
                 s.ivf->nprobe = size_t(1) << 40;
             }},
            {"codes of other bits from here on, add",
             [](State s) {
                 s.gmm->code_bits = 1;
                 s.add(1300, 50);
             }},
            {"codes of other bits",
             [](State s) {
                 s.gmm->code_bits = 1;
                 s.gmm->optimize();
             }},
            {"no cells from here on",
             [](State s) {
                 s.gmm->cells_per_list = 1;
                 s.add(1300, 50);
                 s.gmm->optimize();
             }},
            {"cells cleared", [](State s) { s.gmm->cells = PairCells(); }},
            {"calibration cleared",
             [](State s) { s.gmm->calibration = Calibration(); }},
            {"lists replaced by empty ones, reset",
             [](State s) {
                 s.ivf->replace_invlists(
                         new faiss::ArrayInvertedLists(16, s.ivf->code_size),
                         true);
                 s.index->reset();
             }},
    };
    std::vector<std::string> kinds(std::begin(kKinds), std::end(kKinds));
    kinds.insert(kinds.end(), {"GMM16_HNSW8,Flat", "GMM16,RaBitQ4"});
    for (const std::string& kind : kinds) {
        for (const auto& [name, change] : changes) {
            SCOPED_TRACE(kind + ": " + name);
            const auto index = make(kind.c_str());
            change(State(index.get()));
            const std::string refused = written_and_read(index.get());
            const bool codes_are_gone =
                    kind.ends_with("RaBitQ4") && !strcmp(name, "cells cleared");
            EXPECT_EQ(refused.empty(), !codes_are_gone) << refused;
        }
    }
}

TEST(IndexIOStates, CopiesOfBorderVectors) {
    for (size_t max_assign : {2, 3, 16}) {
        SCOPED_TRACE(max_assign);
        const Change set = [&](State s) { s.gmm->max_assign = max_assign; };
        for (float threshold : {0.0f, 1e-6f}) {
            const auto index = make("GMM16,Flat", [&](State s) {
                set(s);
                s.gmm->assign_threshold = threshold;
            });
            EXPECT_EQ(written_and_read(index.get()), "");
            State(index.get()).remove(0, 300);
            EXPECT_EQ(written_and_read(index.get()), "");
            State(index.get()).add(0, 10);
            EXPECT_EQ(written_and_read(index.get()), "");
        }
        const auto other = make("GMM16,Flat", set);
        State(other.get()).remove(0, kN);
        EXPECT_EQ(written_and_read(other.get()), "");
        other->reset();
        State(other.get()).gmm->max_assign = 1;
        State(other.get()).add(0, 500);
        EXPECT_EQ(written_and_read(other.get()), "");
    }
}

TEST(IndexIOStates, EntriesThatStockFaissAdded) {
    for (const char* kind : kKinds) {
        for (bool by_lists : {false, true}) {
            SCOPED_TRACE(kind);
            const auto index = make(kind);
            State s(index.get());
            const auto stock = stock_of(*index);
            auto& from = dynamic_cast<faiss::IndexIVF&>(*stock);
            stock->reset();
            std::vector<idx_t> ids(300);
            for (size_t i = 0; i < ids.size(); i++) {
                ids[i] = 10000 + i;
            }
            stock->add_with_ids(ids.size(), base().row(1600), ids.data());
            if (by_lists) {
                s.ivf->invlists->merge_from(from.invlists, 0);
                s.ivf->ntotal += ids.size();
            } else {
                from.copy_subset_to(*s.ivf, subset_type_t(0), 10000, 10300);
            }
            // Taken in by writing: nothing searched or added before.
            EXPECT_EQ(written_and_read(index.get()), "");
            EXPECT_EQ(index->ntotal, idx_t(kN + ids.size()));
            const auto back = clone_index(index.get());
            s = State(back.get());
            s.ivf->nprobe = s.ivf->nlist;
            float distance;
            idx_t id;
            back->search(1, base().row(1700), 1, &distance, &id);
            if (std::string(kind).ends_with("Flat")) {
                EXPECT_EQ(distance, 0);
            }
            s.add(1900, 20);
            EXPECT_EQ(written_and_read(back.get()), "");
        }
    }
}

TEST(IndexIOStates, WhatDoesNotFitTogetherIsRefused) {
    const auto refused = [](const char* part, const Change& change) {
        const auto index = make("GMM16x4,Flat");
        change(State(index.get()));
        EXPECT_NE(written_and_read(index.get()).find(part), std::string::npos)
                << part << ": " << written_and_read(index.get());
    };
    refused("max_assign = 2", [](State s) { s.gmm->max_assign = 2; });
    refused("max_codes", [](State s) { s.ivf->max_codes = size_t(-1); });
    refused("parallel_mode", [](State s) { s.ivf->parallel_mode = 7; });
    refused("max_assign = 0", [](State s) { s.gmm->max_assign = 0; });
    refused("max_assign = 1844674407370955161", [](State s) {
        s.index->reset();
        s.gmm->max_assign = size_t(-1);
    });
    refused("probe order 99",
            [](State s) { s.gmm->probe_order = ProbeOrder(99); });
    refused("probe_mass = nan", [](State s) { s.gmm->probe_mass = NAN; });
    refused("target_recall = 1", [](State s) { s.gmm->target_recall = 1; });
    refused("variances",
            [](State s) { s.gmm->covariance = gmm::Covariance::diagonal; });
    refused("ntotal = 500", [](State s) { s.ivf->ntotal = 500; });
    refused("optimize()", [](State s) {
        s.ivf->faiss::IndexIVF::remove_ids(faiss::IDSelectorRange(0, 100));
    });
    refused("optimize()", [](State s) {
        s.ivf->replace_invlists(
                new faiss::ArrayInvertedLists(16, s.ivf->code_size), true);
    });
    refused("number of inverted lists", [](State s) {
        delete s.ivf->invlists;
        s.ivf->invlists = new faiss::ArrayInvertedLists(4, s.ivf->code_size);
    });
    refused("code size", [](State s) { s.ivf->code_size = 8; });
    refused("metric is 5",
            [](State s) { s.ivf->metric_type = faiss::MetricType(5); });
    refused("metric of the quantizer",
            [](State s) { s.ivf->metric_type = faiss::METRIC_INNER_PRODUCT; });
    refused("d of the quantizer", [](State s) { s.ivf->d = 4; });
    refused("not trained", [](State s) { s.ivf->is_trained = false; });
    refused("number of means",
            [](State s) { s.ivf->quantizer->add(1, base().row(0)); });
    refused("direct map", [](State s) {
        s.ivf->make_direct_map();
        s.ivf->direct_map.array[7] = s.ivf->direct_map.array[8];
    });

    // After a stock removal optimize() helps, as the message says.
    const auto index = make("GMM16x4,Flat");
    State s(index.get());
    s.ivf->faiss::IndexIVF::remove_ids(faiss::IDSelectorRange(0, 100));
    s.gmm->optimize();
    EXPECT_EQ(written_and_read(index.get()), "");

    // Filled with 2, then changed.
    for (size_t now : {1, 3}) {
        const auto copies =
                make("GMM16,Flat", [](State c) { c.gmm->max_assign = 2; });
        State(copies.get()).gmm->max_assign = now;
        EXPECT_NE(written_and_read(copies.get()), "");
    }
}

} // namespace
} // namespace faiss_ext
