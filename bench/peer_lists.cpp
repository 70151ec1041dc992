/** What other ways of choosing lists cost: k-means with copies of border
 * vectors, by other people's rules, counted without building an index.
 *
 * All use the means that FAISS trains for IVF<nlist>,Flat on the same sample,
 * probe whole lists in order of distance, and are granted that a vector in
 * several probed lists is computed once. Squared L2 only.
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

struct Lists {
    std::vector<float> means;     ///< size nlist * d
    std::vector<int64_t> nearest; ///< of each base vector, size n * kNearest
    std::vector<float> distances; ///< squared, to those
    std::vector<int64_t> ranking; ///< of each query, size nq * nlist
};

Lists make_lists(const Inputs& inputs, size_t nlist) {
    const size_t d = inputs.xb.d;
    const auto index =
            bench::build(fmt::format("IVF{},Flat", nlist), d, faiss::METRIC_L2);
    index->train(inputs.training().n, inputs.training().x.data());
    const auto& quantizer =
            *dynamic_cast<const faiss::IndexIVF&>(*index).quantizer;
    Lists lists;
    lists.means.resize(nlist * d);
    quantizer.reconstruct_n(0, nlist, lists.means.data());
    lists.nearest.resize(inputs.xb.n * kNearest);
    lists.distances.resize(inputs.xb.n * kNearest);
    quantizer.search(
            inputs.xb.n,
            inputs.xb.x.data(),
            kNearest,
            lists.distances.data(),
            lists.nearest.data());
    std::vector<float> unused(inputs.xq.n * nlist);
    lists.ranking.resize(inputs.xq.n * nlist);
    quantizer.search(
            inputs.xq.n,
            inputs.xq.x.data(),
            nlist,
            unused.data(),
            lists.ranking.data());
    return lists;
}

/// The curve of one rule: a row for each nprobe of a geometric series.
std::vector<Row> run(
        const std::string& label,
        const Rule& rule,
        const Inputs& inputs,
        const Lists& lists,
        size_t nlist) {
    const size_t n = inputs.xb.n, nq = inputs.xq.n, d = inputs.xb.d;
    std::vector<std::vector<int64_t>> lists_of(n);
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        const Candidates candidates{
                d,
                inputs.xb.row(i),
                lists.nearest.data() + i * kNearest,
                lists.distances.data() + i * kNearest,
                lists.means.data()};
        for (const size_t j : rule(candidates)) {
            lists_of[i].push_back(candidates.lists[j]);
        }
    }
    size_t entries = 0;
    for (const auto& some : lists_of) {
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
            for (const int64_t list : lists_of[i]) {
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
        row.set_total_cost(d);
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
            "in several k-means lists.");
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
        fmt::print(stderr, "training and assigning\n");
        const Lists lists = make_lists(inputs, nlist);
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
        for (const auto& [label, rule] : rules) {
            const auto some = run(label, rule, inputs, lists, nlist);
            rows.insert(rows.end(), some.begin(), some.end());
        }
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
