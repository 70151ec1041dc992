/** Whether an index that nobody calibrated for a use is ever behind the IVF
 * index that stood there: recall and time at the same nprobe, for queries of
 * the vectors' own kind and of others, both metrics, k from 1 to 1,000,
 * ranges, and selectors. */

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFFlat.h>
#include <fmt/format.h>
#include <omp.h>
#include <CLI/CLI.hpp>

#include "defaults_table.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/index_factory.h"
#include "report.h"
#include "vector_files.h"

namespace {

using bench::DefaultsTable;
using bench::Indexes;
using bench::Vectors;
using faiss_ext::idx_t;

struct Options {
    std::string base, query, json;
    std::vector<double> clusters; ///< n, d, clusters, spread
    size_t nlist = 1024;
    size_t queries = 300;
    std::string only;
    bench::TableOptions table;
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

void run(const Options& options, DefaultsTable& table) {
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
    app.add_option(
               "--rounds", options.table.rounds, "the two take turns so often")
            ->capture_default_str();
    app.add_flag("--single", options.table.single, "time one query at a time");
    app.add_option(
            "--only", options.only, "kinds of queries whose name has this");
    app.add_option(
            "--what",
            options.table.what,
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
    DefaultsTable table(options.table);
    run(options, table);
    table.summary();
    if (!options.json.empty()) {
        nlohmann::json json = bench::provenance(argc, argv);
        json["rows"] = table.json();
        bench::write_json(options.json, json);
    }
}
