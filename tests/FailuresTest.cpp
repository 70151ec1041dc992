// Memory that does not suffice, at every place of every call, and interrupts at
// every check: a call that throws leaves the index as it was, and nothing
// ends the process.
#include "faiss_ext/IndexIVFGMM.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <elf.h>
#include <execinfo.h>
#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"

namespace {

std::atomic<bool> counting = false;
std::atomic<long> allocations = 0, countdown = 0, of_others = 0;

/// The functions of this program, local ones too, by their address in it.
std::map<uint64_t, std::string> functions_of_program() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::vector<char> bytes(
            (std::istreambuf_iterator<char>(file)),
            std::istreambuf_iterator<char>());
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
    const auto* sections =
            reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
    std::map<uint64_t, std::string> out;
    for (size_t i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const char* names =
                bytes.data() + sections[sections[i].sh_link].sh_offset;
        const auto* symbols = reinterpret_cast<const Elf64_Sym*>(
                bytes.data() + sections[i].sh_offset);
        for (size_t j = 0; j < sections[i].sh_size / sizeof(Elf64_Sym); j++) {
            if (ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC) {
                out[symbols[j].st_value] = names + symbols[j].st_name;
            }
        }
    }
    return out;
}

/// Whether code at this address is FAISS's: in its library, or one of its
/// functions where it is linked into this program.
bool of_faiss(const void* address) {
    static const auto functions = functions_of_program();
    Dl_info info;
    if (!dladdr(address, &info)) {
        return false;
    }
    const std::string file = info.dli_fname ? info.dli_fname : "";
    if (file.find("libfaiss") != std::string::npos) {
        return true;
    }
    const auto next =
            functions.upper_bound(uint64_t(address) - uint64_t(info.dli_fbase));
    if (next == functions.begin()) {
        return false;
    }
    const std::string& name = std::prev(next)->second;
    return name.starts_with("_ZN5faiss") || name.starts_with("_ZNK5faiss");
}

/** Whether this allocation is made by FAISS in a parallel region of its own,
 * where an exception ends the process whoever calls: the frame that the OpenMP
 * runtime called last is FAISS's. */
bool in_a_region_of_faiss() {
    static const void* const openmp = [] {
        Dl_info info;
        dladdr(reinterpret_cast<const void*>(&omp_get_max_threads), &info);
        return info.dli_fbase;
    }();
    void* frames[64];
    const int n = backtrace(frames, 64);
    for (int i = 1; i < n; i++) {
        Dl_info info;
        if (dladdr(frames[i], &info) && info.dli_fbase == openmp) {
            return of_faiss(frames[i - 1]);
        }
    }
    return false;
}

void* allocate(size_t size) {
    if (counting.load(std::memory_order_relaxed)) {
        allocations++;
        if (countdown.load() > 0 && --countdown == 0) {
            if (in_a_region_of_faiss()) {
                of_others++;
                countdown = 1; // the next one
            } else {
                throw std::bad_alloc();
            }
        }
    }
    if (void* out = std::malloc(size > 0 ? size : 1)) {
        return out;
    }
    throw std::bad_alloc();
}

} // namespace

