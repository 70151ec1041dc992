#include <algorithm>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "CudaOptions.h"
#include "cuda/engine/Engine.h"
#include "cuda/full/FullEngine.h"

namespace gmm {

namespace {

using cuda::check;
using cuda::device_attribute;
using cuda::Engine;
using cuda::FullEngine;

int device_count(std::string* why_not) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        if (why_not) {
            *why_not = error == cudaSuccess ? "no CUDA device"
                                            : std::string("no CUDA device: ") +
                            cudaGetErrorString(error);
        }
        return 0;
    }
    return count;
}

bool usable(int device, std::string* why_not) {
    const int major =
            device_attribute(cudaDevAttrComputeCapabilityMajor, device);
    if (major >= 8) {
        return true;
    }
    if (why_not) {
        *why_not = "device " + std::to_string(device) +
                " has compute capability " + std::to_string(major) +
                ".x; 8.0 or later is needed";
    }
    return false;
}

/// The current device, if it can be used, or the first that can; -1: none.
int default_device(std::string* why_not) {
    const int count = device_count(why_not);
    const int current = count > 0 ? cuda::current_device() : -1;
    if (count > 0 && usable(current, why_not)) {
        return current;
    }
    for (int i = 0; i < count; i++) {
        if (i != current && usable(i, nullptr)) {
            return i;
        }
    }
    return -1;
}

void check_model_is_there(size_t k) {
    if (k == 0) {
        throw_invalid("set_model must come first");
    }
}

/** Devices of one host share the rows in contiguous parts; their statistics
 * are added on the host, in the order of the devices. That is O(k d) once an
 * iteration, so a library for collective operations would gain nothing that
 * could be seen beside the pass itself. */
struct CudaBackend : Backend {
    explicit CudaBackend(const CudaOptions& options) {
        const cuda::KeepDevice keep;
        std::vector<int> devices = options.devices;
        std::string why_not;
        if (devices.empty()) {
            devices = {default_device(&why_not)};
        }
        const int count = device_count(&why_not);
        for (int device : devices) {
            if (device < 0 || device >= count || !usable(device, &why_not)) {
                throw DeviceError(
                        "CUDA: device " + std::to_string(device) + " of " +
                        std::to_string(count) + " cannot be used. " + why_not);
            }
            engines.push_back(std::make_unique<Engine>(device, options));
            full_engines.push_back(
                    std::make_unique<FullEngine>(device, options));
        }
    }

    ~CudaBackend() override {
        const cuda::KeepDevice keep;
        engines.clear();
        full_engines.clear();
    }

    std::string name() const override {
        return "cuda";
    }

    void set_data(
            const VectorSource& source,
            const float* weights,
            const Frame& frame) override {
        const cuda::KeepDevice keep;
        if (source.d == 0 || !cuda_takes(source.d, 1)) {
            throw_invalid(
                    "source.d = %zu, expected 1 to %zu on a GPU",
                    source.d,
                    kMaxCudaDimension);
        }
        if (frame.center.size() != source.d) {
            throw_invalid(
                    "frame.center: %zu values, expected source.d = %zu",
                    frame.center.size(),
                    source.d);
        }
        if (!frame.variances.empty() && frame.variances.size() != source.d) {
            throw_invalid(
                    "frame.variances: %zu values, expected 0 or source.d = %zu",
                    frame.variances.size(),
                    source.d);
        }
        float largest = 0;
        for (size_t i = 0; weights && i < source.n; i++) {
            if (!(weights[i] >= 0) || std::isinf(weights[i])) {
                throw InvalidArgument(
                        "weights[" + std::to_string(i) + "] is " +
                        std::to_string(weights[i]) +
                        ", expected a finite number that is not negative");
            }
            largest = std::max(largest, weights[i]);
        }
        // A power of two: exact, and no weight above 1 on the device.
        const double scale = largest > 0
                ? std::exp2(std::ceil(std::log2(double(largest))))
                : 1.;
        if (d != source.d) {
            k = 0; // the model was of other data
        }
        d = source.d;
        data = {&source, weights, scale, frame};
        bind();
    }

    /// To all engines, of which those that were in use let go of their memory.
    void bind() {
        const size_t parts = engines.size(), n = data.source->n;
        for (size_t i = 0; i < parts; i++) {
            const auto bind = [&](auto& engine) {
                engine.bind(
                        *data.source,
                        n * i / parts,
                        n * (i + 1) / parts,
                        data.weights,
                        data.weight_scale,
                        data.frame);
            };
            bind(*engines[i]);
            bind(*full_engines[i]);
        }
    }

    void set_model(const GaussianMixture& model) override {
        const cuda::KeepDevice keep;
        if (model.d != d) {
            throw_invalid(
                    "model.d = %zu, expected that of set_data, which must come "
                    "first: %zu",
                    model.d,
                    d);
        }
        if (!cuda_takes(d, model.k)) {
            throw_invalid(
                    "model.k = %zu, expected at most %zu on a GPU",
                    model.k,
                    kMaxCudaComponents);
        }
        model.validate();
        if (has_matrices(covariance) != has_matrices(model.covariance)) {
            bind(); // the others' memory is needed
        }
        covariance = model.covariance;
        k = 0; // none, unless all engines have it
        each_engine([&](size_t i) {
            if (has_matrices(covariance)) {
                full_engines[i]->set_model(model);
            } else {
                engines[i]->set_model(model);
            }
        });
        k = model.k;
    }

