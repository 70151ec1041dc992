#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <random>

#include "CudaOptions.h"
#include "EMTrainer.h"

/** Times the CUDA backend's E-step and measures its error.
 *
 * Data: a file's vectors, repeated with a little noise up to n, or Gaussian
 * noise. The model is trained on them with the backend itself. Times are of
 * the device (all kernels of one pass over resident rows) and of the call
 * (with upload of the model and download of the statistics).
 */
namespace {

using namespace gmm;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

struct Data {
    size_t n = 0, d = 0;
    std::vector<float> x;
};

/// n vectors, the file's over and over: see --data, -n and -d.
Data load(const std::string& path, size_t n, size_t d) {
    if (path == "noise") {
        d = d ? d : 128;
        Data data{n, d, std::vector<float>(n * d)};
#pragma omp parallel
        {
            std::mt19937 random;
            std::normal_distribution<float> normal;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < int64_t(n); i++) {
                random.seed(unsigned(i) * 2654435761u + 17);
                normal.reset();
                for (size_t j = 0; j < d; j++) {
                    data.x[i * d + j] = normal(random);
                }
            }
        }
        return data;
    }
    const auto source = file_source(path);
    d = d ? d : source->d;
    Data data{n, d, std::vector<float>(n * d)};
    std::vector<std::byte> scratch;
    std::vector<float> base(source->n * source->d);
    source->rows(0, source->n, scratch).to_float(base.data());
    double spread = 0;
    for (size_t i = 0; i + source->d < std::min<size_t>(base.size(), 1 << 20);
         i++) {
        const double t = base[i] - base[i + source->d];
        spread += t * t;
    }
    const float noise = float(
            0.02 * std::sqrt(spread / std::min<size_t>(base.size(), 1 << 20)));
#pragma omp parallel
    {
        std::mt19937 random;
        std::normal_distribution<float> normal;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(n); i++) {
            const float* from = base.data() + i % source->n * source->d;
            const bool again = size_t(i) >= source->n;
            random.seed(unsigned(i) * 2654435761u + 17);
            normal.reset();
            for (size_t j = 0; j < d; j++) {
                data.x[i * d + j] = from[j % source->d] +
                        (again || j >= source->d ? noise * normal(random) : 0);
            }
        }
    }
    return data;
}

/// Bytes for what does not fit a device: the file's vectors over and over,
/// a bit of each flipped by its number. Each thread writes its own part first.
std::unique_ptr<uint8_t[]> load_bytes(const Data& base, size_t n) {
    const size_t d = base.d;
    auto x = std::make_unique_for_overwrite<uint8_t[]>(n * d);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < int64_t(n); i++) {
        const float* from = base.x.data() + size_t(i) % base.n * d;
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = uint8_t(std::clamp(from[j], 0.f, 255.f));
        }
        x[i * d + size_t(i) * 2654435761u % d] ^= 1;
    }
    return x;
}

Frame make_frame(const Data& data) {
    Frame frame;
    const size_t step = std::max<size_t>(1, data.n / 50000);
    std::vector<double> sum(data.d), square(data.d);
    size_t count = 0;
    for (size_t i = 0; i < data.n; i += step, count++) {
        for (size_t j = 0; j < data.d; j++) {
            const double x = data.x[i * data.d + j];
            sum[j] += x;
            square[j] += x * x;
        }
    }
    double variance = 0;
    for (size_t j = 0; j < data.d; j++) {
        sum[j] /= count;
        square[j] = square[j] / count - sum[j] * sum[j];
        variance += square[j];
        frame.center.push_back(float(sum[j]));
    }
    frame.scale = float(1 / std::sqrt(variance / data.d));
    for (double v : square) {
        frame.variances.push_back(float(v * frame.scale * frame.scale));
    }
    return frame;
}

/// log Z and N_k of a sample against double.
json errors(
        Backend& backend,
        const Data& data,
        const Frame& frame,
        const GaussianMixture& model) {
    const size_t n = data.n, d = data.d, k = model.k;
    std::vector<float> y(data.x);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            y[i * d + j] = (y[i * d + j] - frame.center[j]) * frame.scale;
        }
    }
    SufficientStats stats;
    backend.accumulate(EStep::soft, stats);
    std::vector<double> n_k(k), log_z(n);
