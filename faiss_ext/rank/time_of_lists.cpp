#include "faiss_ext/rank/time_of_lists.h"

#include <algorithm>
#include <cmath>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

namespace {

double time_to_decode(const faiss::IndexIVF& ivf) {
    if (dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        return 0;
    }
    if (dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        return 40;
    }
    const bool whole_bytes = ivf.code_size >= size_t(ivf.d);
    return whole_bytes ? 0.1 * ivf.d : 520; // FAISS's loop
}

/// A level of an IVF's heap, at an exchange, in nanoseconds.
constexpr double kHeapLevel = 4;

/// What keeping the k nearest of so many takes an IVF: it exchanges the
/// farthest of k whenever one is nearer, and sorts them in the end.
double time_of_heap(double k, double entries) {
    const double exchanges =
            k < entries ? k * (1 + std::log(entries / k)) : entries;
    return kHeapLevel * std::log2(k + 1) * (exchanges + k);
}

/** What a search takes about, in nanoseconds of a processor of today: lines
 * through what it was on an EPYC with AVX-512 for 64 to 384 dimensions, with
 * vectors that stay in the cache, where whole lists are at their best
 * (bench/NOTES.md). Only their proportions matter. What nprobe finds must not
 * depend on how busy the machine was when the index was filled, so they are not
 * measured there. */
UsualCosts usual_costs(const faiss::IndexIVF& ivf, int bits) {
    const double d = ivf.d;
    UsualCosts costs;
    costs.scan = 1 + 0.07 * d;
    costs.code = (bits == 4 ? 1.6 : 1) + 0.00225 * bits * d;
    costs.distance = 40 + 0.25 * d + time_to_decode(ivf);
    costs.test = 2.5;
    return costs;
}

/// A dimension of a mean, in nanoseconds.
constexpr double kOfMeans = 0.05;
/// Of that, what products in blocks of our own save (of inner products, for
/// which FAISS needs no norms, half).
constexpr double kOfProducts = 0.02;
/// What is compared for a threshold, and after that, over the former.
constexpr double kOfFirst = 2.2;
/// Of an IVF's time, what may be lost where codes turn out to tell too little;
/// and of many neighbours, of which whole lists and more find nearly as many.
constexpr double kMostBefore = 0.3, kMostBeforeMany = 0.15;

/// What a comparison of a range takes, over one of a search for neighbours:
/// they come in the order of memory, and the threshold does not change.
constexpr double kOfSingleInRange = 0.3;

/// More codes than so many times those of nprobe lists are not worth it.
constexpr double kMostCodes = 4;

/// More neighbours than these are kept without a heap, in less time than an IVF
/// takes: whole lists are followed by more entries of the next ones.
constexpr size_t kManyNeighbours = 64;
/// FAISS's scanners compare vectors of fewer dimensions in less time than it
/// takes here to come to one.
constexpr size_t kLeastCompared = 12;
/// Of the heap's time, what these may take.
constexpr double kOfHeap = 0.06;

/// Ranking a list and beginning it, in nanoseconds.
constexpr double kList = 25;
/// Keeping a candidate that is not compared at once, in nanoseconds.
constexpr double kKept = 3;

} // namespace

void plan_for_time_of_lists(
        SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k,
        bool always) {
    const double entries = double(plan.nprobe) * ivf.ntotal / ivf.nlist;
    plan.costs = usual_costs(ivf, gmm.cells.codes.shape.bits);
    plan.costs.heap = k > 0 ? time_of_heap(double(k), entries) : 0;
    // what is done before anything is known of the query
    const double first = k > 0 ? plan.costs.code * near_entries(k) +
                    plan.costs.distance * compared_first(k)
                               : 0;
    const double of_lists = plan.costs.scan * entries;
    const double means = double(ivf.d) * double(ivf.nlist);
    plan.costs.saved = (is_ip(ivf) ? 0.5 : 1) * kOfProducts * means;
    const double most_before =
            k < kManyNeighbours ? kMostBefore : kMostBeforeMany;
    const bool pays = plan.costs.code * entries + kOfFirst * first + kChoosing <
                    of_lists + plan.costs.saved &&
            first < most_before *
                            (of_lists + plan.costs.heap + kOfMeans * means);
    if (!pays && !always) {
        plan.by_codes = plan.compare_lists = size_t(ivf.d) >= kLeastCompared &&
                dynamic_cast<const faiss::IndexIVFFlat*>(&ivf) &&
                !hnsw_of(ivf) && !plan.max_codes;
        plan.more_entries =
                k < kManyNeighbours ? 0 : kOfHeap * plan.costs.heap / of_lists;
        return;
    }
    plan.by_codes = true;
    plan.bound = kSureBound;
    plan.budget = kMostCodes * entries;
    if (k == 0) {
        plan.costs.distance *= kOfSingleInRange;
    }
}

bool lists_are_quicker(
        const SearchPlan& plan,
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        size_t k) {
    const double ntotal = double(ivf.ntotal);
    const UsualCosts costs = usual_costs(ivf, gmm.cells.codes.shape.bits);
    const double first =
            k > 0 ? std::min(near_entries(k) / plan.share, ntotal) : 0;
    return ntotal * (costs.test + plan.share * costs.scan) +
            kList * double(ivf.nlist) <
            std::min(plan.budget, ntotal) * costs.code +
            first * (costs.test + kKept) + kChoosing;
}

} // namespace faiss_ext
