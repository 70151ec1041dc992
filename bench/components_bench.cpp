#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>

#include "Backend.h"
#include "EMTrainer.h"
#include "VectorSource.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "memory_watch.h"

// Seconds, memory and quality of training many components on a CPU.
namespace {

/// Trains as an index of so many lists does, and says how far vectors then are
/// from the nearest mean, and from the one that a graph finds.
void components(
        const std::string& path,
        size_t n,
        size_t k,
        int iterations,
        size_t nearby) {
    const auto file = gmm::file_source(path);
    const auto source = gmm::sample_source(*file, std::min(n, file->n), 1);
    const size_t d = source->d;
    const auto backend = nearby > 0 ? gmm::make_grouped_cpu_backend(nearby)
                                    : gmm::make_cpu_backend();
    gmm::TrainingOptions options;
    options.init = gmm::Initialisation::hierarchical;
    options.niter = iterations;
    options.last_hard_iterations = 2;
    options.tolerance = 0;
    options.progress = [](const gmm::TrainingIteration& i) {
        fmt::print(
                "{}: {:.1f} s, {:.6g}\n",
                i.step == gmm::EStep::soft ? "EM" : "k-means",
                i.seconds,
                i.objective);
        std::fflush(stdout);
        return true;
    };
    bench::Watch watch;
    bench::Timer timer;
    const auto model = gmm::train(*source, nullptr, k, options, *backend).model;
    fmt::print(
            "{} x {}, k = {}, {}: {:.1f} s, peak RssAnon {:.0f} MB\n",
            source->n,
            d,
            k,
            nearby > 0 ? fmt::format("{} sqrt(k) near", nearby) : "all",
            timer.seconds(),
            watch.take());
    const size_t asked = std::min<size_t>(20000, source->n);
    const auto sample = gmm::sample_source(*source, asked, 1);
    std::vector<std::byte> scratch;
    std::vector<float> x(asked * d), distances(asked);
    sample->rows(0, asked, scratch).to_float(x.data());
    std::vector<faiss_ext::idx_t> ids(asked);
    auto distance_by = [&](const faiss::Index& index) {
        index.search(asked, x.data(), 1, distances.data(), ids.data());
        double sum = 0;
        for (float distance : distances) {
            sum += distance;
        }
        return sum / double(asked);
    };
    faiss::IndexFlatL2 flat{faiss_ext::idx_t(d)};
    flat.add(faiss_ext::idx_t(k), model.means.data());
    const double exact = distance_by(flat);
    timer = {};
    faiss::IndexHNSWFlat graph(int(d), 32);
    graph.add(faiss_ext::idx_t(k), model.means.data());
    fmt::print(
            "mean squared distance {:.6g}, by a graph {:.4f} times that "
            "(built in {:.1f} s)\n",
            exact,
            distance_by(graph) / exact,
            timer.seconds());
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app("Training many components on a CPU");
    std::string path;
    size_t n = 100000, k = 16384, nearby = 16;
    int iterations = 1;
    app.add_option("--data", path)->required();
    app.add_option("-n", n, "vectors, evenly spread");
    app.add_option("-k", k, "components");
    app.add_option("--iterations", iterations, "of EM; k-means follows");
    app.add_option(
            "--nearby",
            nearby,
            "so many times sqrt(k) components are compared; 0: all");
    CLI11_PARSE(app, argc, argv);
    components(path, n, k, iterations, nearby);
} catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
}
