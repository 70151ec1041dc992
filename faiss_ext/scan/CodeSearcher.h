#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/rank/CellSelector.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/ExactDistances.h"

namespace faiss_ext {

/** One thread's searches through codes.
 *
 * The codes of the nearest cells come first; the exact distances of the best of
 * them give a threshold. It says how many more cells are worth looking at, and
 * which of their entries: those whose lower bound is below it.
 *
 * A collector takes what was compared and says what is near enough:
 *
 *     float threshold() const;    // squared distance, or negated product
 *     void offer(float distance, idx_t location);
 *     static constexpr bool is_range;
 */
class CodeSearcher {
public:
    CodeSearcher(
            const faiss::IndexIVF& ivf_in,
            const IVFGMM& gmm_in,
            const SearchPlan& plan_in)
            : ivf(ivf_in), gmm(gmm_in), plan(plan_in),
              selector(gmm_in.cells, *ivf_in.invlists), exact(ivf_in),
              tables(gmm_in.cells.codes.shape.groups * 64) {}

    size_t n_codes = 0;     ///< looked at, of this query
    size_t n_distances = 0; ///< exact ones, of this query
    size_t n_cells = 0;     ///< scored
    /// (list, offset) pairs that the next query must not see, or nullptr
    const std::vector<idx_t>* hidden = nullptr;

    /** @param q        size d
     *  @param rotated  P (q - c)
     *  @param coarse   started for the query
     *  @param q_norm   read for METRIC_INNER_PRODUCT
     *  @param k        neighbours wanted; for a range, 1
     */
    template <class Collector>
    void operator()(
            const float* q,
            const float* rotated,
            QueryCoarse& coarse,
            float q_norm,
            size_t k,
            Collector& collector) {
        const CodeKernels& kernels = best_code_kernels();
        query.tables = tables.data();
        kernels.make_tables(
                gmm.cells.codes.shape,
                rotated,
                tables.data(),
                &query.base,
                &query.step);
        exact.set_query(q);
        n_codes = n_distances = 0;
        set_slack();

        pool.clear();
        compared.clear();
        selector.start(coarse, plan.nprobe);
        const size_t near = size_t((kNearEntries + 2 * k) / plan.share);
        selector.score(std::max(near, size_t(kListsFactor * plan.budget)));
        most_distances = plan.max_codes > 0 ? plan.max_codes : size_t(-1);
        size_t done = 0;
        if (!Collector::is_range || plan.nprobe > 0) {
            const size_t last =
                    Collector::is_range ? 0 : selector.bucket_of_entries(near);
            selector.choose(0, last, q_norm, slack2, rounding2, segments);
            const size_t n = scan(0, segments.size(), 0, collector.threshold());
            pool.assign(candidates.begin(), candidates.begin() + n);
            done = last + 1;
            if (!Collector::is_range) {
                compare_some(k + k / 4 + 2, collector);
            }
        }
        if (plan.nprobe > 0) {
            const size_t forced = selector.forced_entries();
            if (!plan.sel && kFarOut * pool.size() > forced) {
                // Codes tell this query too little: as an IVF does it.
                pool.clear();
                for (uint32_t list : selector.forced_lists()) {
                    compare_list(list, collector);
                }
                done = CellSelector::kBuckets;
            } else if (Collector::is_range) {
                // What else there is must not take longer than they.
                compare_best_first(collector);
                most_distances = std::min(
                        most_distances, n_distances + size_t(forced / kFarOut));
            }
        }
        if (done < CellSelector::kBuckets) {
            const float t = squared(collector.threshold(), q_norm);
            const size_t last = plan.by_effort && t < kNone
                    ? selector.bucket_of_effort(plan.budget, t)
                    : selector.bucket_of_entries(size_t(plan.budget));
            if (last >= done) {
                selector.choose(
                        done, last, q_norm, slack2, rounding2, segments);
                look_at(k, collector);
            }
        }
        compare_best_first(collector);
        if (plan.sel && plan.by_effort && !(collector.threshold() < kNone)) {
            // Fewer than k that pass: whatever there is.
            for (size_t list = 0; list < gmm.cells.nlist; list++) {
                compare_list(uint32_t(list), collector);
            }
        }
        for (const CellSelector::Untracked& u : selector.untracked) {
            for (uint32_t entry = u.begin; entry < u.end; entry++) {
                compare({0, u.list, entry}, collector);
            }
        }
        n_cells = selector.n_cells_scored();
    }

private:
    /// A threshold of fewer than k.
    static constexpr float kNone = std::numeric_limits<float>::max();
    /// Entries of the nearest cells that give the first threshold, and two for
    /// each neighbour wanted.
    static constexpr size_t kNearEntries = 80;
    /// Of the lists whose cells are scored: entries that they hold, over those
    /// to be looked at.
    static constexpr double kListsFactor = 1.2;
    /// Segments between two looks at the threshold.
    static constexpr size_t kChunk = 32;
    /// Candidates, and two for each neighbour wanted, after which some are
    /// compared for a lower threshold.
    static constexpr size_t kPool = 64;
    /// A vector somewhere takes as long as so many of a list.
    static constexpr double kFarOut = 3;
    /// Candidates ahead whose vectors are fetched.
    static constexpr size_t kAhead = 8;

