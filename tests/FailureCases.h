#pragma once

// Calls of an index, which fail in FailuresTest at every place.

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "FailingNew.h"
#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/ondisk.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 8, kDim = 8;

const Vectors& base() {
    static const Vectors data = uniform(3000, kDim, 7);
    return data;
}
/// What is done to what.
struct Case {
    std::string kind; ///< for the factory
    std::string name;
    std::function<void(faiss::IndexIVF&)> act;
    size_t stored = 600;
    size_t max_assign = 1;
    faiss::DirectMap::Type map = faiss::DirectMap::NoMap;
    /// Steps of its own, each whole: what was done before it failed may stay.
    bool by_steps = false;
    bool trained = true;
    bool on_disk = false;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.kind << ", " << c.name;
}

/// Has its lists in a file.
void put_on_disk(faiss::IndexIVF& ivf) {
    static const TemporaryFolder folder;
    auto* disk = new faiss::OnDiskInvertedLists(
            ivf.nlist, ivf.code_size, folder.file("lists").c_str());
    for (size_t i = 0; i < ivf.nlist; i++) {
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
        faiss::InvertedLists::ScopedCodes codes(ivf.invlists, i);
        disk->add_entries(
                i, ivf.invlists->list_size(i), ids.get(), codes.get());
    }
    ivf.replace_invlists(disk, true);
}

std::unique_ptr<faiss::IndexIVF> make(const Case& c) {
    std::unique_ptr<faiss::Index> index(index_factory(kDim, c.kind.c_str()));
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
    auto& gmm = dynamic_cast<IVFGMM&>(*ivf);
    ivf->cp.niter = 2;
    if (auto pq = dynamic_cast<faiss::IndexIVFPQ*>(ivf)) {
        pq->pq.cp.niter = 2;
    }
    gmm.max_assign = c.max_assign;
    if (c.trained) {
        ivf->train(1000, base().x.data());
        if (c.kind != "GMM8,Flat" || c.name != "calibrate") {
            gmm.calibration.costs = {3000, 1, 30, 10}; // measuring takes long
        }
        ivf->add(c.stored, base().x.data());
        ivf->set_direct_map_type(c.map);
    }
    index.release();
    return std::unique_ptr<faiss::IndexIVF>(ivf);
}

/// As clone_index, but lists in a file are in the same one.
std::unique_ptr<faiss::Index> copy_of(const faiss::Index& index) {
    return read_bytes(written(index));
}

std::unique_ptr<faiss::IndexIVF> copy_of(
        const faiss::IndexIVF& index, const Case& c) {
    if (!c.trained) {
        return make(c);
    }
    std::unique_ptr<faiss::Index> out = copy_of(index);
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(out.release());
    return std::unique_ptr<faiss::IndexIVF>(ivf);
}

