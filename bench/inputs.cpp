#include "inputs.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <random>
#include <stdexcept>

#include <faiss/IndexFlat.h>
#include <faiss/utils/distances.h>
#include <fmt/format.h>
#include <omp.h>

// Of OpenBLAS, which has threads of its own; another BLAS does not have it.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace bench {

namespace {

std::string file_name(const std::string& path) {
    return std::filesystem::path(path).filename().string();
}

double distance(
        const float* x, const float* y, size_t d, faiss::MetricType metric) {
    // Smaller is nearer for both metrics.
    return metric == faiss::METRIC_L2 ? faiss::fvec_L2sqr(x, y, d)
                                      : -faiss::fvec_inner_product(x, y, d);
}

/// Rows [begin, end), moved out of v.
Vectors slice(const Vectors& v, size_t begin, size_t end) {
    return {end - begin, v.d, {v.row(begin), v.row(0) + end * v.d}};
}

/// n distinct rows in random order.
Vectors sample(const Vectors& v, size_t n, uint64_t seed) {
    std::vector<size_t> rows(v.n);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), std::mt19937_64(seed));
    Vectors s{n, v.d, {}};
    s.x.reserve(n * v.d);
    for (size_t i = 0; i < n; i++) {
        s.x.insert(s.x.end(), v.row(rows[i]), v.row(rows[i]) + v.d);
    }
    return s;
}

/// More neighbours than k, so that ties with the k-th can be seen.
Neighbors exact_search(
        const Vectors& xb,
        const Vectors& xq,
        size_t k,
        faiss::MetricType metric) {
    faiss::IndexFlat index(xb.d, metric);
    index.add(xb.n, xb.x.data());
    Neighbors t{xq.n, std::min(2 * k, xb.n), {}};
    t.ids.resize(t.n * t.k);
    std::vector<float> distances(t.ids.size());
    std::vector<int64_t> labels(t.ids.size());
    index.search(xq.n, xq.x.data(), t.k, distances.data(), labels.data());
    std::copy(labels.begin(), labels.end(), t.ids.begin());
    return t;
}

/// The first k of each row and what ties with the k-th.
Truth make_truth(
        const Neighbors& t,
        const Vectors& xb,
        const Vectors& xq,
        size_t k,
        faiss::MetricType metric) {
    Truth truth{k, std::vector<std::vector<int64_t>>(t.n)};
    for (size_t i = 0; i < t.n; i++) {
        const int64_t* ids = t.ids.data() + i * t.k;
        const auto to = [&](size_t j) {
            if (ids[j] < 0 || size_t(ids[j]) >= xb.n) {
                throw std::runtime_error(fmt::format(
                        "ground truth of query {}: id {} is not in the base "
                        "of {}",
                        i,
                        ids[j],
                        xb.n));
            }
            return distance(xq.row(i), xb.row(ids[j]), xb.d, metric);
        };
        const double kth = to(k - 1);
        const double bound = kth + 1e-6 * std::abs(kth);
        for (size_t j = 0; j < t.k && (j < k || to(j) <= bound); j++) {
            truth.ids[i].push_back(ids[j]);
        }
        std::sort(truth.ids[i].begin(), truth.ids[i].end());
    }
    return truth;
}

} // namespace

double Truth::recall(size_t i, const int64_t* labels) const {
    const auto found = std::count_if(labels, labels + k, [&](auto id) {
        return std::binary_search(ids[i].begin(), ids[i].end(), id);
    });
    return double(std::min<size_t>(found, k)) / k;
}