#pragma omp parallel
    {
        std::vector<double> joint(k), mine(k);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(n); i++) {
            model.log_joint(1, y.data() + i * d, joint.data());
            const double top = *std::max_element(joint.begin(), joint.end());
            double z = 0;
            for (double l : joint) {
                z += std::exp(l - top);
            }
            log_z[i] = top + std::log(z);
            for (size_t c = 0; c < k; c++) {
                mine[c] += std::exp(joint[c] - log_z[i]);
            }
        }
#pragma omp critical
        for (size_t c = 0; c < k; c++) {
            n_k[c] += mine[c];
        }
    }
    double sum = 0, worst = 0, mean = 0, count = 0;
    for (double l : log_z) {
        sum += l;
    }
    for (size_t c = 0; c < k; c++) {
        if (n_k[c] > 10) {
            const double e = std::fabs(stats.n_k[c] / n_k[c] - 1);
            worst = std::max(worst, e);
            mean += e;
            count++;
        }
    }
    // Each vector's log Z, through passes over single vectors' weights, would
    // be slow: the rows' own values are asked for by test hook.
    const std::vector<float> rows = cuda_row_log_prob(backend);
    double worst_z = 0, square_z = 0;
    for (size_t i = 0; i < std::min(rows.size(), n); i++) {
        worst_z = std::max(worst_z, std::fabs(rows[i] - log_z[i]));
        square_z += (rows[i] - log_z[i]) * (rows[i] - log_z[i]);
    }
    return {{"log_z_worst", worst_z},
            {"log_z_rms",
             std::sqrt(square_z / std::max<size_t>(1, rows.size()))},
            {"log_z_mean", (stats.objective - sum) / double(n)},
            {"n_k_worst", worst},
            {"n_k_mean", mean / std::max(1., count)}};
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app("Times the CUDA backend's E-step and measures its error");
    std::string model_path;
    std::string path = "noise", covariance = "isotropic", precision = "fast",
                kernel = "automatic", json_path, label;
    size_t n = 1000000, d = 0, k = 1024, runs = 9, train_n = 0, error_n = 0;
    size_t bytes_n = 0, memory_mib = 0;
    int iterations = 8;
    bool hard = false;
    std::vector<int> devices;
    CudaOptions options;
    app.add_option("--data", path, "a vector file, or \"noise\"");
    app.add_option("-n", n, "vectors");
    app.add_option(
            "-d",
            d,
            "dimension: less than the file's, or more (its first ones again, "
            "with noise); 0: the file's, 128 of noise");
    app.add_option("-k", k, "components");
    app.add_option("--covariance", covariance)
            ->check(CLI::IsMember(
                    {"isotropic",
                     "tied_spherical",
                     "diagonal",
                     "full",
                     "tied"}));
    app.add_option("--precision", precision)
            ->check(CLI::IsMember({"fast", "exact"}));
    app.add_option("--tolerance", options.tolerance, "see CudaOptions.h");
    app.add_option("--kernel", kernel)
            ->check(CLI::IsMember({"automatic", "portable", "hopper"}));
    app.add_option("--runs", runs);
    app.add_option("--iterations", iterations, "of EM before timing");
    app.add_option("--train", train_n, "vectors to train on; 0: all");
    app.add_option("--errors", error_n, "vectors to compare with double");
    app.add_option("--bytes", bytes_n, "time on so many u8 vectors instead");
    app.add_option("--memory", memory_mib, "limit of device memory, MiB");
    app.add_option("--devices", devices, "CUDA devices that share the data");
    app.add_flag("--hard", hard, "time k-means' assignment instead");
    app.add_option(
            "--model-out",
            model_path,
            "write means, variances, log weights and, of full covariances, "
            "Cholesky factors of precisions (f32, user's units)");
    app.add_option("--label", label);
    app.add_option("--json", json_path, "append a line to this file");
    CLI11_PARSE(app, argc, argv);

    options.precision =
            precision == "exact" ? Precision::exact : Precision::fast;
    options.kernel = kernel == "portable" ? Kernel::portable
            : kernel == "hopper"          ? Kernel::hopper
                                          : Kernel::automatic;
    options.memory_limit = memory_mib << 20;
    options.devices = devices;
    TrainingOptions training;
    for (Covariance kind :
         {Covariance::isotropic,
          Covariance::diagonal,
          Covariance::tied_spherical,
          Covariance::full,
          Covariance::tied}) {
        if (covariance == to_string(kind)) {
            training.covariance = kind;
        }
    }
    training.niter = iterations;
    training.hard_iterations = 3;
    training.tolerance = 0;
    training.init = Initialisation::random_subset;

    const Data data = load(path, n, d);
    d = data.d;
    const Frame frame = make_frame(data);
    const auto backend = make_cuda_backend(options);
    if (train_n == 0 || train_n > n) {
        train_n = n;
    }
    const auto train_source = memory_source(data.x.data(), train_n, d);
    const auto t0 = Clock::now();
    const TrainingResult trained =
            train(*train_source, nullptr, k, training, *backend);
    const double train_seconds = seconds_since(t0);
    const GaussianMixture model = frame.to_frame(trained.model);
    if (!model_path.empty()) {
        std::ofstream file(model_path, std::ios::binary);
        for (const auto* part :
             {&trained.model.means,
              &trained.model.variances,
              &trained.model.log_weights,
              &trained.model.precisions_cholesky}) {
            file.write(
                    reinterpret_cast<const char*>(part->data()),
                    std::streamsize(part->size() * sizeof(float)));
        }
    }

    std::unique_ptr<uint8_t[]> bytes;
    auto source = memory_source(data.x.data(), n, d);
    if (bytes_n) {
        bytes = load_bytes(data, bytes_n);
        n = bytes_n;
        source = memory_source(bytes.get(), n, d, ElementType::u8);
    }
    backend->set_data(*source, nullptr, frame);
    SufficientStats stats;
    std::vector<double> device, call, models;
    const EStep step = hard ? EStep::hard : EStep::soft;
    for (size_t r = 0; r < runs + 2; r++) {
        const auto start = Clock::now();
        backend->set_model(model);
        const double model_ms = 1e3 * seconds_since(start);
        backend->accumulate(step, stats);
        if (r >= 2) {
            models.push_back(model_ms);
            call.push_back(1e3 * seconds_since(start));
            device.push_back(cuda_report(*backend).kernel_ms);
        }
    }
    const CudaReport report = cuda_report(*backend);
    json out{
            {"label", label},
            {"data", path.substr(path.find_last_of('/') + 1)},
            {"n", n},
            {"d", d},
            {"k", k},
            {"covariance", covariance},
            {"precision", precision},
            {"kernel", kernel},
            {"hard", hard},
            {"devices", std::max<size_t>(1, devices.size())},
            {"device_ms", median(device)},
            {"device_ms_min", *std::min_element(device.begin(), device.end())},
            {"device_ms_max", *std::max_element(device.begin(), device.end())},
            {"call_ms", median(call)},
            {"set_model_ms", median(models)},
            {"runs", runs},
            {"dense_share", double(report.dense_rows) / double(n)},
            {"long_share", double(report.long_rows) / double(n)},
            {"responsibilities_per_row",
             double(report.responsibilities) / double(n)},
            {"device_bytes", report.device_bytes},
            {"resident", report.resident},
            {"exact_work", report.exact},
            {"steps_ms", report.steps_ms},
            {"train_seconds", train_seconds},
            {"objective", stats.objective / double(n)}};
    if (error_n) {
        Data sample{std::min(n, error_n), d, {}};
        sample.x.assign(data.x.begin(), data.x.begin() + sample.n * sample.d);
        const auto part = memory_source(sample.x.data(), sample.n, d);
        backend->set_data(*part, nullptr, frame);
        backend->set_model(model);
        out["errors"] = errors(*backend, sample, frame, model);
    }
    fmt::print("{}\n", out.dump());
    if (!json_path.empty()) {
        std::ofstream(json_path, std::ios::app) << out.dump() << "\n";
    }
} catch (const std::exception& error) {
    fmt::print(stderr, "gpu_bench: {}\n", error.what());
    return 1;
}
