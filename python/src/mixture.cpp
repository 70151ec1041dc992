#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "Backend.h"
#include "EMTrainer.h"
#include "Error.h"
#include "Initialise.h"
#include "array_source.h"
#include "bindings.h"
#include "interrupt.h"

namespace faiss_ext_python {

namespace {

using Weights = std::optional<Vector<const float>>;
/// Subtracted in double as x is read; all means are then without it.
using Offset = std::optional<Vector<const double>>;

/// Rows that are evaluated at once; what is kept of them is O(m), not O(k).
constexpr size_t kBlock = 16384;

std::unique_ptr<gmm::Backend> make_backend(
        const std::string& name, size_t d, size_t k) {
    if (name == "auto") {
        const bool gpu = gmm::cuda_available() && gmm::cuda_takes(d, k);
        return make_backend(gpu ? "cuda" : "cpu", d, k);
    }
    if (name == "cpu") {
        return gmm::make_cpu_backend();
    }
    if (name == "cuda") {
        std::string why;
        if (!gmm::cuda_available(&why)) {
            gmm::throw_invalid("backend = \"cuda\": %s", why.c_str());
        }
        return gmm::make_cuda_backend();
    }
    gmm::throw_invalid(
            "backend = \"%s\", expected \"auto\", \"cpu\" or \"cuda\"",
            name.c_str());
}

std::vector<float> copy_weights(const Weights& weights, size_t n) {
    if (!weights) {
        return {};
    }
    if (weights->shape(0) != n) {
        gmm::throw_invalid(
                "weights: %zu, expected one for each of %zu vectors",
                weights->shape(0),
                n);
    }
    return {weights->data(), weights->data() + n};
}

std::unique_ptr<gmm::VectorSource> make_source(
        const Vectors& x, const Offset& offset) {
    if (!offset) {
        return array_source(x);
    }
    const size_t d = std::visit([](const auto& a) { return a.shape(1); }, x);
    if (offset->shape(0) != d) {
        gmm::throw_invalid(
                "offset: %zu values, expected d = %zu", offset->shape(0), d);
    }
    return array_source(x, {offset->data(), offset->data() + offset->shape(0)});
}

std::vector<float> copy(nb::ndarray<const float, nb::c_contig> a) {
    return {a.data(), a.data() + a.size()};
}

/// `variances` are Cholesky factors of precisions for full and tied.
gmm::GaussianMixture make_mixture(
        const std::string& covariance_type,
        Matrix<const float> means,
        nb::ndarray<const float, nb::c_contig> variances,
        Vector<const float> log_weights) {
    gmm::GaussianMixture m;
    m.covariance = covariance_from_string(covariance_type);
    m.k = means.shape(0);
    m.d = means.shape(1);
    m.means.assign(means.data(), means.data() + means.size());
    (gmm::has_matrices(m.covariance) ? m.precisions_cholesky : m.variances) =
            copy(variances);
    m.log_weights.assign(
            log_weights.data(), log_weights.data() + log_weights.size());
    m.validate();
    return m;
}

nb::dict to_dict(gmm::GaussianMixture&& m) {
    nb::dict out;
    const size_t n_variances = m.variances.size();
    out["means"] = to_numpy(std::move(m.means), {m.k, m.d});
    out["variances"] = to_numpy(std::move(m.variances), {n_variances});
    out["log_weights"] = to_numpy(std::move(m.log_weights), {m.k});
    return out;
}

/// fit_frame's, as center, scale and the variance in the frame's units.
nb::tuple frame_of(const Vectors& x, Weights weights, Offset offset) {
    const auto source = make_source(x, offset);
    const std::vector<float> w = copy_weights(weights, source->n);
    gmm::DataFrame out;
    {
        const LongCall long_call;
        out = gmm::fit_frame(*source, w.empty() ? nullptr : w.data());
    }
    const size_t d = source->d;
    return nb::make_tuple(
            to_numpy(std::move(out.frame.center), {d}),
            out.frame.scale,
            out.variance);
}

nb::dict train(
        AnyMatrix x,
        Weights weights,
        size_t k,
        const std::string& covariance_type,
        const std::string& init,
        int hard_iterations,
        int niter,
        double tolerance,
        uint64_t seed,
        bool spherical,
        const std::string& backend_name,
        std::optional<Matrix<const float>> means,
        Offset offset,
        nb::object progress) {
    const auto source = make_source(x, offset);
    const std::vector<float> w = copy_weights(weights, source->n);
    gmm::TrainingOptions options;
    options.covariance = covariance_from_string(covariance_type);
    options.hard_iterations = hard_iterations;
    options.niter = niter;
    options.tolerance = tolerance;
    options.seed = seed;
    gmm::GaussianMixture start;
    if (means) {
        options.init = gmm::Initialisation::given_means;
        start.covariance = options.covariance;
        start.k = means->shape(0);
        start.d = means->shape(1);
        start.means.assign(means->data(), means->data() + means->size());
    } else {
        options.init = init == "k-means++"
                ? gmm::Initialisation::kmeans_plus_plus
                : gmm::Initialisation::random_subset;
    }
    if (spherical) {
        options.project_means = [k, d = source->d](float* m) {
            for (size_t c = 0; c < k; c++, m += d) {
                double sum = 0;
                for (size_t j = 0; j < d; j++) {
                    sum += double(m[j]) * m[j];
                }
                for (size_t j = 0; sum > 0 && j < d; j++) {
                    m[j] = float(m[j] / std::sqrt(sum));
                }
            }
        };
    }
    options.check = check_interrupt;
    options.progress = [&](const gmm::TrainingIteration& it) {
        check_interrupt();
        if (!progress.is_none()) {
            const WithGil gil;
            progress(it.step == gmm::EStep::hard, it.objective, it.seconds);
        }
        return true;
    };
    gmm::TrainingResult result;
    std::string used;
    {
        const LongCall long_call;
        const auto backend = make_backend(backend_name, source->d, k);
        used = backend->name();
        result = gmm::train(
                *source,
                w.empty() ? nullptr : w.data(),
                k,
                options,
                *backend,
                means ? &start : nullptr);
    }
    nb::list iterations;
    for (const auto& it : result.iterations) {
        iterations.append(nb::make_tuple(
                it.step == gmm::EStep::hard,
                it.objective,
                it.seconds,
                it.e_seconds,
                it.reseeded,
                it.imbalance));
    }
    nb::dict out = to_dict(std::move(result.model));
    out["converged"] = result.converged;
    out["iterations"] = iterations;
    out["backend"] = used;
    return out;
}

/** E-steps over one set of vectors.
 *
 * What it takes and gives is in the units of (x - center) * scale. */
struct EStepEngine {
    Vectors x;
    std::unique_ptr<gmm::VectorSource> source;
    std::vector<float> weights;
    std::unique_ptr<gmm::Backend> backend;
    std::mutex mutex; // a backend takes one call at a time