    /// The code's error, and that of the tables: an entry of each column is
    /// rounded to a whole step, a variance of 1/12.
    void set_slack() {
        const CodeShape& shape = gmm.cells.codes.shape;
        const float one = plan.bound * gmm.cells.codes.error;
        const float step = plan.bound * query.step;
        slack2 = one * one;
        rounding2 = step * step * ((shape.d * shape.bits + 3) / 4) / 12;
    }

    /// A threshold in the units of QueryCoarse.
    float squared(float threshold, float q_norm) const {
        if (!gmm.cells.codes.similarity || !(threshold < kNone)) {
            return threshold;
        }
        const float most = q_norm * std::sqrt(gmm.cells.norm2);
        return most > 0 ? std::max(2 + 2 * threshold / most, 0.0f) : 2;
    }

    size_t scan(size_t begin, size_t end, size_t ahead, float threshold) {
        size_t entries = 0;
        for (size_t s = begin; s < end; s++) {
            entries += segments[s].end - segments[s].begin;
        }
        n_codes += entries;
        if (candidates.size() < entries) {
            candidates.resize(2 * entries);
        }
        return best_code_kernels().scan(
                gmm.cells.codes.shape,
                query,
                gmm.cells.codes.similarity,
                segments.data() + begin,
                end - begin,
                ahead,
                threshold,
                candidates.data());
    }

    template <class Collector>
    void compare(const CodeCandidate& c, Collector& collector) {
        if (plan.sel &&
            !plan.sel->is_member(
                    ivf.invlists->get_single_id(c.list, c.entry))) {
            return;
        }
        if (n_distances >= most_distances) {
            return;
        }
        const idx_t location = faiss::lo_build(c.list, c.entry);
        if (hidden &&
            std::binary_search(hidden->begin(), hidden->end(), location)) {
            return;
        }
        n_distances++;
        if (plan.nprobe > 0 || plan.sel) {
            compared.push_back(location);
        }
        collector.offer(exact(c.list, c.entry), location);
    }

    /// Compares the candidates, the best first, and forgets them.
    template <class Collector>
    void compare_best_first(Collector& collector) {
        std::sort(pool.begin(), pool.end(), better);
        for (size_t i = 0; i < std::min(pool.size(), kAhead); i++) {
            exact.prefetch(pool[i].list, pool[i].entry);
        }
        for (size_t i = 0; i < pool.size(); i++) {
            if (!(pool[i].bound < collector.threshold())) {
                break;
            }
            if (i + kAhead < pool.size()) {
                exact.prefetch(pool[i + kAhead].list, pool[i + kAhead].entry);
            }
            compare(pool[i], collector);
        }
        pool.clear();
    }

    /// Compares the `most` best candidates; the others stay if they are below
    /// the threshold then.
    template <class Collector>
    void compare_some(size_t most, Collector& collector) {
        if (pool.size() > most) {
            std::nth_element(
                    pool.begin(), pool.begin() + most, pool.end(), better);
        }
        const size_t n = std::min(most, pool.size());
        for (size_t i = 0; i < n; i++) {
            exact.prefetch(pool[i].list, pool[i].entry);
        }
        for (size_t i = 0; i < n; i++) {
            if (pool[i].bound < collector.threshold()) {
                compare(pool[i], collector);
            }
        }
        size_t kept = 0;
        for (size_t i = n; i < pool.size(); i++) {
            if (pool[i].bound < collector.threshold()) {
                pool[kept++] = pool[i];
            }
        }
        pool.resize(kept);
    }

    static bool better(const CodeCandidate& p, const CodeCandidate& q) {
        return p.bound < q.bound;
    }

    /// Compares all entries of a list but those that are compared already.
    template <class Collector>
    void compare_list(uint32_t list, Collector& collector) {
        const uint32_t size = uint32_t(gmm.cells.list_size(list));
        const std::vector<idx_t> before = sorted_compared(list);
        for (uint32_t entry = 0; entry < size; entry++) {
            if (!std::binary_search(
                        before.begin(),
                        before.end(),
                        idx_t(faiss::lo_build(list, entry)))) {
                compare({0, list, entry}, collector);
            }
        }
    }

    std::vector<idx_t> sorted_compared(uint32_t list) const {
        std::vector<idx_t> out;
        for (idx_t location : compared) {
            if (faiss::lo_listno(location) == list) {
                out.push_back(location);
            }
        }
        std::sort(out.begin(), out.end());
        return out;
    }

    template <class Collector>
    void look_at(size_t k, Collector& collector) {
        const size_t full = kPool + 2 * k;
        for (size_t s = 0; s < segments.size(); s += kChunk) {
            const size_t end = std::min(segments.size(), s + kChunk);
            const size_t n =
                    scan(s, end, segments.size() - end, collector.threshold());
            pool.insert(pool.end(), candidates.begin(), candidates.begin() + n);
            if (pool.size() >= full) {
                compare_some(full / 4, collector);
            }
        }
    }

    const faiss::IndexIVF& ivf;
    const IVFGMM& gmm;
    const SearchPlan& plan;
    CellSelector selector;
    ExactDistances exact;
    std::vector<uint8_t> tables;
    CodeQuery query = {};
    size_t most_distances = 0;
    float slack2 = 0, rounding2 = 0; ///< see CellSelector::choose
    std::vector<Segment> segments;
    std::vector<CodeCandidate> candidates; ///< of one scan
    std::vector<CodeCandidate> pool;       ///< not compared yet
    std::vector<idx_t> compared; ///< where compare_list() may be asked for
};

} // namespace faiss_ext
