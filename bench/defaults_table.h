#pragma once

#include <algorithm>
#include <cmath>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <fmt/format.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "report.h"
#include "vector_files.h"

/// What defaults_bench measures of one kind of queries, and prints.
namespace bench {

using faiss_ext::idx_t;

constexpr size_t kNeighbours[] = {1, 10, 100, 1000};
constexpr size_t kProbes[] = {1, 4, 16};
constexpr float kRadii[] = {0.5f, 1, 2}; ///< over the median 10th distance
constexpr double kPassing[] = {0.5, 0.1, 0.01, 0.001}; ///< of a selector

struct TableOptions {
    size_t rounds = 5;   ///< the two take turns so often
    bool single = false; ///< time one query at a time
    std::string what;    ///< rows whose name has this
};

/// An IVF index as FAISS makes it, ours, and FAISS's search of our means.
struct Indexes {
    std::unique_ptr<faiss::Index> ivf, gmm, means;
};

inline void set_nprobe(const Indexes& indexes, size_t nprobe) {
    for (faiss::Index* index :
         {indexes.ivf.get(), indexes.gmm.get(), indexes.means.get()}) {
        dynamic_cast<faiss::IndexIVF&>(*index).nprobe = nprobe;
    }
}

/// The processor's, of all threads: others may use the machine.
template <class F>
double seconds(F&& f) {
    const std::clock_t start = std::clock();
    f();
    return double(std::clock() - start) / CLOCKS_PER_SEC;
}

/// Distances and codes of one search of all queries.
struct Work {
    double distances = 0, codes = 0;
};

template <class F>
Work work_of(size_t queries, F&& search) {
    faiss::indexIVF_stats.reset();
    faiss_ext::ivf_gmm_stats.reset();
    search();
    return {double(faiss::indexIVF_stats.ndis) / queries,
            double(faiss_ext::ivf_gmm_stats.n_codes) / queries};
}

/// Takes turns; the median of the time over the first's.
template <class Search>
void time_ratios(
        size_t rounds,
        const Indexes& indexes,
        Search&& search,
        double& gmm,
        double& means) {
    std::vector<double> of_gmm, of_means;
    for (size_t r = 0; r < rounds; r++) {
        const double t = seconds([&] { search(*indexes.ivf); });
        of_gmm.push_back(seconds([&] { search(*indexes.gmm); }) / t);
        of_means.push_back(seconds([&] { search(*indexes.means); }) / t);
    }
    for (auto* ratios : {&of_gmm, &of_means}) {
        std::nth_element(
                ratios->begin(), ratios->begin() + rounds / 2, ratios->end());
    }
    gmm = of_gmm[rounds / 2];
    means = of_means[rounds / 2];
}

/// Of what the true distances say belongs to the answer, the share that is
/// there; ties with the last count.
inline double share_found(
        const float* truth, size_t k, const float* found, bool similarity) {
    const float last = truth[k - 1];
    const float slack = 1e-5f * std::abs(last);
    size_t n = 0;
    for (size_t j = 0; j < k; j++) {
        n += similarity ? found[j] >= last - slack : found[j] <= last + slack;
    }
    return double(n) / double(k);
}

struct DefaultsRow {
    std::string kind, what;
    size_t nprobe;
    double ivf = 0, gmm = 0, means = 0; ///< recall
    double time = 0, means_time = 0;    ///< over IVF's
    Work ivf_work = {}, gmm_work = {}, means_work = {};
};

class DefaultsTable {
public:
    explicit DefaultsTable(const TableOptions& options_in)
            : options(options_in) {}

    void add(DefaultsRow row) {
        fmt::print(
                "{:24} {:10} nprobe {:2}  recall {:.4f} {:.4f} {:.4f}  time "
                "{:.2f} {:.2f}  distances {:.0f} {:.0f} {:.0f} codes {:.0f}\n",
                row.kind,
                row.what,
                row.nprobe,
                row.ivf,
                row.means,
                row.gmm,
                row.means_time,
                row.time,
                row.ivf_work.distances,
                row.means_work.distances,
                row.gmm_work.distances,
                row.gmm_work.codes);
        rows.push_back(std::move(row));
    }

    /** Adds a row for each nprobe.
     *
     * @param search  of queries i0 to i1 in an index
     * @param recall  of an index, after all queries were searched in it
     */
    template <class Search, class Recall>
    void measure(
            const std::string& kind,
            const std::string& what,
            const Indexes& indexes,
            size_t n,
            Search&& search,
            Recall&& recall) {
        if (what.find(options.what) == std::string::npos) {
            return;
        }
        const auto search_all = [&](const faiss::Index& index) {
            const size_t step = options.single ? 1 : n;
            for (size_t i = 0; i < n; i += step) {
                search(index, i, i + step);
            }
        };
        for (size_t nprobe : kProbes) {
            set_nprobe(indexes, nprobe);
            DefaultsRow row{kind, what, nprobe};
            const auto look = [&](const faiss::Index& index, Work& work) {
                work = work_of(n, [&] { search(index, 0, n); });
                return recall();
            };
            row.ivf = look(*indexes.ivf, row.ivf_work);
            row.gmm = look(*indexes.gmm, row.gmm_work);
            row.means = look(*indexes.means, row.means_work);
            time_ratios(
                    options.rounds,
                    indexes,
                    search_all,
                    row.time,
                    row.means_time);
            add(std::move(row));
        }
    }