    EStepEngine(
            Vectors x_in,
            Weights weights_in,
            Vector<const float> center,
            float scale,
            const std::string& backend_name,
            Offset offset)
            : x(std::move(x_in)), source(make_source(x, offset)),
              weights(copy_weights(weights_in, source->n)),
              backend(make_backend(backend_name, source->d, 1)) {
        if (center.shape(0) != source->d) {
            gmm::throw_invalid(
                    "center: %zu values, expected d = %zu",
                    center.shape(0),
                    source->d);
        }
        gmm::Frame frame;
        frame.center = copy(nb::ndarray<const float, nb::c_contig>(center));
        frame.scale = scale;
        const LongCall long_call;
        backend->set_data(
                *source, weights.empty() ? nullptr : weights.data(), frame);
    }

    gmm::SufficientStats accumulate(
            const std::string& covariance_type,
            Matrix<const float> means,
            nb::ndarray<const float, nb::c_contig> variances,
            Vector<const float> log_weights,
            bool hard) {
        const gmm::GaussianMixture model =
                make_mixture(covariance_type, means, variances, log_weights);
        gmm::SufficientStats stats(model.covariance, model.k, model.d);
        const LongCall long_call;
        const std::lock_guard<std::mutex> lock(mutex);
        backend->set_model(model);
        backend->accumulate(hard ? gmm::EStep::hard : gmm::EStep::soft, stats);
        return stats;
    }
};

/** Writes what a fitted mixture says of each row.
 *
 * @param labels     (n, m): the most responsible components, or None
 * @param log_prob   (n,), or None
 * @param posterior  (n, k): responsibilities, or None
 *
 * Throws naming the first row whose likelihood is no float for any component.
 */
void evaluate(
        AnyMatrix x,
        const std::string& covariance_type,
        Matrix<const float> means,
        nb::ndarray<const float, nb::c_contig> variances,
        Vector<const float> log_weights,
        Vector<const float> center,
        float scale,
        Offset offset,
        std::optional<Matrix<int64_t>> labels,
        std::optional<Vector<float>> log_prob,
        std::optional<Matrix<double>> posterior) {
    const gmm::GaussianMixture model =
            make_mixture(covariance_type, means, variances, log_weights);
    const auto source = make_source(x, offset);
    const size_t n = source->n, k = model.k;
    const size_t m = posterior ? k : labels ? labels->shape(1) : 1;
    auto require = [&](bool fits, const char* name) {
        if (!fits) {
            gmm::throw_invalid("%s: its shape does not fit", name);
        }
    };
    require(source->d == model.d, "x");
    require(center.shape(0) == model.d, "center");
    require(!labels ||
                    (labels->shape(0) == n && m > 0 && labels->shape(1) == m),
            "labels");
    require(!log_prob || log_prob->shape(0) == n, "log_prob");
    require(!posterior ||
                    (posterior->shape(0) == n && posterior->shape(1) == k),
            "posterior");
    gmm::Frame frame;
    frame.center.assign(center.data(), center.data() + model.d);
    frame.scale = scale;

    const LongCall long_call;
    const auto backend = gmm::make_cpu_backend();
    backend->set_data(*source, nullptr, frame);
    backend->set_model(model);
    const size_t block = std::clamp<size_t>((size_t(1) << 22) / m, 64, kBlock);
    std::vector<std::byte> scratch;
    std::vector<int64_t> components(labels ? 0 : std::min(n, block) * m);
    std::vector<double> joint(std::min(n, block) * m);
    std::vector<float> sums(std::min(n, block));
    for (size_t begin = 0; begin < n; begin += block) {
        const size_t count = std::min(block, n - begin);
        int64_t* c = labels ? labels->data() + begin * m : components.data();
        float* sum = log_prob ? log_prob->data() + begin : sums.data();
        backend->top_components(
                source->rows(begin, count, scratch),
                m,
                c,
                joint.data(),
                nullptr,
                log_prob || posterior ? sum : nullptr,
                gmm::EStep::soft);
        for (size_t i = 0; i < count; i++) {
            if (!std::isfinite(float(joint[i * m]))) { // nor is log_prob
                gmm::throw_invalid(
                        "x: row %zu has the log-likelihood %g, expected rows "
                        "near enough to the means for floats",
                        begin + i,
                        joint[i * m]);
            }
        }
        for (size_t i = 0; posterior && i < count; i++) {
            double* row = posterior->data() + (begin + i) * k;
            double total = 0;
            for (size_t r = 0; r < m; r++) {
                const double p = std::exp(joint[i * m + r] - joint[i * m]);
                row[c[i * m + r]] = p;
                total += p;
            }
            for (size_t r = 0; r < m; r++) {
                row[r] /= total;
            }
        }
        check_interrupt();
    }
}

} // namespace

void bind_mixture(nb::module_& m) {
    bind_sufficient_stats(m);
    m.def("frame_of",
          &frame_of,
          nb::arg("x"),
          nb::arg("weights").none(),
          nb::arg("offset").none() = nb::none());
    m.def("train",
          &train,
          nb::arg("x"),
          nb::arg("weights").none(),
          nb::arg("k"),
          nb::kw_only(),
          nb::arg("covariance_type") = "spherical",
          nb::arg("init") = "random",
          nb::arg("hard_iterations") = 5,
          nb::arg("niter") = 20,
          nb::arg("tolerance") = 1e-5,
          nb::arg("seed") = 1234,
          nb::arg("spherical") = false,
          nb::arg("backend") = "auto",
          nb::arg("means").none() = nb::none(),
          nb::arg("offset").none() = nb::none(),
          nb::arg("progress").none() = nb::none());
    nb::class_<EStepEngine>(m, "EStepEngine")
            .def(nb::init<
                         Vectors,
                         Weights,
                         Vector<const float>,
                         float,
                         const std::string&,
                         Offset>(),
                 nb::arg("x"),
                 nb::arg("weights").none(),
                 nb::arg("center"),
                 nb::arg("scale"),
                 nb::arg("backend"),
                 nb::arg("offset").none() = nb::none())
            .def_prop_ro(
                    "backend",
                    [](const EStepEngine& e) { return e.backend->name(); })
            .def("accumulate",
                 &EStepEngine::accumulate,
                 nb::arg("covariance_type"),
                 nb::arg("means"),
                 nb::arg("variances"),
                 nb::arg("log_weights"),
                 nb::arg("hard"));
    m.def("evaluate",
          &evaluate,
          nb::arg("x"),
          nb::arg("covariance_type"),
          nb::arg("means"),
          nb::arg("variances"),
          nb::arg("log_weights"),
          nb::arg("center"),
          nb::arg("scale"),
          nb::arg("offset").none() = nb::none(),
          nb::kw_only(),
          nb::arg("labels").noconvert().none() = nb::none(),
          nb::arg("log_prob").noconvert().none() = nb::none(),
          nb::arg("posterior").noconvert().none() = nb::none());
}

} // namespace faiss_ext_python
