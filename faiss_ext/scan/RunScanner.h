#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/rank/CellRanker.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/ShortRuns.h"

namespace faiss_ext {

/// One thread's scanner: runs of entries in, codes and ids to a handler.
struct RunScanner {
    const faiss::IndexIVF& ivf;
    const SearchPlan& plan;
    bool store_pairs;
    std::unique_ptr<faiss::InvertedListScanner> scanner;

    const float* query = nullptr;
    bool query_is_set = false;
    size_t n_distances = 0; ///< of this query
    size_t n_lists = 0;
    std::vector<idx_t> pairs;
    const faiss::ArrayInvertedLists* in_memory; ///< or nullptr

    // Short runs are gathered as vectors, decoded if need be, and scanned
    // together: FAISS's loop over codes overlaps one distance with the next,
    // and a product quantizer's table for a list costs as much as decoding
    // dozens of its codes.
    ShortRuns gathered;

    RunScanner(
            const faiss::IndexIVF& ivf_in,
            const SearchPlan& plan_in,
            bool store_pairs_in)
            : ivf(ivf_in), plan(plan_in), store_pairs(store_pairs_in),
              scanner(make_scanner(ivf_in, false, nullptr, nullptr)),
              in_memory(dynamic_cast<const faiss::ArrayInvertedLists*>(
                      ivf_in.invlists)),
              gathered(ivf_in) {}

    void set_query(const float* q) {
        query = q;
        query_is_set = false;
        gathered.set_query(q);
        n_distances = n_lists = 0;
    }

    /// Hands out a run of a list's codes and ids, as far as the selector and
    /// max_codes let it: scan(n, codes, ids)
    template <class Scan>
    void scan_run(
            const uint8_t* codes,
            const idx_t* ids,
            const Run& run,
            Scan&& scan) {
        size_t begin = run.begin;
        while (begin < run.end) {
            size_t end = run.end;
            if (plan.sel) {
                while (begin < run.end && !plan.sel->is_member(ids[begin])) {
                    begin++;
                }
                end = begin;
                while (end < run.end && plan.sel->is_member(ids[end])) {
                    end++;
                }
            }
            if (plan.max_codes > 0) {
                end = std::min(end, begin + plan.max_codes - n_distances);
            }
            if (begin == end) {
                return;
            }
            const idx_t* out_ids = ids + begin;
            if (store_pairs) {
                pairs.resize(end - begin);
                for (size_t j = begin; j < end; j++) {
                    pairs[j - begin] = faiss::lo_build(run.list, j);
                }
                out_ids = pairs.data();
            }
            scan(end - begin, codes + begin * ivf.code_size, out_ids);
            n_distances += end - begin;
            begin = end;
        }
    }

    /// Of a list's runs those in sequence are scanned in one go: scan(scanner,
    /// n, codes, ids). coarse(list) is the list's coarse distance.
    template <class Coarse, class Scan>
    void scan_runs(
            const Run* runs, size_t n_runs, Coarse&& coarse, Scan&& scan) {
        for (size_t r = 0; r < n_runs;) {
            const size_t list = runs[r].list;
            bool list_is_set = false;
            n_lists++;
            faiss::InvertedLists::ScopedCodes codes(ivf.invlists, list);
            faiss::InvertedLists::ScopedIds ids(ivf.invlists, list);
            for (; r < n_runs && runs[r].list == list; r++) {
                if (in_memory && r + kPrefetched < n_runs) {
                    prefetch(runs[r + kPrefetched]);
                }
                scan_run(
                        codes.get(),
                        ids.get(),
                        runs[r],
                        [&](size_t n, const uint8_t* c, const idx_t* i) {
                            if (gathered.take(list, n, c, i)) {
                                return;
                            }
                            if (!query_is_set) { // PQ makes tables of it
                                scanner->set_query(query);
                                query_is_set = true;
                            }
                            if (!list_is_set) {
                                scanner->set_list(list, coarse(list));
                                list_is_set = true;
                            }
                            scan(*scanner, n, c, i);
                        });
            }
        }
        gathered.scan(scan);
    }

    /// The best vectors of many cells are where no hardware would guess.
    void prefetch(const Run& run) const {
        const uint8_t* code =
                in_memory->codes[run.list].data() + run.begin * ivf.code_size;
        const size_t bytes = std::min<size_t>(
                (run.end - run.begin) * ivf.code_size, kPrefetchedBytes);
        for (size_t b = 0; b < bytes; b += 64) {
            __builtin_prefetch(code + b);
        }
        __builtin_prefetch(in_memory->ids[run.list].data() + run.begin);
    }
    static constexpr size_t kPrefetched = 6; ///< runs ahead
    static constexpr size_t kPrefetchedBytes = 1024;

    bool capped() const {
        return plan.max_codes > 0 && n_distances >= plan.max_codes;
    }
};

} // namespace faiss_ext