    void accumulate(EStep step, SufficientStats& stats) override {
        const cuda::KeepDevice keep;
        const std::lock_guard lock(mutex);
        check_model_is_there(k);
        // The caller may have moved from what it gave.
        if (spare.covariance != covariance || spare.k != k || spare.d != d ||
            spare.n_k.size() != k || spare.sum_x.size() != k * d ||
            spare.sum_x2.size() != num_moments(covariance, k, d)) {
            spare = SufficientStats(covariance, k, d);
        }
        const bool full = has_matrices(covariance);
        each_engine([&](size_t i) {
            if (full) {
                full_engines[i]->accumulate(step);
            } else {
                engines[i]->accumulate(step);
            }
        });
        // In this thread, which has OpenMP's others at hand: a new one would
        // start as many for itself.
        for (size_t i = 0; i < engines.size(); i++) {
            if (full) {
                full_engines[i]->read_sums(step, i > 0, spare);
            } else {
                engines[i]->read_sums(step, i > 0, spare);
            }
        }
        std::swap(stats, spare);
    }

    void top_components(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob,
            EStep order) override {
        const cuda::KeepDevice keep;
        const std::lock_guard lock(mutex);
        check_model_is_there(k);
        if (x.d != d) {
            throw_invalid("x.d = %zu, expected %zu", x.d, d);
        }
        if (m == 0 || m > k) {
            throw_invalid("m = %zu, expected 1 to k = %zu", m, k);
        }
        check_array("x.data", x.data, x.n);
        check_array("components", components, x.n);
        const size_t parts = engines.size();
        each_engine([&](size_t i) {
            const size_t begin = x.n * i / parts, end = x.n * (i + 1) / parts;
            Rows part = x;
            part.n = end - begin;
            part.data = static_cast<const char*>(x.data) + begin * x.stride;
            const auto top = [&](auto& engine) {
                engine.top_components(
                        part,
                        m,
                        components + begin * m,
                        log_joint ? log_joint + begin * m : nullptr,
                        distances ? distances + begin * m : nullptr,
                        log_prob ? log_prob + begin : nullptr,
                        order);
            };
            if (has_matrices(covariance)) {
                top(*full_engines[i]);
            } else {
                top(*engines[i]);
            }
        });
    }

    /// Runs work(i) for every engine, each in a thread of its own.
    template <class Work>
    void each_engine(const Work& work) {
        if (engines.size() == 1) {
            work(0);
            return;
        }
        std::vector<std::exception_ptr> errors(engines.size());
        {
            std::vector<std::jthread> threads;
            for (size_t i = 0; i < engines.size(); i++) {
                threads.emplace_back([&, i] {
                    try {
                        work(i);
                    } catch (...) {
                        errors[i] = std::current_exception();
                    }
                });
            }
        }
        for (const std::exception_ptr& e : errors) {
            if (e) {
                std::rethrow_exception(e);
            }
        }
    }

    /// An engine has one model prepared and one scratch.
    std::mutex mutex;
    std::vector<std::unique_ptr<Engine>> engines;
    std::vector<std::unique_ptr<FullEngine>> full_engines; ///< full and tied
    struct Data {
        const VectorSource* source = nullptr;
        const float* weights = nullptr;
        double weight_scale = 1;
        Frame frame;
    } data;
    /// What the caller gave the time before: to allocate as many pages again
    /// takes longer than to fill them.
    SufficientStats spare;
    Covariance covariance = Covariance::isotropic;
    size_t d = 0;
    size_t k = 0;
};

} // namespace

bool cuda_available(std::string* why_not) {
    return default_device(why_not) >= 0;
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
    if (!(options.tolerance >= 0)) {
        throw_invalid("tolerance = %g, expected at least 0", options.tolerance);
    }
    const std::vector<int>& devices = options.devices;
    for (size_t i = 0; i < devices.size(); i++) {
        if (devices[i] < 0 ||
            std::count(devices.begin(), devices.end(), devices[i]) > 1) {
            throw_invalid(
                    "devices[%zu] = %d, expected different numbers from 0 on",
                    i,
                    devices[i]);
        }
    }
    std::string why_not;
    if (!cuda_available(&why_not)) {
        throw DeviceError("CUDA: " + why_not);
    }
    return std::make_unique<CudaBackend>(options);
}

std::unique_ptr<Backend> make_cuda_backend() {
    return make_cuda_backend(CudaOptions());
}

static const CudaBackend& as_cuda(const Backend& backend) {
    const auto* cuda = dynamic_cast<const CudaBackend*>(&backend);
    if (!cuda) {
        throw InvalidArgument(
                "backend is \"" + backend.name() + "\", expected \"cuda\"");
    }
    return *cuda;
}

std::vector<float> cuda_row_log_prob(const Backend& backend) {
    const CudaBackend& cuda = as_cuda(backend);
    return has_matrices(cuda.covariance) ? cuda.full_engines[0]->row_log_prob()
                                         : cuda.engines[0]->row_log_prob();
}

CudaReport cuda_report(const Backend& backend) {
    const CudaBackend& cuda = as_cuda(backend);
    const auto report_of = [&](size_t i) {
        return has_matrices(cuda.covariance) ? cuda.full_engines[i]->report
                                             : cuda.engines[i]->report;
    };
    CudaReport report = report_of(0);
    for (size_t i = 1; i < cuda.engines.size(); i++) {
        const CudaReport r = report_of(i);
        report.kernel_ms = std::max(report.kernel_ms, r.kernel_ms);
        report.rows += r.rows;
        report.long_rows += r.long_rows;
        report.dense_rows += r.dense_rows;
        report.responsibilities += r.responsibilities;
        report.device_bytes += r.device_bytes;
        report.resident = report.resident && r.resident;
        report.exact = report.exact || r.exact;
    }
    return report;
}

} // namespace gmm
