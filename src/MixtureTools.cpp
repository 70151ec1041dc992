#include "MixtureTools.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "Error.h"
#include "FullCovariance.h"
#include "Initialise.h"
#include "Split.h"

namespace gmm {

size_t num_parameters(const GaussianMixture& model) {
    const size_t d = model.d, k = model.k;
    size_t covariances = model.variances.size();
    if (has_matrices(model.covariance)) {
        const size_t matrices = model.covariance == Covariance::full ? k : 1;
        covariances = matrices * (d * (d + 1) / 2);
    }
    return k - 1 + k * d + covariances;
}

namespace {

/// Of the square of how far means and vectors are apart: floats hold no more.
constexpr double kLeastVariance = 1e-36;

/// log p of blocks of vectors, with the m best components if they are asked
/// for.
struct Evaluation {
    const VectorSource& source;
    const float* weights;
    Backend& backend;
    size_t m;

    std::vector<int64_t> components;
    std::vector<double> log_joint;
    std::vector<float> log_prob;

    Evaluation(
            const GaussianMixture& model,
            const VectorSource& source,
            const float* weights,
            Backend& backend,
            size_t m)
            : source(source), weights(weights), backend(backend), m(m) {
        model.validate();
        if (source.d != model.d) {
            throw_invalid(
                    "source.d = %zu, expected the model's d = %zu",
                    source.d,
                    model.d);
        }
        // Centred, so that float products lose little: Frame says why.
        Frame frame;
        frame.center.resize(model.d);
        std::vector<double> center(model.d);
        for (size_t i = 0; i < model.means.size(); i++) {
            center[i % model.d] +=
                    std::exp(double(model.log_weights[i / model.d])) *
                    model.means[i];
        }
        std::copy(center.begin(), center.end(), frame.center.begin());
        double spread = 0;
        for (size_t i = 0; i < model.means.size(); i++) {
            const double diff = model.means[i] - center[i % model.d];
            spread = std::max(spread, std::abs(diff));
        }
        const auto [least, largest] = variance_range(model);
        spread = std::max(spread, std::sqrt(largest));
        if (least < kLeastVariance * spread * spread) {
            throw_invalid(
                    "variances: %g beside a spread of %g, expected at least "
                    "%g of its square",
                    least,
                    spread,
                    kLeastVariance);
        }
        frame.scale = std::exp2(-std::round(std::log2(spread)));
        backend.set_data(source, weights, frame);
        backend.set_model(frame.to_frame(model));
    }

