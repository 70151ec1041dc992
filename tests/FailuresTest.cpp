// Memory that does not suffice, at every place of every call, and interrupts at
// every check: a call that throws leaves the index as it was, and nothing
// ends the process.
#include "faiss_ext/IndexIVFGMM.h"

#include <atomic>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <execinfo.h>
#include <omp.h>

#include <faiss/impl/AuxIndexStructures.h>

#include "FailingNew.h"
#include "FailureCases.h"

namespace faiss_ext {
namespace {

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
    ASSERT_EQ(copy_of(*index)->ntotal, index->ntotal);
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

struct Failures : testing::TestWithParam<Case> {};

TEST_P(Failures, NoMemoryAtAnyPlace) {
    if (!kFailingNew) {
        GTEST_SKIP() << "ThreadSanitizer's operator new";
    }
    void* warm[4];
    backtrace(warm, 4); // loads what it needs
    function_of_faiss(warm[0]);
    const Case& c = GetParam();
    for (int threads : {1, 2}) {
        omp_set_num_threads(threads);
        SCOPED_TRACE("threads " + std::to_string(threads));
        const auto original = make(c);
        auto stop = [] {
            counting = false;
            countdown = 0;
        };
        allocations = 0;
        ASSERT_NO_FATAL_FAILURE(run(
                c, *original, [] { counting = true; }, stop));
        const long total = allocations;
        of_others = 0;
        at_places(total, most_places(total), [&](long at) {
            SCOPED_TRACE("allocation " + std::to_string(at));
            if (HasFatalFailure()) {
                return;
            }
            run(
                    c,
                    *original,
                    [&] {
                        countdown = at;
                        counting = true;
                    },
                    stop);
        });
        printf("%s, %s, %d threads: failed at %ld of %ld places; %ld were "
               "FAISS's own, which it does not get over, and left out\n",
               c.kind.c_str(),
               c.name.c_str(),
               threads,
               std::min(total, most_places(total)),
               total,
               of_others.load());
    }
}

TEST_P(Failures, InterruptsAtAnyCheck) {
    auto* interrupt = new Interrupt;
    faiss::InterruptCallback::instance.reset(interrupt);
    const Case& c = GetParam();
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
    faiss::InterruptCallback::clear_instance();
}

INSTANTIATE_TEST_SUITE_P(
        OfACall, Failures, testing::ValuesIn(cases()), [](const auto& info) {
            std::string name = info.param.kind + "_" + info.param.name;
            for (char& c : name) {
                c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
            }
            const bool again =
                    info.param.max_assign == 3; // the same with other copies
            return name + (again ? "_3" : "");
        });

TEST(FailuresTest, SearchesAreInterrupted) {
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