std::vector<Case> cases() {
    const float* x = base().x.data();
    const auto hash = faiss::DirectMap::Hashtable;
    const auto array = faiss::DirectMap::Array;
    using Index = faiss::IndexIVF;
    std::vector<Case> out;
    auto some_ids = [](size_t n) {
        std::vector<idx_t> ids(n);
        for (size_t i = 0; i < n; i++) {
            ids[i] = 7 * i;
        }
        return ids;
    };
    auto remove = [=](Index& i) {
        const auto ids = some_ids(60);
        i.remove_ids(faiss::IDSelectorBatch(ids.size(), ids.data()));
    };
    auto remove_one = [](Index& i) {
        const idx_t id = 17;
        i.remove_ids(faiss::IDSelectorArray(1, &id));
    };
    auto update = [=](Index& i) {
        const auto ids = some_ids(40);
        i.update_vectors(ids.size(), ids.data(), base().row(2000));
    };
    auto add_ids = [=](Index& i) {
        std::vector<idx_t> ids(30);
        for (size_t r = 0; r < ids.size(); r++) {
            ids[r] = 5000 + 3 * r;
        }
        i.add_with_ids(ids.size(), base().row(1000), ids.data());
    };
    auto search = [=](Index& i) { find(i, rows_of(base(), 0, 10), 5); };
    auto range_search = [=](Index& i) {
        faiss::RangeSearchResult result(10);
        i.range_search(10, x, 0.5f, &result);
    };
    auto calibrate = [](Index& i) {
        dynamic_cast<IVFGMM&>(i).calibrate(50, nullptr, 5);
    };
    auto maintain = [](Index& i) {
        const bool was = counting.exchange(false);
        for (size_t r = 0; r < 1200; r += 10) { // its lists double
            i.add(10, base().row(r));
        }
        counting = was;
        dynamic_cast<IVFGMM&>(i).maintain();
    };
    auto write = [](Index& i) {
        faiss::VectorIOWriter writer;
        faiss_ext::write_index(&i, &writer);
    };
    auto read = [](Index& i) {
        const bool was = counting.exchange(false);
        faiss::VectorIOWriter writer;
        faiss_ext::write_index(&i, &writer);
        faiss::VectorIOReader reader;
        reader.data = std::move(writer.data);
        counting = was;
        std::unique_ptr<faiss::Index> out(
                faiss_ext::read_index(static_cast<faiss::IOReader*>(&reader)));
        counting = false; // what it is destroyed with is not a call of ours
    };
    auto merge = [](Index& i) {
        static std::unique_ptr<faiss::Index> other;
        const bool was = counting.exchange(false);
        other = copy_of(i);
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*other);
        ivf.replace_invlists( // not those of i, if they are in a file
                new faiss::ArrayInvertedLists(ivf.nlist, ivf.code_size),
                true);
        other->reset();
        other->add(200, base().row(1500));
        counting = was;
        i.merge_from(*other, 5000);
    };
    auto merge_parts = [](Index& i) {
        static const TemporaryFolder folder;
        const std::string part = folder.file("part"),
                          lists = folder.file("lists"), there = "another file";
        const bool was = counting.exchange(false);
        const auto filled = copy_of(i);
        filled->add(300, base().row(0));
        faiss_ext::write_index(filled.get(), part.c_str());
        std::filesystem::remove(lists); // it could be mapped
        std::ofstream(lists) << there;
        counting = was;
        try {
            merge_ondisk(&i, {part, part}, lists, true);
        } catch (const std::exception& e) {
            counting = false;
            if (std::string(e.what()).find("are in") != std::string::npos) {
                throw;
            }
            std::ifstream file(lists);
            const std::string now(
                    (std::istreambuf_iterator<char>(file)),
                    std::istreambuf_iterator<char>());
            EXPECT_EQ(now, there);
            throw;
        }
    };
    auto optimize = [](Index& i) { dynamic_cast<IVFGMM&>(i).optimize(); };
    auto search_by_target = [](Index& i) {
        SearchParametersIVFGMM params;
        params.target_recall = 0.9f;
        find(i, rows_of(base(), 0, 10), 5, &params);
    };
    auto add_few = [](Index& i) { i.add(100, base().row(900)); };
    for (const char* kind : {"GMM8,Flat", "GMM8,PQ4x4", "GMM8,SQ8"}) {
        out.push_back({kind, "train", [=](Index& i) { i.train(1000, x); }});
        out.back().trained = false;
        out.push_back({kind, "first add", [=](Index& i) { i.add(700, x); }, 0});
        out.push_back({kind, "add one", [=](Index& i) {
                           i.add(1, base().row(900));
                       }});
        out.push_back({kind, "add few", [=](Index& i) {
                           i.add(100, base().row(900));
                       }});
        out.push_back({kind, "add many", [=](Index& i) {
                           i.add(1500, base().row(900));
                       }});
        out.push_back({kind, "search", search});
        out.push_back({kind, "range search", range_search});
        out.push_back({kind, "remove", remove});
        out.push_back({kind, "update by map", update, 600, 1, hash});
        out.push_back({kind, "calibrate", calibrate, 1200});
        out.push_back({kind, "maintain", maintain, 1200});
        out.back().by_steps = true;
        out.push_back({kind, "write", write});
        out.push_back({kind, "read", read});
        out.push_back({kind, "merge", merge});
        out.push_back({kind, "optimize", optimize, 1200});
        out.back().by_steps = true;
        out.push_back({kind, "search by target", search_by_target, 1200});
        out.push_back({kind, "merge parts on disk", merge_parts, 0});
    }
    const char* flat = "GMM8,Flat";
    out.push_back({flat, "add ids", add_ids, 600, 1, hash});
    out.push_back(
            {flat,
             "add to an array",
             [=](Index& i) { i.add(100, base().row(900)); },
             600,
             1,
             array});
    out.push_back({flat, "remove by map", remove, 600, 1, hash});
    out.push_back({flat, "remove one", remove_one, 600, 1, hash});
    out.push_back({flat, "update", update, 600, 1, hash});
    out.push_back({flat, "update an array", update, 600, 1, array});
    out.push_back(
            {flat,
             "reconstruct",
             [=](Index& i) {
                 std::vector<float> v(600 * kDim);
                 i.reconstruct_n(0, 600, v.data());
             },
             600,
             1,
             hash});
    out.push_back({flat, "reset", [](Index& i) { i.reset(); }});
    for (size_t copies : {2, 3}) {
        out.push_back(
                {flat,
                 "copies: first add",
                 [=](Index& i) { i.add(700, x); },
                 0,
                 copies});
        out.push_back(
                {flat,
                 "copies: add",
                 [=](Index& i) { i.add(50, base().row(900)); },
                 600,
                 copies});
        out.push_back({flat, "copies: remove", remove, 600, copies});
        out.push_back({flat, "copies: update", update, 600, copies, hash});
        out.push_back({flat, "copies: search", search, 600, copies});
        out.push_back(
                {flat, "copies: range search", range_search, 600, copies});
        out.push_back({flat, "copies: write", write, 600, copies});
        out.push_back({flat, "copies: read", read, 600, copies});
        out.push_back({flat, "copies: merge", merge, 600, copies});
        out.push_back({flat, "copies: calibrate", calibrate, 1200, copies});
    }
    out.push_back({"GMM8_HNSW8,Flat", "graph: add", [=](Index& i) {
                       i.add(30, base().row(900));
                   }});
    out.push_back({"GMM8_HNSW8,Flat", "graph: search", search});
    out.push_back({"GMM8_HNSW8,Flat", "graph: range search", range_search});
    out.push_back({"GMM8_HNSW8,Flat", "graph: remove", remove});
    out.push_back({"GMM8_HNSW8,Flat", "graph: read", read});
    out.push_back({"GMM8_HNSW8,Flat", "graph: write", write});
    out.push_back({"GMM8_HNSW8,Flat", "graph: merge", merge});
    out.push_back({"GMM8_HNSW8,Flat", "graph: update", update, 600, 1, hash});
    out.push_back({"GMM8_HNSW8,Flat", "graph: calibrate", calibrate, 1200});
    out.push_back({"GMM8_HNSW8,Flat", "graph: maintain", maintain, 1200});
    out.back().by_steps = true;
    out.push_back({"GMM8_HNSW8,Flat", "graph: optimize", optimize, 1200});
    out.back().by_steps = true;
    const std::pair<const char*, std::function<void(Index&)>> calls[] = {
            {"search", search},
            {"range search", range_search},
            {"search by target", search_by_target},
            {"add one", [=](Index& i) { i.add(1, base().row(900)); }},
            {"add few", add_few},
            {"remove", remove},
            {"remove one", remove_one},
            {"update", update},
            {"merge", merge},
            {"calibrate", calibrate},
            {"maintain", maintain},
            {"optimize", optimize},
            {"write", write},
            {"read", read},
    };
    for (const auto& [name, act] : calls) {
        const std::string call = name;
        const auto map = call == "merge" ? faiss::DirectMap::NoMap : hash;
        const bool by_steps = call == "maintain" || call == "optimize";
        const size_t stored = call == "merge" || call == "write" ? 600 : 1200;
        out.push_back({"GMM8,RaBitQ4", call, act, stored, 1, map, by_steps});
        for (const char* kind : {"GMM8,Flat", "GMM8,PQ4x4", "GMM8,SQ8"}) {
            out.push_back(
                    {kind, "on disk: " + call, act, stored, 1, map, by_steps});
            out.back().on_disk = true;
        }
    }
    out.push_back(
            {"GMM8,RaBitQ4", "first add", [=](Index& i) { i.add(700, x); }, 0});
    out.push_back({flat, "copy a subset out", [=](Index& i) {
                       faiss::IndexFlatL2 means(kDim);
                       faiss::IndexIVFFlat stock(&means, kDim, kLists);
                       i.copy_subset_to(stock, subset_type_t(0), 0, 300);
                   }});
    return out;
}

} // namespace
} // namespace faiss_ext
