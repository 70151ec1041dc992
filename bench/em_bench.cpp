// Seconds for one EM iteration beside faiss::Clustering's k-means iteration, on
// the same vectors in the same run.

#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "EMTrainer.h"
#include "Error.h"
#include "report.h"
#include "vector_files.h"

namespace {

struct Options {
    std::string data;
    size_t n = 0;
    size_t d = 128;
    size_t k = 1024;
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    std::string backend = "cpu";
    int iterations = 5;
    int rounds = 3;
    int threads = 0;
    std::string json;
};

const std::map<std::string, gmm::Covariance> kCovariances = {
        {"isotropic", gmm::Covariance::isotropic},
        {"diagonal", gmm::Covariance::diagonal},
        {"tied_spherical", gmm::Covariance::tied_spherical},
        {"full", gmm::Covariance::full},
        {"tied", gmm::Covariance::tied}};

/// n rows spread evenly over the file, or a made-up mixture.
bench::Vectors load(const Options& options) {
    bench::Vectors out;
    if (!options.data.empty()) {
        const bench::Vectors all = bench::read_vectors(options.data, "train");
        out.n = options.n ? std::min(options.n, all.n) : all.n;
        out.d = all.d;
        for (size_t i = 0; i < out.n; i++) {
            const float* row = all.row(i * all.n / out.n);
            out.x.insert(out.x.end(), row, row + out.d);
        }
        return out;
    }
    out.n = options.n ? options.n : 200'000;
    out.d = options.d;
    out.x.resize(out.n * out.d);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> centers(64 * out.d);
    for (float& x : centers) {
        x = normal(random);
    }
    for (size_t i = 0; i < out.x.size(); i++) {
        const size_t group = i / out.d % 64;
        out.x[i] = centers[group * out.d + i % out.d] + normal(random);
    }
    return out;
}

size_t status_kb(const std::string& field) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind(field, 0) == 0) {
            return std::stoul(line.substr(field.size()));
        }
    }
    throw std::runtime_error("no " + field + " in /proc/self/status");
}

/// Megabytes by which f's peak exceeds what is resident when it starts.
template <class F>
double peak_megabytes(const F& f) {
    std::ofstream("/proc/self/clear_refs") << "5"; // the peak starts anew
    const size_t before = status_kb("VmRSS:");
    f();
    return double(status_kb("VmHWM:") - before) / 1024;
}

struct Seconds {
    std::vector<double> all;

    double median() const {
        std::vector<double> sorted = all;
        std::sort(sorted.begin(), sorted.end());
        const size_t n = sorted.size();
        return n ? 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]) : 0;
    }

    nlohmann::json json() const {
        return {{"median", median()},
                {"least", *std::min_element(all.begin(), all.end())},
                {"iterations", all}};
    }
};

struct Measured {
    Seconds em, em_hard, kmeans;
    double em_megabytes = 0;
    double log_likelihood = 0;
    double dropped_mass = 0;
};

gmm::TrainingOptions training_options(const Options& options) {
    gmm::TrainingOptions training;
    training.covariance = options.covariance;
    training.hard_iterations = options.iterations;
    training.niter = options.iterations;
    training.tolerance = 0;
    return training;
}

/// The processors' seconds for a soft iteration, all threads together: what
/// others do on the machine does not count.
double processor_seconds(
        const bench::Vectors& data,
        const Options& options,
        gmm::Backend& backend) {
    const auto source = gmm::memory_source(data.x.data(), data.n, data.d);
    gmm::TrainingOptions training = training_options(options);
    auto seconds_for = [&](int niter) {
        training.niter = niter;
        const std::clock_t start = std::clock();
        train(*source, nullptr, options.k, training, backend);
        return double(std::clock() - start) / CLOCKS_PER_SEC;
    };
    const double one = seconds_for(1);
    return (seconds_for(1 + options.iterations) - one) / options.iterations;
}

void measure_em(
        const bench::Vectors& data,
        const Options& options,
        gmm::Backend& backend,
        Measured& out) {
    const gmm::TrainingOptions training = training_options(options);
    const auto source = gmm::memory_source(data.x.data(), data.n, data.d);
    const double megabytes = peak_megabytes([&] {
        const gmm::TrainingResult result =
                train(*source, nullptr, options.k, training, backend);
        for (const auto& iteration : result.iterations) {
            Seconds& to =
                    iteration.step == gmm::EStep::soft ? out.em : out.em_hard;
            to.all.push_back(iteration.seconds);
        }
        out.log_likelihood = result.iterations.back().objective;
        out.dropped_mass = result.iterations.back().dropped_mass;
    });
    out.em_megabytes = std::max(out.em_megabytes, megabytes);
}

