#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <faiss/Index.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "vector_files.h"

namespace bench {

/// The exact answer, against which recall is counted.
struct Truth {
    size_t k = 0;
    /// For each query: the ids of the k nearest and of all that tie with the
    /// k-th, ascending. Whichever of these a search returns is right.
    std::vector<std::vector<int64_t>> ids;

    /// Share of the k nearest among the k labels that search returned for
    /// query i.
    double recall(size_t i, const int64_t* labels) const;
};

/// What both programs read and how they split it.
struct Inputs {
    std::string base, query, groundtruth;
    size_t k = 10;
    size_t max_train = 0;   ///< 0: the whole base
    size_t max_queries = 0; ///< 0: all
    size_t held_out = 0;    ///< the first queries, for calibration only
    uint64_t seed = 1234;
    std::string metric_name = "l2";
    bool normalize = false;
    int threads = 0;       ///< of searches; 0: one for each core
    int build_threads = 0; ///< of training and adding; 0: as many

    faiss::MetricType metric = faiss::METRIC_L2;
    Vectors xb;  ///< base
    Vectors xt;  ///< training sample; empty: the base itself
    Vectors xq;  ///< queries that recall is measured on
    Vectors xc;  ///< queries held out for calibration
    Truth truth; ///< of xq

    void add_options(CLI::App& app);
    /// Reads the files, draws the sample, sets the threads, computes the
    /// ground truth where no file gives it. Progress on stderr.
    void load();
    /// One of the numbers above, for what follows.
    static void set_threads(int n);
    const Vectors& training() const {
        return xt.n ? xt : xb;
    }
    /// Names and sizes, for the JSON.
    nlohmann::json describe() const;
};

} // namespace bench
