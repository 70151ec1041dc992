// Processor seconds of an index's training and of one EM iteration:
// train_peers.py runs it beside superkmeans.

#include <cstdio>
#include <ctime>
#include <memory>
#include <string>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "EMTrainer.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "report.h"
#include "vector_files.h"

namespace {

/// Of all threads of this process.
template <class F>
double processor_seconds(const F& f) {
    const std::clock_t start = std::clock();
    f();
    return double(std::clock() - start) / CLOCKS_PER_SEC;
}

/// Mean squared distance of every fourth vector to the nearest mean.
double distortion(const bench::Vectors& data, const faiss::Index& means) {
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < data.n; i += 4, n++) {
        float distance = 0;
        faiss_ext::idx_t list = 0;
        means.search(1, data.row(i), 1, &distance, &list);
        sum += distance;
    }
    return sum / double(n);
}

double iteration_seconds(const bench::Vectors& data, size_t k) {
    const auto backend = gmm::make_cpu_backend();
    const auto source = gmm::memory_source(data.x.data(), data.n, data.d);
    gmm::TrainingOptions options;
    options.hard_iterations = 0;
    options.tolerance = 0;
    auto train_for = [&](int iterations) {
        options.niter = iterations;
        return processor_seconds(
                [&] { gmm::train(*source, nullptr, k, options, *backend); });
    };
    return (train_for(8) - train_for(2)) / 6;
}

} // namespace

int main(int argc, char** argv) {
    std::string file, json;
    size_t n = 200'000, k = 1024;
    CLI::App app("Processor seconds of training on the CPU");
    app.add_option("--data", file, "vectors, spread evenly over the file")
            ->required();
    app.add_option("--n", n, "how many")->capture_default_str();
    app.add_option("--k", k, "lists")->capture_default_str();
    app.add_option("--json", json, "file to write");
    CLI11_PARSE(app, argc, argv);

    try {
        const bench::Vectors all = bench::read_vectors(file, "train");
        bench::Vectors data;
        data.n = std::min(n, all.n);
        data.d = all.d;
        for (size_t i = 0; i < data.n; i++) {
            const float* row = all.row(i * all.n / data.n);
            data.x.insert(data.x.end(), row, row + data.d);
        }
        faiss_ext::IndexIVFFlatGMM index(int(data.d), k);
        const double training = processor_seconds(
                [&] { index.train(faiss_ext::idx_t(data.n), data.x.data()); });
        const double iteration = iteration_seconds(data, k);
        const double spread = distortion(data, *index.quantizer);
        fmt::print(
                "{} x {}, {} lists: training {:.3f} s, an EM iteration {:.3f} "
                "s, distortion {:.6g}\n",
                data.n,
                data.d,
                k,
                training,
                iteration,
                spread);
        if (!json.empty()) {
            nlohmann::json out;
            out["provenance"] = bench::provenance(argc, argv);
            out["index"] = training;
            out["iteration"] = iteration;
            out["distortion"] = spread;
            bench::write_json(json, out);
        }
    } catch (const std::exception& error) {
        fmt::print(stderr, "train_bench: {}\n", error.what());
        return 1;
    }
    return 0;
}