void measure_kmeans(
        const bench::Vectors& data, const Options& options, Measured& out) {
    faiss::ClusteringParameters parameters;
    parameters.niter = options.iterations;
    parameters.max_points_per_centroid = int(data.n);
    parameters.min_points_per_centroid = 1;
    faiss::Clustering clustering(int(data.d), int(options.k), parameters);
    faiss::IndexFlatL2 index(data.d);
    clustering.train(data.n, data.x.data(), index);
    double before = 0; // FAISS counts from the start of the training
    for (const auto& iteration : clustering.iteration_stats) {
        out.kmeans.all.push_back(iteration.time - before);
        before = iteration.time;
    }
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app("Seconds for one EM iteration, beside FAISS's k-means");
    app.add_option(
            "--data",
            options.data,
            "fvecs, bvecs, fbin, u8bin, npy or hdf5; default: made-up vectors");
    app.add_option("--n", options.n, "vectors (default: all, or 200000)");
    app.add_option("--d", options.d, "dimension of made-up vectors")
            ->capture_default_str();
    app.add_option("--k", options.k, "components")->capture_default_str();
    app.add_option("--covariance", options.covariance, "covariance kind")
            ->transform(CLI::CheckedTransformer(kCovariances));
    app.add_option("--backend", options.backend, "cpu or cuda")
            ->check(CLI::IsMember({"cpu", "cuda"}))
            ->capture_default_str();
    app.add_option("--iterations", options.iterations, "of each kind a round")
            ->check(CLI::PositiveNumber)
            ->capture_default_str();
    app.add_option(
               "--rounds",
               options.rounds,
               "EM and k-means take turns, so that a busy machine is fair")
            ->check(CLI::PositiveNumber)
            ->capture_default_str();
    app.add_option("--threads", options.threads, "default: one a core");
    app.add_option("--json", options.json, "file to write");
    CLI11_PARSE(app, argc, argv);

    try {
        if (options.threads > 0) {
            omp_set_num_threads(options.threads);
        }
        double busy = 0; // how busy others keep the machine
        getloadavg(&busy, 1);
        const bench::Vectors data = load(options);
        const auto backend = options.backend == "cuda"
                ? gmm::make_cuda_backend()
                : gmm::make_cpu_backend();
        Measured measured;
        for (int round = 0; round < options.rounds; round++) {
            measure_em(data, options, *backend, measured);
            measure_kmeans(data, options, measured);
        }
        const double ratio = measured.em.median() / measured.kmeans.median();
        std::string covariance;
        for (const auto& [name, value] : kCovariances) {
            covariance = value == options.covariance ? name : covariance;
        }
        fmt::print(
                "{} x {}, k = {}, {}, {} threads\n"
                "EM iteration ({:<14}) {:7.4f} s (median)\n"
                "  its hard (k-means) step   {:8.4f} s\n"
                "faiss::Clustering iteration {:8.4f} s\n"
                "EM / FAISS                  {:8.2f}\n"
                "peak memory beyond the data {:8.1f} MB\n",
                data.n,
                data.d,
                options.k,
                options.backend,
                omp_get_max_threads(),
                covariance,
                measured.em.median(),
                measured.em_hard.median(),
                measured.kmeans.median(),
                ratio,
                measured.em_megabytes);
        if (!options.json.empty()) {
            nlohmann::json out = bench::provenance(argc, argv);
            out["n"] = data.n;
            out["d"] = data.d;
            out["k"] = options.k;
            out["covariance"] = covariance;
            out["backend"] = options.backend;
            out["threads"] = omp_get_max_threads();
            out["load_average_before"] = busy;
            out["em_seconds"] = measured.em.json();
            out["em_hard_seconds"] = measured.em_hard.json();
            out["faiss_kmeans_seconds"] = measured.kmeans.json();
            out["em_processor_seconds"] =
                    processor_seconds(data, options, *backend);
            out["em_over_faiss_kmeans"] = ratio;
            out["em_peak_megabytes_beyond_data"] = measured.em_megabytes;
            out["log_likelihood"] = measured.log_likelihood;
            out["dropped_mass"] = measured.dropped_mass;
            bench::write_json(options.json, out);
        }
    } catch (const std::exception& error) {
        fmt::print(stderr, "em_bench: {}\n", error.what());
        return 1;
    }
    return 0;
}
