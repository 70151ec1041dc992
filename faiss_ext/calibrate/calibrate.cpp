#include "faiss_ext/calibrate/calibrate.h"

#include <algorithm>

#include <faiss/impl/FaissAssert.h>

#include "cpu/Blas.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/calibrate/regression.h"
#include "faiss_ext/calibrate/replay.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/rank/SearchPlan.h"

namespace faiss_ext {

namespace {

constexpr size_t kMinQueries = 20;
/// Whole-list orders are followed for so many lists, then jump to all.
constexpr size_t kMaxProbes = 2048;
constexpr float kLeastMissing = 1e-3f;
/// Calibrating again without the user's queries takes so many vectors.
constexpr size_t kMinCalibrationQueries = 100;
constexpr size_t kMaxCalibrationQueries = 1000;
/// Of fewer lists, recall by mass goes in steps and is not interpolated.
constexpr size_t kFewLists = 32;
/// Queries whose coarse distances are held at once.
constexpr size_t kTauBlock = 64;

using Curve = std::vector<Calibration::Point>;

/// Sorted by cost, with recall never falling, and everything searched at the
/// end. Of a stretch that found nothing new both ends are kept, so that
/// choose() interpolates over none.
Curve finish_curve(Curve curve, float all_parameter, size_t ntotal) {
    curve.push_back({all_parameter, 1, float(ntotal), float(ntotal)});
    std::stable_sort(
            curve.begin(),
            curve.end(),
            [](const Calibration::Point& p, const Calibration::Point& q) {
                return p.cost < q.cost;
            });
    Curve out;
    for (const Calibration::Point& p : curve) {
        if (out.empty() || p.recall > out.back().recall) {
            out.push_back(p);
            continue;
        }
        const float recall = out.back().recall;
        if (out.size() > 1 && out[out.size() - 2].recall == recall) {
            out.pop_back();
        }
        out.push_back({p.parameter, recall, p.distances, p.cost});
    }
    return out;
}

Curve fixed_curve(
        const Looks& looks, size_t nlist, size_t ntotal, double with_each) {
    Curve curve;
    size_t rounds = 0;
    for (const auto& query : looks) {
        rounds = std::max(rounds, query.size());
    }
    for (size_t r = 0; r < rounds; r++) {
        // a query that was complete earlier goes on to the budget all the same
        double recall = 0, distances = 0, cost = 0;
        size_t n = 0;
        for (const auto& query : looks) {
            if (r < query.size()) {
                distances += query[r].distances;
                cost += query[r].cost;
                n++;
            }
            recall += r < query.size() ? 1 - query[r].missing
                    : !query.empty()   ? 1 - query.back().missing
                                       : 0;
        }
        // nprobe is what the search makes this budget of
        curve.push_back(
                {float(distances / n * with_each * nlist / ntotal),
                 float(recall / looks.size()),
                 float(distances / n),
                 float(cost / n)});
    }
    return finish_curve(curve, float(nlist), ntotal);
}

/// @param missing  what a query is predicted to miss at a look
template <class Missing>
Curve mass_curve(const Looks& looks, Missing missing_at, size_t ntotal) {
    Curve curve;
    for (float missing = 0.9f; missing > kLeastMissing; missing *= 0.85f) {
        double recall = 0, distances = 0, cost = 0;
        for (size_t q = 0; q < looks.size(); q++) {
            const auto& query = looks[q];
            auto at = std::find_if(
                    query.begin(), query.end(), [&](const Look& l) {
                        return l.full && missing_at(q, l) <= missing;
                    });
            // followed to the end: it would have gone on for who knows how
            // long, and is counted with what it had found at twice the cost
            if (query.empty()) {
                cost += float(ntotal);
                continue;
            }
            const bool stopped = at != query.end();
            const Look& last = stopped ? *at : query.back();
            const float beyond = stopped ? 1 : 2;
            recall += 1 - last.missing;
            distances += beyond * last.distances;
            cost += beyond * last.cost;
        }
        curve.push_back(
                {1 - missing,
                 float(recall / looks.size()),
                 float(distances / looks.size()),
                 float(cost / looks.size())});
    }
    return finish_curve(curve, 1, ntotal);
}

StopWeights fit_stop(const Looks& looks, size_t q_begin, size_t q_end) {
    std::vector<float> rows, target;
    for (size_t q = q_begin; q < q_end; q++) {
        for (const Look& l : looks[q]) {
            if (l.full) {
                rows.insert(rows.end(), l.features.begin(), l.features.end());
                target.push_back(l.missing);
            }
        }
    }
    StopWeights weights;
    fit_logistic(
            target.size(),
            weights.size(),
            rows.data(),
            target.data(),
            weights.data());
    return weights;
}

/// Curve of an order of whole lists: by a fixed number of them, or by mass.
Curve list_curve(
        GMMIndexRef index,
        ProbeOrder order,
        bool by_mass,
        size_t nq,
        const float* xq,
        const Truth& truth) {
    const faiss::IndexIVF& ivf = index.ivf;
    const size_t nlist = ivf.nlist, width = std::min(nlist, kMaxProbes);
    IndexGMM policy(ivf.d, nlist, index.gmm.covariance, ivf.metric_type);
    policy.set_mixture(index.gmm.mixture());
    policy.policy.order = order;

    std::vector<float> parameters;
    if (by_mass) {
        for (float missing = 0.9f; missing > kLeastMissing; missing *= 0.5f) {
            parameters.push_back(1 - missing);
        }
    } else {
        for (double p = 1; p <= width; p = std::max(p + 1, p * 1.2)) {
            parameters.push_back(float(size_t(p)));
        }
    }
    std::vector<double> recall(parameters.size()), ndis(parameters.size());
    const size_t block = std::max<size_t>(1, (size_t(1) << 22) / width);
    std::vector<float> dis(std::min(block, nq) * width);
    std::vector<idx_t> keys(dis.size());
    std::vector<uint32_t> rank(nlist);
    std::vector<size_t> cumulated(width + 1);
    auto account = [&](size_t q, size_t row, size_t p) {
        // list p is the first that is not probed
        size_t found = 0;
        for (const Truth::Near& near : truth.near[q]) {
            found += near.distance <= truth.kth[q] &&
                    rank[faiss::lo_listno(near.location)] < row;
        }
        recall[p] += double(std::min(found, truth.k)) / truth.k;
        ndis[p] += cumulated[row];
    };
    auto order_of = [&](const idx_t* key) {
        std::fill(rank.begin(), rank.end(), uint32_t(-1));
        size_t row = 0;
        for (; row < width && key[row] >= 0; row++) {
            rank[key[row]] = uint32_t(row);
            cumulated[row + 1] =
                    cumulated[row] + ivf.invlists->list_size(key[row]);
        }
        return row;
    };
    for (size_t q0 = 0; q0 < nq; q0 += block) {
        const size_t nb = std::min(block, nq - q0);
        for (size_t p = 0; p < parameters.size(); p++) {
            policy.policy.probe_mass = by_mass ? parameters[p] : 1;
            if (by_mass || p == 0) {
                policy.search(
                        nb, xq + q0 * ivf.d, width, dis.data(), keys.data());
            }
            if (!by_mass) {
                break;
            }
            for (size_t q = 0; q < nb; q++) {
                account(q0 + q, order_of(&keys[q * width]), p);
            }
        }
        for (size_t q = 0; q < nb && !by_mass; q++) {
            order_of(&keys[q * width]);
            for (size_t p = 0; p < parameters.size(); p++) {
                account(q0 + q, size_t(parameters[p]), p);
            }
        }
    }
    const float all = by_mass ? 1 : float(nlist);
    const bool steps = by_mass && nlist < kFewLists;
    Curve curve;
    const auto step_to = [&](float parameter, float cost) {
        if (steps && !curve.empty()) { // nothing is in between
            curve.push_back({parameter, curve.back().recall, cost, cost});
        }
    };
    for (size_t p = 0; p < parameters.size(); p++) {
        const float cost = float(ndis[p] / nq);
        step_to(parameters[p], cost);
        curve.push_back({parameters[p], float(recall[p] / nq), cost, cost});
    }
    step_to(all, float(ivf.ntotal));
    return finish_curve(curve, all, ivf.ntotal);
}

} // namespace

Calibration calibrate_index(
        GMMIndexRef index, size_t nq, const float* xq, size_t k) {
    faiss::IndexIVF& ivf = index.ivf;
    IVFGMM& gmm = index.gmm;
    FAISS_THROW_IF_NOT_FMT(
            nq >= kMinQueries,
            "nq = %zu, expected at least %zu",
            nq,
            kMinQueries);
    FAISS_THROW_IF_NOT_FMT(
            k > 0 && size_t(ivf.ntotal) > k,
            "k = %zu, expected above 0 and below ntotal = %zd",
            k,
            size_t(ivf.ntotal));
    FAISS_THROW_IF_NOT_FMT(
            xq || nq <= size_t(ivf.ntotal),
            "nq = %zu, expected at most ntotal = %zd",
            nq,
            size_t(ivf.ntotal));
    const gmm::SerialBlas serial_blas;
    std::vector<float> drawn;
    std::vector<idx_t> self(nq, -1);
    const bool own_queries = !xq;
    if (own_queries) {
        draw_queries(index, nq, drawn, self);
        xq = drawn.data();
    }
    check_storable("xq", nq, ivf.d, xq);

    Calibration c;
    c.k = k;
    c.nq = nq;
    c.ntotal = ivf.ntotal;
    c.own_queries = own_queries;
    if (!own_queries) {
        c.queries.assign(xq, xq + nq * ivf.d);
    }
    const size_t half = nq / 2;
    const Truth truth = exact_neighbours(index, nq, xq, k, self);

    { // tau, of all queries: two numbers
        std::vector<float> rows, target, coarse(kTauBlock * ivf.nlist);
        for (size_t q = 0; q < nq; q++) {
            float* distances = &coarse[q % kTauBlock * ivf.nlist];
            if (q % kTauBlock == 0) {
                coarse_distances(
                        ivf,
                        std::min(kTauBlock, nq - q),
                        xq + q * ivf.d,
                        distances);
            }
            const float d1 =
                    *std::min_element(distances, distances + ivf.nlist);
            const float kth = truth.kth[q];
            if (kth > 0 && d1 > 0) {
                rows.insert(rows.end(), {1, log_distance(d1)});
                target.push_back(log_distance(kth));
            }
        }
        if (!target.empty()) {
            fit_linear(
                    target.size(),
                    2,
                    rows.data(),
                    target.data(),
                    c.tau_weights.data());
        }
    }

    auto add = [&](ProbeOrder order, bool by_mass, Curve curve) {
        c.candidates.push_back({order, by_mass, std::move(curve)});
    };
    auto add_lists = [&](ProbeOrder order, bool by_mass) {
        add(order, by_mass, list_curve(index, order, by_mass, nq, xq, truth));
    };
    add_lists(ProbeOrder::distance, false);
    add_lists(ProbeOrder::log_likelihood, false);
    add_lists(ProbeOrder::scale_free, true);
    if (gmm.cells.empty()) {
        c.fitted = true;
        return c;
    }

    // The traces read tau from the index.
    struct Restore {
        Calibration& slot;
        Calibration saved;
        ~Restore() {
            slot = std::move(saved);
        }
    } restore{gmm.calibration, gmm.calibration};
    gmm.calibration = c;
    gmm.calibration.fitted = true;
    auto add_fixed = [&](ProbeOrder order, const Looks& looks) {
        add(order,
            false,
            fixed_curve(
                    looks, ivf.nlist, ivf.ntotal, cost_factor(order, ivf.d)));
    };
    add_fixed(
            ProbeOrder::cell_distance,
            trace_queries(index, ProbeOrder::cell_distance, nq, xq, truth));
    auto fit_and_add = [&](ProbeOrder order, StopWeights& weights) {
        const Looks looks = trace_queries(index, order, nq, xq, truth);
        add_fixed(order, looks);
        // each half is judged by what the other taught
        const StopWeights of_first = fit_stop(looks, 0, half);
        const StopWeights of_second = fit_stop(looks, half, nq);
        add(order,
            true,
            mass_curve(
                    looks,
                    [&](size_t q, const Look& look) {
                        return missing_mass(
                                q < half ? of_second : of_first, look.features);
                    },
                    ivf.ntotal));
        weights = fit_stop(looks, 0, nq);
    };
    fit_and_add(ProbeOrder::cell_posterior, c.cell_stop_weights);
    if (!gmm.cells.sketches.empty()) {
        fit_and_add(ProbeOrder::sketch, c.sketch_stop_weights);
    }
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
    index.gmm.calibrate(
            std::clamp(
                    index.ivf.nlist / 4,
                    kMinCalibrationQueries,
                    kMaxCalibrationQueries),
            nullptr,
            std::min(k > 0 ? k : 10, size_t(index.ivf.ntotal) - 1));
}

} // namespace faiss_ext
