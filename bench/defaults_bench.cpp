/** Whether an index that nobody calibrated for a use is ever behind the IVF
 * index that stood there: recall and time at the same nprobe, for queries of
 * the vectors' own kind and of others, both metrics, k from 1 to 1,000,
 * ranges, and selectors. */

#include <algorithm>
#include <cmath>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <fmt/format.h>
#include <omp.h>
#include <CLI/CLI.hpp>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/index_factory.h"
#include "report.h"
#include "vector_files.h"

namespace {

using bench::Vectors;
using faiss_ext::idx_t;

struct Options {
    std::string base, query, json;
    std::vector<double> clusters; ///< n, d, clusters, spread
    size_t nlist = 1024;
    size_t queries = 300;
    size_t rounds = 5;
    bool single = false;
    std::string only, what;
};

/// The kinds of queries: q, then something done to it.
struct Kind {
    const char* name;
    faiss::MetricType metric;
    float scale;
    float offset; ///< along one direction, in root mean squares of the base
};

constexpr Kind kKinds[] = {
        {"own", faiss::METRIC_L2, 1, 0},
        {"offset 1", faiss::METRIC_L2, 1, 1},
        {"offset 2", faiss::METRIC_L2, 1, 2},
        {"negated", faiss::METRIC_L2, -1, 0},
        {"times 3", faiss::METRIC_L2, 3, 0},
        {"own", faiss::METRIC_INNER_PRODUCT, 1, 0},
        {"offset 1", faiss::METRIC_INNER_PRODUCT, 1, 1},
        {"negated", faiss::METRIC_INNER_PRODUCT, -1, 0},
};
constexpr size_t kNeighbours[] = {1, 10, 100, 1000};
constexpr size_t kProbes[] = {1, 4, 16};
constexpr float kRadii[] = {0.5f, 1, 2}; ///< over the median 10th distance
constexpr double kPassing[] = {0.5, 0.1, 0.01, 0.001}; ///< of a selector

Vectors clustered(size_t n, size_t d, size_t clusters, float spread, int seed) {
    std::mt19937 at(1), rng(seed); // one set of centres for base and queries
    std::normal_distribution<float> normal;
    std::vector<float> centres(clusters * d);
    for (float& c : centres) {
        c = normal(at);
    }
    Vectors v{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const float* c = &centres[rng() % clusters * d];
        for (size_t j = 0; j < d; j++) {
            v.x[i * d + j] = c[j] + spread * normal(rng);
        }
    }
    return v;
}

Vectors make_queries(const Vectors& q, const Vectors& xb, const Kind& kind) {
    double sum = 0;
    for (float x : xb.x) {
        sum += double(x) * x;
    }
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    std::vector<float> direction(q.d);
    double norm = 0;
    for (float& x : direction) {
        x = normal(rng);
        norm += double(x) * x;
    }
    const double length = kind.offset * std::sqrt(sum / xb.n / norm);
    Vectors out = q;
    for (size_t i = 0; i < q.n * q.d; i++) {
        out.x[i] = float(kind.scale * q.x[i] + length * direction[i % q.d]);
    }
    return out;
}

/// An IVF index as FAISS makes it, ours, and FAISS's search of our means.
struct Indexes {
    std::unique_ptr<faiss::Index> ivf, gmm, means;
};

Indexes build(const Vectors& xb, size_t nlist, faiss::MetricType metric) {
    Indexes out;
    out.ivf.reset(faiss_ext::index_factory(
            int(xb.d), fmt::format("IVF{},Flat", nlist).c_str(), metric));
    out.gmm.reset(faiss_ext::index_factory(
            int(xb.d), fmt::format("GMM{},Flat", nlist).c_str(), metric));
    for (faiss::Index* index : {out.ivf.get(), out.gmm.get()}) {
        index->train(idx_t(xb.n), xb.x.data());
        index->add(idx_t(xb.n), xb.x.data());
    }
    out.means = std::make_unique<faiss::IndexIVFFlat>(
            dynamic_cast<faiss::IndexIVF&>(*out.gmm).quantizer,
            xb.d,
            nlist,
            metric);
    out.means->add(idx_t(xb.n), xb.x.data());
    return out;
}

void set_nprobe(const Indexes& indexes, size_t nprobe) {
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
double share_found(
        const float* truth, size_t k, const float* found, bool similarity) {
    const float last = truth[k - 1];
    const float slack = 1e-5f * std::abs(last);
    size_t n = 0;
    for (size_t j = 0; j < k; j++) {
        n += similarity ? found[j] >= last - slack : found[j] <= last + slack;
    }
    return double(n) / double(k);
}

struct Row {
    std::string kind, what;
    size_t nprobe;
    double ivf = 0, gmm = 0, means = 0; ///< recall
    double time = 0, means_time = 0;    ///< over IVF's
    Work ivf_work = {}, gmm_work = {}, means_work = {};
};

class Table {
public:
    explicit Table(const Options& options_in) : options(options_in) {}

    void add(Row row) {
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
            Row row{kind, what, nprobe};
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
        for (const Row& row : rows) {
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
        for (const Row& row : rows) {
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
    const Options& options;
    std::vector<Row> rows;
};

void run(const Options& options, Table& table) {
    const auto& c = options.clusters;
    const Vectors xb = c.empty()
            ? bench::read_vectors(options.base, "train")
            : clustered(
                      size_t(c[0]), size_t(c[1]), size_t(c[2]), float(c[3]), 2);
    Vectors q = c.empty() ? bench::read_vectors(options.query, "test")
                          : clustered(
                                    options.queries,
                                    size_t(c[1]),
                                    size_t(c[2]),
                                    float(c[3]),
                                    3);
    q.n = std::min(q.n, options.queries);
    q.x.resize(q.n * q.d);
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const bool l2 = metric == faiss::METRIC_L2;
        const Indexes indexes = build(xb, options.nlist, metric);
        faiss::IndexFlat flat(idx_t(xb.d), metric);
        flat.add(idx_t(xb.n), xb.x.data());
        for (const Kind& kind : kKinds) {
            const std::string name = fmt::format(
                    "{}, {}", l2 ? "L2" : "inner product", kind.name);
            if (kind.metric != metric ||
                name.find(options.only) == std::string::npos) {
                continue;
            }
            const Vectors queries = make_queries(q, xb, kind);
            const size_t k = std::min<size_t>(1000, xb.n);
            std::vector<float> truth(queries.n * k);
            std::vector<idx_t> ids(truth.size());
            flat.search(
                    idx_t(queries.n),
                    queries.x.data(),
                    idx_t(k),
                    truth.data(),
                    ids.data());
            table.measure_neighbours(name, indexes, queries, truth, k);
            if (kind.offset == 0 && kind.scale == 1) {
                table.measure_selectors(name, indexes, queries, flat);
            }
            if (l2 && kind.offset == 0 && kind.scale == 1) {
                std::vector<float> tenth;
                for (size_t i = 0; i < queries.n; i++) {
                    tenth.push_back(truth[i * k + 9]);
                }
                std::nth_element(
                        tenth.begin(),
                        tenth.begin() + queries.n / 2,
                        tenth.end());
                table.measure_ranges(
                        name, indexes, queries, flat, tenth[queries.n / 2]);
            }
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app("An index that nobody calibrated, beside FAISS's IVF");
    app.add_option("--base", options.base, "vectors");
    app.add_option("--query", options.query, "queries");
    app.add_option(
               "--clusters",
               options.clusters,
               "instead of files: vectors, dimensions, normal clusters about "
               "centres of spread 1, and their spread")
            ->expected(4);
    app.add_option("--nlist", options.nlist, "lists")->capture_default_str();
    app.add_option("--queries", options.queries, "at most")
            ->capture_default_str();
    app.add_option("--rounds", options.rounds, "the two take turns so often")
            ->capture_default_str();
    app.add_flag("--single", options.single, "time one query at a time");
    app.add_option(
            "--only", options.only, "kinds of queries whose name has this");
    app.add_option(
            "--what",
            options.what,
            "numbers of neighbours, ranges and selectors whose name has this");
    app.add_option("--json", options.json, "output");
    int threads = 1;
    app.add_option("--threads", threads, "of the searches")
            ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    if (options.clusters.empty() &&
        (options.base.empty() || options.query.empty())) {
        fmt::print(stderr, "--base and --query, or --clusters, are missing\n");
        return 2;
    }
    omp_set_num_threads(threads);
    Table table(options);
    run(options, table);
    table.summary();
    if (!options.json.empty()) {
        nlohmann::json json = bench::provenance(argc, argv);
        json["rows"] = table.json();
        bench::write_json(options.json, json);
    }
}
