#include "faiss_ext/calibrate/calibrate.h"

#include <algorithm>
#include <cmath>

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/calibrate/curves.h"
#include "faiss_ext/calibrate/ground_truth.h"
#include "faiss_ext/calibrate/measure_costs.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/SearchPlan.h"
#include "faiss_ext/rank/probe.h"

namespace faiss_ext {

namespace {

/// Calibrating again without the user's queries takes so many vectors.
constexpr size_t kMinCalibrationQueries = 100;
constexpr size_t kMaxCalibrationQueries = 400;
/// As many as take so many multiplications to find the neighbours of.
constexpr double kCalibrationProducts = 5e9;
/// Numbers of neighbours for which curves are made, beside the one asked for.
constexpr size_t kNeighbours[] = {1, 10, 100};
std::vector<size_t> neighbours(size_t k, size_t ntotal) {
    std::vector<size_t> out = {k};
    for (size_t other : kNeighbours) {
        if (other < ntotal / 10) {
            out.push_back(other);
        }
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

/// Calibration::farthest. Where it is so many times as far (squared) as nearly
/// all are, it is an outlier, which would have all queries pass for usual ones:
/// half as many times is the limit then.
constexpr double kNearlyAll = 0.98;
constexpr float kOutlier = 4;

float farthest_from_means(GMMIndexRef index, size_t nq, const float* xq) {
    const faiss::IndexIVF& ivf = index.ivf;
    SearchPlan plan;
    plan.nprobe = 1;
    std::vector<float> distances(nq), coarse(nq);
    std::vector<idx_t> keys(nq);
    probe(ivf, index.gmm, plan, nq, xq, coarse.data(), keys.data());
    for (size_t q = 0; q < nq; q++) {
        const float* x = xq + q * ivf.d;
        float& distance = distances[q];
        distance = distance_to_filled(ivf, x, 1, &coarse[q], &keys[q]);
        for (size_t n = 1; std::isinf(distance) && n < ivf.nlist;) {
            n = plan.nprobe = std::min(8 * n, ivf.nlist); // they were empty
            std::vector<float> more(n);
            std::vector<idx_t> lists(n);
            probe(ivf, index.gmm, plan, 1, x, more.data(), lists.data());
            distance = distance_to_filled(ivf, x, n, more.data(), lists.data());
        }
    }
    std::sort(distances.begin(), distances.end());
    const float usual = distances[size_t(kNearlyAll * double(nq - 1))];
    return distances.back() > kOutlier * usual ? kOutlier / 2 * usual
                                               : distances.back();
}

} // namespace

Calibration calibrate_index(
        GMMIndexRef index, size_t nq, const float* xq, size_t k) {
    faiss::IndexIVF& ivf = index.ivf;
    FAISS_THROW_IF_NOT_FMT(
            nq >= kMinQueries,
            "nq = %zu, expected at least %zu",
            nq,
            kMinQueries);
    FAISS_THROW_IF_NOT_MSG(
            ivf.ntotal > 0,
            "the index holds no vectors; it is calibrated after adding");
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && size_t(ivf.ntotal) > k && k < Calibration::kMaxK,
            "k = %zu, expected above 0 and below ntotal = %zd and %zu",
            k,
            size_t(ivf.ntotal),
            Calibration::kMaxK);
    FAISS_THROW_IF_NOT_FMT(
            xq || nq <= size_t(ivf.ntotal),
            "nq = %zu, expected at most ntotal = %zd",
            nq,
            size_t(ivf.ntotal));
    const bool own_queries = !xq;
    if (!own_queries) {
        check_rows("xq", int64_t(nq), ivf.d, xq);
        check_storable("xq", nq, ivf.d, xq);
    }
    std::vector<float> drawn;
    std::vector<idx_t> self;
    if (own_queries) {
        draw_queries(index, nq, drawn, self);
        xq = drawn.data();
    } else {
        // found at once, as no new query's nearest is
        self = find_queries(index, nq, xq);
    }

    Calibration c;
    c.costs = index.gmm.calibration.costs;
    c.k = k;
    c.nq = nq;
    c.ntotal = ivf.ntotal;
    c.own_queries = own_queries;
    c.norm2 = index.gmm.cells.norm2;
    if (!own_queries) {
        c.queries.assign(xq, xq + nq * ivf.d);
    }
    const auto find = has_vectors(ivf) ? exact_neighbours : code_neighbours;
    const std::vector<size_t> ks = neighbours(k, ivf.ntotal);
    std::vector<GroundTruth> truths = {find(index, nq, xq, ks.back(), k, self)};
    if (own_queries) {
        // Near-duplicates are easier to find than what a new query asks for;
        // and what is behind them may be.
        truths.insert(truths.begin(), truths[0]);
        if (!truths[0].hide(k)) {
            truths.pop_back();
        }
    }
    if (!c.costs.known()) {
        c.costs = measure_costs(index, nq, xq);
    }
    c.curves = measure_curves(index, nq, xq, truths, c.costs, ks);
    c.farthest = farthest_from_means(index, nq, xq);
    c.fitted = true;
    return c;
}

void calibrate_again(GMMIndexRef index) {
    const size_t k = index.gmm.calibration.k;
    const std::vector<float> queries = index.gmm.calibration.queries;
    if (!queries.empty()) {
        index.gmm.calibrate(
                queries.size() / index.ivf.d,
                queries.data(),
                std::min(k, size_t(index.ivf.ntotal) - 1));
        return;
    }
    const double affordable =
            kCalibrationProducts / (double(index.ivf.ntotal) * index.ivf.d);
    const size_t stored = std::min(
            size_t(index.ivf.ntotal), index.ivf.invlists->compute_ntotal());
    index.gmm.calibrate(
            std::min(
                    stored / 4,
                    std::clamp(
                            std::max(index.ivf.nlist / 4, size_t(affordable)),
                            kMinCalibrationQueries,
                            kMaxCalibrationQueries)),
            nullptr,
            std::min(k > 0 ? k : 10, size_t(index.ivf.ntotal) - 1));
}

} // namespace faiss_ext
