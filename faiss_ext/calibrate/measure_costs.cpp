#include "faiss_ext/calibrate/measure_costs.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <vector>

#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/scan/gmm_search.h"

namespace faiss_ext {

namespace {

/** One thread's searches of a few queries, one by one: nanoseconds and counts a
 * query. Of each the best of five times, for others may use the machine. */
struct Timing {
    double time = 0, codes = 0, distances = 0;

    Timing(GMMIndexRef index,
           const SearchPlan& plan,
           size_t n,
           const float* xq,
           size_t k) {
        using Clock = std::chrono::steady_clock;
        std::vector<float> dis(k);
        std::vector<idx_t> ids(k);
        std::vector<double> best(n, HUGE_VAL);
        for (int repeat = 0; repeat < 5; repeat++) {
            codes = distances = 0;
            for (size_t q = 0; q < n; q++) {
                const auto t0 = Clock::now();
                const SearchCounts counts = gmm_search(
                        index.ivf,
                        index.gmm,
                        plan,
                        1,
                        xq + q * index.ivf.d,
                        k,
                        dis.data(),
                        ids.data());
                codes += double(counts.codes) / n;
                distances += double(counts.distances) / n;
                const std::chrono::duration<double, std::nano> t =
                        Clock::now() - t0;
                best[q] = std::min(best[q], t.count());
            }
        }
        time = std::accumulate(best.begin(), best.end(), 0.0) / double(n);
    }
};

} // namespace

Calibration::Costs measure_costs(
        GMMIndexRef index, size_t nq, const float* xq) {
    const size_t n = std::min<size_t>(nq, 50), ntotal = index.ivf.ntotal;
    const size_t nlist = index.ivf.nlist;
    const auto by_codes = [&](double budget, size_t k) {
        SearchPlan plan;
        plan.by_codes = true;
        plan.budget = budget;
        return Timing(index, plan, n, xq, k);
    };
    const auto by_lists = [&](size_t nprobe) {
        SearchPlan plan;
        plan.nprobe = nprobe;
        return Timing(index, plan, n, xq, 1);
    };
    const auto slope = [](double time, double count, double least) {
        return float(std::max(least, time / std::max(1.0, count)));
    };
    Calibration::Costs costs;
    if (!has_vectors(index.ivf)) {
        const Timing few = by_codes(200, 1);
        const Timing many = by_codes(std::min(8000.0, ntotal / 2.0), 1);
        costs.code = slope(many.time - few.time, many.codes - few.codes, 0.1);
        costs.distance = costs.scan = costs.code;
        costs.query = slope(few.time - costs.code * few.codes, 1, 1);
        return costs;
    }
    const Timing one = by_lists(1),
                 eight = by_lists(std::min<size_t>(8, nlist));
    costs.scan =
            slope(eight.time - one.time, eight.distances - one.distances, 0.1);
    costs.query = slope(one.time - costs.scan * one.distances, 1, 1);
    costs.code = costs.distance = costs.scan; // without codes
    if (!index.gmm.cells.codes.empty()) {
        const Timing few = by_codes(200, 1);
        const Timing many = by_codes(std::min(8000.0, ntotal / 2.0), 1);
        const Timing far = by_codes(200, std::min<size_t>(100, ntotal / 2));
        costs.code = slope(many.time - few.time, many.codes - few.codes, 0.1);
        costs.distance = slope(
                far.time - few.time - costs.code * (far.codes - few.codes),
                far.distances - few.distances,
                1);
        costs.query =
                slope(few.time - costs.code * few.codes -
                              costs.distance * few.distances,
                      1,
                      1);
    }
    return costs;
}

} // namespace faiss_ext