    /// Calls use(first row of the block, rows) for each.
    void run(const std::function<void(size_t, size_t)>& use) {
        const size_t block =
                std::clamp<size_t>((size_t(1) << 22) / m, 256, 16384);
        std::vector<std::byte> scratch;
        for (size_t begin = 0; begin < source.n; begin += block) {
            const size_t count = std::min(block, source.n - begin);
            components.resize(count * m);
            log_joint.resize(count * m);
            log_prob.resize(count);
            backend.top_components(
                    source.rows(begin, count, scratch),
                    m,
                    components.data(),
                    log_joint.data(),
                    nullptr,
                    log_prob.data());
            for (size_t i = 0; i < count; i++) {
                if (components[i * m] < 0 &&
                    !(weights && weights[begin + i] == 0)) {
                    throw_invalid(
                            "source: row %zu has a value that is not finite, "
                            "or too far from the means for floats",
                            source.given_row(begin + i));
                }
            }
            use(begin, count);
        }
    }
};

struct Likelihood {
    double sum = 0; ///< sum_i w_i log p(x_i)
    double n = 0;   ///< sum_i w_i
};

Likelihood log_likelihood(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend) {
    Likelihood out;
    out.n = check_weights(source.n, weights, 1).sum;
    Evaluation evaluation(model, source, weights, backend, 1);
    evaluation.run([&](size_t begin, size_t count) {
        for (size_t i = 0; i < count; i++) {
            const double w = weights ? weights[begin + i] : 1;
            if (w > 0) {
                out.sum += w * evaluation.log_prob[i];
            }
        }
    });
    return out;
}

/// Calls use(row, components, responsibilities) for each row, of all
/// components by descending responsibility. They sum to 1: backends round the
/// logarithms to floats, and the total's by itself.
template <class Use>
void for_responsibilities(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        const Use& use) {
    const size_t k = model.k;
    Evaluation evaluation(model, source, nullptr, backend, k);
    std::vector<double> r(k);
    evaluation.run([&](size_t begin, size_t count) {
        for (size_t i = 0; i < count; i++) {
            const double* const log_joint = &evaluation.log_joint[i * k];
            double sum = 0;
            for (size_t c = 0; c < k; c++) {
                // the first also where all are minus infinity
                const double behind = log_joint[c] - log_joint[0];
                sum += r[c] = c > 0 ? behind <= 0 ? std::exp(behind) : 0 : 1;
            }
            for (double& value : r) {
                value /= sum;
            }
            use(begin + i, &evaluation.components[i * k], r.data());
        }
    });
}

/// One draw from the standard normal distribution (Box and Muller 1958), the
/// same on every platform.
double normal(std::mt19937_64& random) {
    const double radius = std::sqrt(-2 * std::log(1 - uniform(random)));
    return radius * std::cos(2 * std::numbers::pi * uniform(random));
}

} // namespace

double score(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend) {
    const Likelihood all = log_likelihood(model, source, weights, backend);
    return all.sum / all.n;
}

double aic(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend) {
    const Likelihood all = log_likelihood(model, source, weights, backend);
    return 2 * double(num_parameters(model)) - 2 * all.sum;
}

double bic(
        const GaussianMixture& model,
        const VectorSource& source,
        const float* weights,
        Backend& backend) {
    const Likelihood all = log_likelihood(model, source, weights, backend);
    return double(num_parameters(model)) * std::log(all.n) - 2 * all.sum;
}

void sample(
        const GaussianMixture& model,
        size_t n,
        uint64_t seed,
        float* x,
        int64_t* components) {
    model.validate();
    check_array("x", x, n);
    const size_t d = model.d, k = model.k;
    std::mt19937_64 random(seed);
    std::vector<double> upto(k);
    double sum = 0;
    for (size_t c = 0; c < k; c++) {
        upto[c] = sum += std::exp(double(model.log_weights[c]));
    }
    std::vector<size_t> from(n);
    for (size_t& c : from) {
        const double at = uniform(random) * sum;
        c = std::upper_bound(upto.begin(), upto.end() - 1, at) - upto.begin();
    }
    std::vector<double> noise(d);
    for (size_t i = 0; i < n; i++) {
        for (double& v : noise) {
            v = normal(random);
        }
        times_factor(model, from[i], noise.data());
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = float(model.means[from[i] * d + j] + noise[j]);
        }
        if (components) {
            components[i] = int64_t(from[i]);
        }
    }
}

void log_prob(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out) {
    check_array("out", out, source.n);
    Evaluation evaluation(model, source, nullptr, backend, 1);
    evaluation.run([&](size_t begin, size_t count) {
        std::copy_n(evaluation.log_prob.begin(), count, out + begin);
    });
}

void predict(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        int64_t* out) {
    check_array("out", out, source.n);
    Evaluation evaluation(model, source, nullptr, backend, 1);
    evaluation.run([&](size_t begin, size_t count) {
        std::copy_n(evaluation.components.begin(), count, out + begin);
    });
}

void predict_proba(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out) {
    check_array("out", out, source.n);
    const size_t k = model.k;
    for_responsibilities(
            model,
            source,
            backend,
            [&](size_t row, const int64_t* components, const double* r) {
                for (size_t c = 0; c < k; c++) {
                    out[row * k + components[c]] = float(r[c]);
                }
            });
}