void* operator new(size_t size) {
    return allocate(size);
}
void* operator new[](size_t size) {
    return allocate(size);
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete[](void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, size_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, size_t) noexcept {
    std::free(p);
}

namespace faiss_ext {
namespace {

constexpr size_t kLists = 8, kDim = 8;

const Vectors& base() {
    static const Vectors data = uniform(3000, kDim, 7);
    return data;
}

/// All that a call could have changed.
struct Snapshot {
    idx_t ntotal;
    std::vector<std::vector<idx_t>> ids;
    std::vector<std::vector<uint8_t>> codes;
    int map_type;
    std::vector<idx_t> map_array;
    std::map<idx_t, idx_t> map;
    std::vector<uint32_t> offsets;
    std::vector<float> a;
    std::vector<CodeBlocks> code_blocks;
    float code_error;
    std::vector<std::vector<int32_t>> earlier;
    std::string report;
    float norm2;
    std::vector<float> means, variances, log_weights;
    bool trained;

    bool operator==(const Snapshot&) const = default;
};

Snapshot snapshot(const faiss::IndexIVF& ivf) {
    const auto& gmm = dynamic_cast<const IVFGMM&>(ivf);
    Snapshot out;
    out.ntotal = ivf.ntotal;
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t n = ivf.invlists->list_size(i);
        faiss::InvertedLists::ScopedIds ids(ivf.invlists, i);
        faiss::InvertedLists::ScopedCodes codes(ivf.invlists, i);
        out.ids.emplace_back(ids.get(), ids.get() + n);
        out.codes.emplace_back(codes.get(), codes.get() + n * ivf.code_size);
    }
    out.map_type = ivf.direct_map.type;
    out.map_array = ivf.direct_map.array;
    out.map.insert(
            ivf.direct_map.hashtable.begin(), ivf.direct_map.hashtable.end());
    out.offsets = gmm.cells.offsets;
    out.a = gmm.cells.a;
    out.code_blocks = gmm.cells.codes.blocks;
    out.code_error = gmm.cells.codes.error;
    out.earlier = gmm.earlier_lists;
    out.report = gmm.calibration.report();
    out.norm2 = gmm.cells.norm2;
    out.trained = ivf.is_trained;
    if (ivf.is_trained) {
        out.means = gmm.mixture().means;
    }
    out.variances = gmm.variances;
    out.log_weights = gmm.log_weights;
    return out;
}

/// Every entry is once where it says, whatever happened.
void check_sound(const faiss::IndexIVF& ivf) {
    const auto& gmm = dynamic_cast<const IVFGMM&>(ivf);
    size_t primary = 0;
    std::set<idx_t> all;
    for (const auto& [id, at] : entries_by_id(ivf)) {
        all.insert(id);
        primary++;
        ASSERT_LE(at.size(), gmm.max_assign);
    }
    ASSERT_EQ(primary, size_t(ivf.ntotal));
    if (!gmm.cells.empty()) {
        ASSERT_NO_FATAL_FAILURE(check_cells(
                ivf,
                gmm.cells,
                dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)));
    }
    for (const auto& [id, place] : ivf.direct_map.hashtable) {
        ASSERT_TRUE(all.count(id));
        ASSERT_EQ(
                ivf.invlists->get_single_id(
                        faiss::lo_listno(place), faiss::lo_offset(place)),
                id);
    }
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

std::unique_ptr<faiss::IndexIVF> copy_of(
        const faiss::IndexIVF& index, const Case& c) {
    if (!c.trained) {
        return make(c);
    }
    std::unique_ptr<faiss::Index> out = clone_index(&index);
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
        other = clone_index(&i);
        other->reset();
        other->add(200, base().row(1500));
        counting = was;
        i.merge_from(*other, 5000);
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
        if (call != "merge") { // a clone has the same file
            out.push_back(
                    {flat, "on disk: " + call, act, stored, 1, map, by_steps});
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

struct Interrupt : faiss::InterruptCallback {
    std::atomic<long> asked = 0, at = 0;
    bool want_interrupt() override {
        return ++asked == at;
    }
};

/// Runs a case with something in the way; the outcome, and the index is sound.
void run(
        const Case& c,
        const faiss::IndexIVF& original,
        const std::function<void()>& begin,
        const std::function<void()>& end) {
    auto index = copy_of(original, c);
    if (c.on_disk) {
        put_on_disk(*index);
    }
    const Snapshot before = snapshot(*index);
    std::optional<std::string> thrown;
    begin();
    try {
        c.act(*index);
    } catch (const std::exception& e) {
        end();
        thrown = e.what();
    }
    end();
    const bool all_in = thrown && thrown->find("are in") != std::string::npos;
    if (thrown && !c.by_steps && !all_in) {
        ASSERT_TRUE(snapshot(*index) == before) << *thrown;
    }
    if (!index->is_trained) {
        ASSERT_TRUE(thrown);
        return;
    }
    ASSERT_NO_FATAL_FAILURE(check_sound(*index));
    // it goes on living, and its file can be read
    ASSERT_EQ(clone_index(index.get())->ntotal, index->ntotal);
    find(*index, rows_of(base(), 0, 3), 5);
}

/// `most` places of all that there are, evenly.
template <class F>
void at_places(long total, long most, F f) {
    for (long t = 0; t < std::min(total, most); t++) {
        f(total <= most ? t + 1 : 1 + t * total / most);
    }
}

/** Of a call of so many: six; with FAISS_EXT_ALL_PLACES all, or 200 of calls
 * that come to the same few places for each query of a calibration. */
long most_places(long total) {
    return !std::getenv("FAISS_EXT_ALL_PLACES") ? 6
            : total <= 3000                     ? total
                                                : 200;
}

TEST(Failures, NoMemoryAtAnyPlace) {
    void* warm[4];
    backtrace(warm, 4); // loads what it needs
    of_faiss(warm[0]);
    long places = 0;
    for (int threads : {1, 2}) {
        omp_set_num_threads(threads);
        for (const Case& c : cases()) {
            SCOPED_TRACE(
                    c.kind + ", " + c.name + ", threads " +
                    std::to_string(threads));
            const auto original = make(c);
            auto stop = [] {
                counting = false;
                countdown = 0;
            };
            allocations = 0;
            ASSERT_NO_FATAL_FAILURE(run(
                    c, *original, [] { counting = true; }, stop));
            const long total = allocations;
            if (std::getenv("FAISS_EXT_ALL_PLACES")) {
                printf("%s, %s, %d threads: %ld of %ld places\n",
                       c.kind.c_str(),
                       c.name.c_str(),
                       threads,
                       std::min(total, most_places(total)),
                       total);
                fflush(stdout);
            }
            at_places(total, most_places(total), [&](long at) {
                SCOPED_TRACE("allocation " + std::to_string(at));
                if (HasFatalFailure()) {
                    return;
                }
                places++;
                run(
                        c,
                        *original,
                        [&] {
                            countdown = at;
                            counting = true;
                        },
                        stop);
            });
        }
    }
    printf("failed at %ld places; %ld were FAISS's own, in its parallel "
           "regions, and passed over\n",
           places,
           of_others.load());
}

TEST(Failures, InterruptsAtAnyCheck) {
    auto* interrupt = new Interrupt;
    faiss::InterruptCallback::instance.reset(interrupt);
    for (const Case& c : cases()) {
        SCOPED_TRACE(c.kind + ", " + c.name);
        interrupt->at = 0;
        const auto original = make(c);
        long before = 0;
        ASSERT_NO_FATAL_FAILURE(run(
                c,
                *original,
                [&] { before = interrupt->asked; },
                [&] { before = interrupt->asked - before; }));
        at_places(before, most_places(before), [&](long at) {
            SCOPED_TRACE("check " + std::to_string(at));
            if (HasFatalFailure()) {
                return;
            }
            run(
                    c,
                    *original,
                    [&] { interrupt->at = interrupt->asked + at; },
                    [&] { interrupt->at = 0; });
        });
    }
    faiss::InterruptCallback::clear_instance();
}

TEST(Failures, SearchesAreInterrupted) {
    auto* interrupt = new Interrupt;
    faiss::InterruptCallback::instance.reset(interrupt);
    Case c;
    c.kind = "GMM8,Flat";
    const auto index = make(c);
    for (bool range : {false, true}) {
        interrupt->at = interrupt->asked + 5;
        const std::string message = faiss_error([&] {
            if (range) {
                faiss::RangeSearchResult result(100);
                index->range_search(100, base().x.data(), 0.5f, &result);
            } else {
                find(*index, rows_of(base(), 0, 100), 5);
            }
        });
        EXPECT_NE(message.find("interrupted"), std::string::npos);
    }
    index->set_direct_map_type(faiss::DirectMap::Hashtable);
    const idx_t id = 3;
    interrupt->at = interrupt->asked + 1;
    EXPECT_FAISS_ERROR(
            index->update_vectors(1, &id, base().row(9)), "interrupted");
    faiss::InterruptCallback::clear_instance();
}

} // namespace
} // namespace faiss_ext
