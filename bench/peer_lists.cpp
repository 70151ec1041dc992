/** What other ways of choosing lists cost, counted without building an index:
 * k-means with copies of border vectors by other people's rules, and the
 * textbook mixture.
 *
 * The rules use the means that FAISS trains for IVF<nlist>,Flat on the same
 * sample, probe whole lists in order of distance, and are granted that a
 * vector in several probed lists is computed once. The textbook mixture
 * assigns and probes by log pi_k + log N(x; mu_k, sigma_k^2 I). Squared L2
 * only.
 */

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/utils/distances.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "Backend.h"
#include "EMTrainer.h"
#include "index_access.h"
#include "inputs.h"
#include "report.h"

namespace {

using bench::Inputs;
using bench::Row;

constexpr size_t kNearest = 8; ///< lists that a vector may choose from
constexpr size_t kCopies = 4;  ///< lists that it may be in

/// A vector, its nearest lists in order, their means and squared distances.
struct Candidates {
    size_t d;
    const float* x;
    const int64_t* lists;
    const float* distances;
    const float* means; ///< of all lists

    const float* mean(size_t i) const {
        return means + lists[i] * d;
    }
};

/// Picks from the candidates: numbers into them, the nearest (0) first.
using Rule = std::function<std::vector<size_t>(const Candidates&)>;

/// SPANN's closure (arXiv 2111.08566): every list nearer than 1.3 times the
/// nearest, unless a chosen mean is nearer to its mean than the vector is.
std::vector<size_t> spann(const Candidates& c) {
    std::vector<size_t> chosen{0};
    for (size_t j = 1; j < kNearest && chosen.size() < kCopies; j++) {
        const bool near = c.distances[j] <= 1.3f * 1.3f * c.distances[0];
        const bool hidden =
                std::any_of(chosen.begin(), chosen.end(), [&](size_t l) {
                    return faiss::fvec_L2sqr(c.mean(j), c.mean(l), c.d) <
                            c.distances[j];
                });
        if (near && !hidden) {
            chosen.push_back(j);
        }
    }
    return chosen;
}

/// SOAR (arXiv 2404.00774), lambda = 1: the second list's residual should be
/// short and not parallel to the first's.
std::vector<size_t> soar(const Candidates& c) {
    const float norm = std::sqrt(c.distances[0]) + 1e-9f;
    size_t best = 1;
    double best_cost = 0;
    for (size_t j = 1; j < kNearest; j++) {
        double dot = 0;
        for (size_t t = 0; t < c.d; t++) {
            dot += (c.x[t] - c.mean(j)[t]) * (c.x[t] - c.mean(0)[t]);
        }
        const double cost = c.distances[j] + (dot / norm) * (dot / norm);
        if (j == 1 || cost < best_cost) {
            best = j;
            best_cost = cost;
        }
    }
    return {0, best};
}

/// What a search by whole lists depends on.
struct Lists {
    std::vector<std::vector<int64_t>> of_vector; ///< size n
    std::vector<int64_t> ranking; ///< of each query, size nq * nlist
};

/// FAISS's k-means, and what the rules choose from.
struct KMeans {
    std::vector<float> means;     ///< size nlist * d
    std::vector<int64_t> nearest; ///< of each base vector, size n * kNearest
    std::vector<float> distances; ///< squared, to those
    std::vector<int64_t> ranking; ///< of each query, size nq * nlist
};

KMeans train_kmeans(const Inputs& inputs, size_t nlist) {
    const size_t n = inputs.xb.n, nq = inputs.xq.n, d = inputs.xb.d;
    const auto index =
            bench::build(fmt::format("IVF{},Flat", nlist), d, faiss::METRIC_L2);
    index->train(inputs.training().n, inputs.training().x.data());
    const auto& quantizer =
            *dynamic_cast<const faiss::IndexIVF&>(*index).quantizer;
    KMeans kmeans;
    kmeans.means.resize(nlist * d);
    quantizer.reconstruct_n(0, nlist, kmeans.means.data());
    kmeans.nearest.resize(n * kNearest);
    kmeans.distances.resize(n * kNearest);
    quantizer.search(
            n,
            inputs.xb.x.data(),
            kNearest,
            kmeans.distances.data(),
            kmeans.nearest.data());
    std::vector<float> unused(nq * nlist);
    kmeans.ranking.resize(nq * nlist);
    quantizer.search(
            nq,
            inputs.xq.x.data(),
            nlist,
            unused.data(),
            kmeans.ranking.data());
    return kmeans;
}

Lists apply(const Rule& rule, const KMeans& kmeans, const Inputs& inputs) {
    Lists lists{std::vector<std::vector<int64_t>>(inputs.xb.n), kmeans.ranking};
#pragma omp parallel for
    for (size_t i = 0; i < inputs.xb.n; i++) {
        const Candidates candidates{
                inputs.xb.d,
                inputs.xb.row(i),
                kmeans.nearest.data() + i * kNearest,
                kmeans.distances.data() + i * kNearest,
                kmeans.means.data()};
        for (const size_t j : rule(candidates)) {
            lists.of_vector[i].push_back(candidates.lists[j]);
        }
    }
    return lists;
}

gmm::Rows rows_of(const bench::Vectors& v) {
    return {v.x.data(), gmm::ElementType::f32, v.n, v.d, v.d * sizeof(float)};
}

Lists textbook_mixture(const Inputs& inputs, size_t nlist) {
    const auto& xt = inputs.training();
    const auto backend = gmm::make_cpu_backend();
    const auto source = gmm::memory_source(xt.x.data(), xt.n, xt.d);
    const auto trained = gmm::train(*source, nullptr, nlist, {}, *backend);
    gmm::Frame frame{std::vector<float>(xt.d), 1, {}}; // around the mean
    for (size_t j = 0; j < xt.d; j++) {
        double sum = 0;
        for (size_t i = 0; i < xt.n; i++) {
            sum += xt.row(i)[j];
        }
        frame.center[j] = float(sum / xt.n);
    }
    backend->set_data(*source, nullptr, frame);
    backend->set_model(frame.to_frame(trained.model));

    std::vector<int64_t> home(inputs.xb.n);
    backend->top_components(
            rows_of(inputs.xb), 1, home.data(), nullptr, nullptr);
    Lists lists;
    for (const int64_t list : home) {
        lists.of_vector.push_back({list});
    }
    lists.ranking.resize(inputs.xq.n * nlist);
    backend->top_components(
            rows_of(inputs.xq), nlist, lists.ranking.data(), nullptr, nullptr);
    return lists;
}

/// A row for each nprobe of a geometric series.
std::vector<Row> run(
        const std::string& label,
        const Lists& lists,
        const Inputs& inputs,
        size_t nlist) {
    const size_t n = inputs.xb.n, nq = inputs.xq.n;
    size_t entries = 0;
    for (const auto& some : lists.of_vector) {
        entries += some.size();
    }

    // A vector is met when the first of its lists is probed.
    std::vector<double> distances(nlist, 0.0), recall(nlist, 0.0);
#pragma omp parallel
    {
        std::vector<size_t> rank(nlist), met(nlist), found(nlist);
        std::vector<double> my_distances(nlist, 0.0), my_recall(nlist, 0.0);
        const auto first_rank = [&](size_t i) {
            size_t first = nlist - 1;
            for (const int64_t list : lists.of_vector[i]) {
                first = std::min(first, rank[list]);
            }
            return first;
        };
#pragma omp for
        for (size_t q = 0; q < nq; q++) {
            for (size_t r = 0; r < nlist; r++) {
                rank[lists.ranking[q * nlist + r]] = r;
            }
            std::fill(met.begin(), met.end(), 0);
            std::fill(found.begin(), found.end(), 0);
            for (size_t i = 0; i < n; i++) {
                met[first_rank(i)]++;
            }
            for (const int64_t id : inputs.truth.ids[q]) {
                found[first_rank(id)]++;
            }
            size_t met_so_far = 0, found_so_far = 0;
            for (size_t r = 0; r < nlist; r++) {
                met_so_far += met[r];
                found_so_far += found[r];
                my_distances[r] += met_so_far;
                my_recall[r] += double(std::min(found_so_far, inputs.k));
            }
        }
#pragma omp critical
        for (size_t r = 0; r < nlist; r++) {
            distances[r] += my_distances[r];
            recall[r] += my_recall[r];
        }
    }

    std::vector<Row> rows;
    for (const size_t nprobe : bench::geometric(nlist)) {
        Row row;
        row.factory = "simulated";
        row.label = label;
        row.setting = fmt::format("nprobe={}", nprobe);
        row.recall_at_k = recall[nprobe - 1] / nq / inputs.k;
        row.distances_per_query = distances[nprobe - 1] / nq;
        row.coarse_distances_per_query = double(nlist);
        row.set_total_cost(inputs.xb.d);
        row.copies_per_vector = double(entries) / n;
        rows.push_back(row);
        if (row.recall_at_k >= bench::kEnoughRecall) {
            break;
        }
    }
    bench::print_rows(rows);
    return rows;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app(
            "Recall and distance counts of other rules for placing vectors "
            "in several k-means lists, and of the textbook mixture.");
    Inputs inputs;
    inputs.add_options(app);
    size_t nlist = 1024;
    std::string json_path;
    app.add_option("--nlist", nlist, "Lists")
            ->capture_default_str()
            ->check(CLI::Range(size_t(kNearest), size_t(1) << 20));
    app.add_option("--json", json_path, "Write all rows to this file");
    CLI11_PARSE(app, argc, argv);

    try {
        inputs.load();
        if (inputs.metric != faiss::METRIC_L2) {
            throw std::runtime_error("--metric must be l2");
        }
        fmt::print(stderr, "training k-means\n");
        const KMeans kmeans = train_kmeans(inputs, nlist);
        const std::string baseline = fmt::format("IVF{},Flat", nlist);
        const std::pair<std::string, Rule> rules[] = {
                {baseline,
                 [](const Candidates&) { return std::vector<size_t>{0}; }},
                {"second-nearest list",
                 [](const Candidates&) {
                     return std::vector<size_t>{0, 1};
                 }},
                {"SPANN closure 1.3", spann},
                {"SOAR lambda 1", soar}};
        std::vector<Row> rows;
        const auto add = [&](const std::string& label, const Lists& lists) {
            const auto some = run(label, lists, inputs, nlist);
            rows.insert(rows.end(), some.begin(), some.end());
        };
        for (const auto& [label, rule] : rules) {
            add(label, apply(rule, kmeans, inputs));
        }
        fmt::print(stderr, "training the mixture\n");
        add("textbook GMM", textbook_mixture(inputs, nlist));
        auto json = bench::provenance(argc, argv);
        json["data"] = inputs.describe();
        json["results"] = bench::to_json(rows);
        json["comparison"] = bench::compare(rows, baseline, {});
        if (!json_path.empty()) {
            bench::write_json(json_path, json);
        }
    } catch (const std::exception& e) {
        fmt::print(stderr, "peer_lists: {}\n", e.what());
        return 1;
    }
}