void responsibility_entropy(
        const GaussianMixture& model,
        const VectorSource& source,
        Backend& backend,
        float* out) {
    check_array("out", out, source.n);
    for_responsibilities(
            model,
            source,
            backend,
            [&](size_t row, const int64_t*, const double* r) {
                double sum = 0;
                for (size_t c = 0; c < model.k; c++) {
                    sum -= r[c] > 0 ? r[c] * std::log(r[c]) : 0;
                }
                out[row] = float(sum);
            });
}

GaussianMixture grow(const GaussianMixture& model, size_t k, uint64_t seed) {
    model.validate();
    if (k < model.k) {
        throw_invalid("k = %zu, expected at least the model's %zu", k, model.k);
    }
    GaussianMixture out = model;
    out.k = k;
    out.means.resize(k * model.d);
    out.log_weights.resize(k);
    out.variances.resize(num_variances(model.covariance, k, model.d));
    out.precisions_cholesky.resize(num_factors(model.covariance, k, model.d));
    std::vector<double> scatter = mean_variances(model);
    scatter.resize(k);
    for (size_t c = 0; c < model.k; c++) {
        scatter[c] *= std::exp(double(model.log_weights[c]));
    }
    std::mt19937_64 random(seed);
    // A deviation in all: where both halves are nearly the same, which is a
    // saddle of the likelihood, EM stays for longer than any tolerance waits.
    const double step = std::max(0.1, 1 / std::sqrt(double(model.d)));
    for (size_t c = model.k; c < k; c++) {
        const size_t from =
                std::max_element(scatter.begin(), scatter.begin() + c) -
                scatter.begin();
        split_component(out, from, c, step, random);
        scatter[c] = scatter[from] /= 2;
    }
    normalise_weights(out);
    return out;
}

std::vector<SweepEntry> sweep(
        const VectorSource& source,
        const float* weights,
        const std::vector<size_t>& ks,
        const TrainingOptions& options,
        Backend& backend) {
    if (ks.empty()) {
        throw_invalid("ks: no numbers, expected at least one");
    }
    for (size_t i = 0; i < ks.size(); i++) {
        const size_t before = i > 0 ? ks[i - 1] : 0;
        if (ks[i] <= before) {
            throw_invalid(
                    "ks[%zu] = %zu, expected more than %zu", i, ks[i], before);
        }
    }
    if (ks.back() > source.n) { // before the others are fitted
        throw_invalid(
                "ks: %zu, expected at most the number of vectors, %zu",
                ks.back(),
                source.n);
    }
    check_weights(source.n, weights, ks.back());
    std::vector<SweepEntry> out;
    TrainingOptions grown = options;
    grown.init = Initialisation::given_means;
    grown.hard_iterations = 0;
    for (size_t k : ks) {
        TrainingResult result;
        if (out.empty()) {
            result = train(source, weights, k, options, backend, nullptr);
        } else {
            result.model = out.back().result.model;
        }
        // Halves of halves that EM has not parted yet would stay together.
        while (result.model.k < k && result.stop != Stop::callback) {
            const size_t to = std::min(2 * result.model.k, k);
            const GaussianMixture start =
                    grow(result.model, to, options.seed + to);
            result = train(source, weights, to, grown, backend, &start);
        }
        Likelihood all = log_likelihood(result.model, source, weights, backend);
        // One of these covers two groups well enough for EM to leave it so.
        if (!out.empty() && options.covariance != Covariance::isotropic &&
            options.covariance != Covariance::tied_spherical &&
            result.stop != Stop::callback) {
            TrainingResult anew =
                    train(source, weights, k, options, backend, nullptr);
            const Likelihood other =
                    log_likelihood(anew.model, source, weights, backend);
            const Stop stop = anew.stop;
            if (other.sum > all.sum) {
                result = std::move(anew);
                all = other;
            }
            result.stop = stop == Stop::callback ? stop : result.stop;
        }
        const double p = double(num_parameters(result.model));
        out.push_back(
                {result.model.k,
                 2 * p - 2 * all.sum,
                 p * std::log(all.n) - 2 * all.sum,
                 std::move(result)});
        if (out.back().result.stop == Stop::callback) {
            break;
        }
    }
    return out;
}

} // namespace gmm