    /// @param sel  or nullptr, for all vectors
    void measure_k(
            const std::string& kind,
            const std::string& what,
            const Indexes& indexes,
            const Vectors& q,
            const std::vector<float>& truth,
            size_t truth_k,
            size_t k,
            faiss::IDSelector* sel = nullptr) {
        const bool similarity =
                indexes.ivf->metric_type == faiss::METRIC_INNER_PRODUCT;
        std::vector<float> found(q.n * k);
        std::vector<idx_t> ids(q.n * k);
        faiss::IVFSearchParameters params;
        params.sel = sel;
        measure(
                kind,
                what,
                indexes,
                q.n,
                [&](const faiss::Index& index, size_t i0, size_t i1) {
                    params.nprobe =
                            dynamic_cast<const faiss::IndexIVF&>(index).nprobe;
                    index.search(
                            idx_t(i1 - i0),
                            q.row(i0),
                            idx_t(k),
                            &found[i0 * k],
                            &ids[i0 * k],
                            sel ? &params : nullptr);
                },
                [&] {
                    double sum = 0;
                    for (size_t i = 0; i < q.n; i++) {
                        sum += share_found(
                                &truth[i * truth_k],
                                k,
                                &found[i * k],
                                similarity);
                    }
                    return sum / q.n;
                });
    }

    void measure_neighbours(
            const std::string& kind,
            const Indexes& indexes,
            const Vectors& q,
            const std::vector<float>& truth,
            size_t truth_k) {
        for (size_t k : kNeighbours) {
            if (k <= truth_k) {
                measure_k(
                        kind,
                        fmt::format("k {}", k),
                        indexes,
                        q,
                        truth,
                        truth_k,
                        k);
            }
        }
    }

    /// Vectors pass at random.
    void measure_selectors(
            const std::string& kind,
            const Indexes& indexes,
            const Vectors& q,
            const faiss::Index& flat) {
        constexpr size_t k = 10;
        for (double share : kPassing) {
            std::mt19937 rng(3);
            std::bernoulli_distribution passes(share);
            std::vector<uint8_t> bitmap((flat.ntotal + 7) / 8);
            for (idx_t i = 0; i < flat.ntotal; i++) {
                bitmap[i / 8] |= uint8_t(passes(rng) << i % 8);
            }
            faiss::IDSelectorBitmap sel(bitmap.size(), bitmap.data());
            faiss::SearchParameters params;
            params.sel = &sel;
            std::vector<float> truth(q.n * k);
            std::vector<idx_t> ids(q.n * k);
            flat.search(
                    idx_t(q.n),
                    q.x.data(),
                    idx_t(k),
                    truth.data(),
                    ids.data(),
                    &params);
            measure_k(
                    kind,
                    fmt::format("{:g} % pass", 100 * share),
                    indexes,
                    q,
                    truth,
                    k,
                    k,
                    &sel);
        }
    }

    void measure_ranges(
            const std::string& kind,
            const Indexes& indexes,
            const Vectors& q,
            const faiss::Index& flat,
            float tenth) {
        for (float factor : kRadii) {
            const float radius = factor * tenth;
            size_t found = 0;
            const auto search = [&](const faiss::Index& index,
                                    size_t i0,
                                    size_t i1) {
                faiss::RangeSearchResult result(idx_t(i1 - i0));
                index.range_search(idx_t(i1 - i0), q.row(i0), radius, &result);
                found = result.lims[i1 - i0];
            };
            search(flat, 0, q.n);
            const double all = double(found);
            if (all < double(q.n)) {
                continue;
            }
            measure(kind,
                    fmt::format("range {}", factor),
                    indexes,
                    q.n,
                    search,
                    [&] { return found / all; });
        }
    }

    /// How many rows are behind, and the worst of them.
    void summary() const {
        size_t less = 0, less_means = 0, slower = 0;
        double worst = 0, worst_means = 0, slowest = 0;
        for (const DefaultsRow& row : rows) {
            less += row.gmm < row.ivf - 0.002;
            less_means += row.gmm < row.means - 0.002;
            slower += row.time > 1.1;
            worst = std::max(worst, row.ivf - row.gmm);
            worst_means = std::max(worst_means, row.means - row.gmm);
            slowest = std::max(slowest, row.time);
        }
        fmt::print(
                "{} rows; recall more than 0.002 below IVF's in {} (worst "
                "{:.4f}), below that of an IVF of the same means in {} (worst "
                "{:.4f}); time above 1.1 times IVF's in {} (worst {:.2f})\n",
                rows.size(),
                less,
                worst,
                less_means,
                worst_means,
                slower,
                slowest);
    }

    nlohmann::json json() const {
        nlohmann::json out;
        for (const DefaultsRow& row : rows) {
            out.push_back(
                    {{"queries", row.kind},
                     {"what", row.what},
                     {"nprobe", row.nprobe},
                     {"ivf_recall", row.ivf},
                     {"gmm_recall", row.gmm},
                     {"means_recall", row.means},
                     {"time_over_ivf", row.time},
                     {"means_time_over_ivf", row.means_time},
                     {"ivf_distances", row.ivf_work.distances},
                     {"gmm_distances", row.gmm_work.distances},
                     {"gmm_codes", row.gmm_work.codes},
                     {"means_distances", row.means_work.distances}});
        }
        return out;
    }

private:
    const TableOptions options;
    std::vector<DefaultsRow> rows;
};

} // namespace bench
