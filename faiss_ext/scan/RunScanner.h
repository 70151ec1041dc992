#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/store/passing.h"

namespace faiss_ext {

/// Consecutive entries of one inverted list.
struct Run {
    uint32_t list;
    uint32_t begin;
    uint32_t end;
};

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

    RunScanner(
            const faiss::IndexIVF& ivf_in,
            const SearchPlan& plan_in,
            bool store_pairs_in)
            : ivf(ivf_in), plan(plan_in), store_pairs(store_pairs_in),
              scanner(make_scanner(ivf_in)) {}

    void set_query(const float* q) {
        query = q;
        query_is_set = false;
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
        if (!plan.sel) {
            scan_part(codes, ids, run, scan);
            return;
        }
        uint32_t passing[kTogether];
        for (size_t at = run.begin; at < run.end && !capped();
             at += kTogether) {
            const size_t end = std::min<size_t>(run.end, at + kTogether);
            const size_t n = passing_entries(*plan.sel, ids, at, end, passing);
            for (size_t i = 0, next; i < n && !capped(); i = next) {
                next = i + 1;
                while (next < n && passing[next] == passing[next - 1] + 1) {
                    next++;
                }
                scan_part(
                        codes,
                        ids,
                        {run.list, passing[i], passing[next - 1] + 1},
                        scan);
            }
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
                scan_run(
                        codes.get(),
                        ids.get(),
                        runs[r],
                        [&](size_t n, const uint8_t* c, const idx_t* i) {
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
    }

    bool capped() const {
        return plan.max_codes > 0 && n_distances >= plan.max_codes;
    }

private:
    /// Entries that a selector is asked about at once.
    static constexpr size_t kTogether = 128;

    /// All of the run, as far as max_codes lets it.
    template <class Scan>
    void scan_part(
            const uint8_t* codes,
            const idx_t* ids,
            const Run& run,
            Scan&& scan) {
        size_t n = run.end - run.begin;
        if (plan.max_codes > 0) {
            n = std::min(n, plan.max_codes - n_distances);
        }
        if (n == 0) {
            return;
        }
        const idx_t* out_ids = ids + run.begin;
        if (store_pairs) {
            pairs.resize(n);
            for (size_t j = 0; j < n; j++) {
                pairs[j] = faiss::lo_build(run.list, run.begin + j);
            }
            out_ids = pairs.data();
        }
        scan(n, codes + run.begin * ivf.code_size, out_ids);
        n_distances += n;
    }
};

} // namespace faiss_ext