void Inputs::add_options(CLI::App& app) {
    app.add_option(
               "--base",
               base,
               "Base vectors: .fvecs, .bvecs, .fbin, .u8bin, .npy, or an "
               "ann-benchmarks .hdf5, which holds the queries and the ground "
               "truth too")
            ->required()
            ->check(CLI::ExistingFile);
    app.add_option("--query", query, "Query vectors")->check(CLI::ExistingFile);
    app.add_option(
               "--groundtruth",
               groundtruth,
               "True neighbours, .ibin or .ivecs; computed where it is absent")
            ->check(CLI::ExistingFile);
    app.add_option(
            "--train",
            max_train,
            "Train every index on the same random sample of this many base "
            "vectors (default: the whole base)");
    app.add_option("--queries", max_queries, "Use this many queries at most");
    app.add_option("--seed", seed, "Of the training sample")
            ->capture_default_str();
    app.add_option("--k", k, "Neighbours asked for")
            ->capture_default_str()
            ->check(CLI::PositiveNumber);
    app.add_option("--metric", metric_name, "l2 or ip (inner product)")
            ->capture_default_str()
            ->check(CLI::IsMember({"l2", "ip"}));
    app.add_flag(
            "--normalize", normalize, "Scale every vector to length 1 first");
    app.add_option("--threads", threads, "Default: one for each core")
            ->check(CLI::PositiveNumber);
    app.add_option(
               "--build-threads",
               build_threads,
               "Of training, adding and the ground truth (default: --threads)")
            ->check(CLI::PositiveNumber);
}

void Inputs::set_threads(int n) {
    omp_set_num_threads(n);
    if (openblas_set_num_threads) {
        openblas_set_num_threads(n);
    }
}

void Inputs::load() {
    if (threads == 0) {
        threads = omp_get_num_procs();
    }
    if (build_threads == 0) {
        build_threads = threads;
    }
    set_threads(build_threads);
    metric = metric_name == "ip" ? faiss::METRIC_INNER_PRODUCT
                                 : faiss::METRIC_L2;
    if (query.empty() && is_hdf5(base)) {
        query = base;
        if (groundtruth.empty() && !normalize) {
            groundtruth = base;
        }
    }
    if (query.empty()) {
        throw std::runtime_error("--query is missing");
    }
    fmt::print(stderr, "reading {}, {}\n", file_name(base), file_name(query));
    xb = read_vectors(base, "train");
    xq = read_vectors(query, "test");
    if (xb.d != xq.d) {
        throw std::runtime_error(fmt::format(
                "base has {} dimensions, queries have {}", xb.d, xq.d));
    }
    if (k > xb.n) {
        throw std::runtime_error(
                fmt::format("--k {} is more than the {} vectors", k, xb.n));
    }
    if (normalize) {
        faiss::fvec_renorm_L2(xb.d, xb.n, xb.x.data());
        faiss::fvec_renorm_L2(xq.d, xq.n, xq.x.data());
    }
    Neighbors t;
    if (!groundtruth.empty()) {
        t = read_neighbors(groundtruth);
        if (t.n != xq.n || t.k < k) {
            throw std::runtime_error(fmt::format(
                    "ground truth is {} x {}; {} queries need {} x {} or more",
                    t.n,
                    t.k,
                    xq.n,
                    xq.n,
                    k));
        }
    }
    if (max_queries && max_queries < xq.n) {
        xq = slice(xq, 0, max_queries);
        t.n = std::min(t.n, xq.n);
    }
    if (held_out >= xq.n) {
        throw std::runtime_error(fmt::format(
                "{} of {} queries held out: none left", held_out, xq.n));
    }
    if (held_out) {
        xc = slice(xq, 0, held_out);
        xq = slice(xq, held_out, xq.n);
        if (t.n) {
            t.n -= held_out;
            t.ids.erase(t.ids.begin(), t.ids.begin() + held_out * t.k);
        }
    }
    if (groundtruth.empty()) {
        fmt::print(stderr, "exact search for the ground truth\n");
        t = exact_search(xb, xq, k, metric);
    }
    truth = make_truth(t, xb, xq, k, metric);
    if (max_train && max_train < xb.n) {
        xt = sample(xb, max_train, seed);
    }
    set_threads(threads);
    fmt::print(
            stderr,
            "{} base vectors, {} for training, {} queries, {} dimensions\n",
            xb.n,
            training().n,
            xq.n,
            xb.d);
}

nlohmann::json Inputs::describe() const {
    return {{"base", file_name(base)},
            {"query", file_name(query)},
            {"groundtruth",
             groundtruth.empty() ? "computed" : file_name(groundtruth)},
            {"n", xb.n},
            {"d", xb.d},
            {"n_train", training().n},
            {"n_query", xq.n},
            {"n_calibration", xc.n},
            {"seed", seed},
            {"k", k},
            {"metric", metric_name},
            {"normalized", normalize},
            {"threads", threads},
            {"build_threads", build_threads}};
}

} // namespace bench
