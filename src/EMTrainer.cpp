#include "EMTrainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <queue>

#include "Error.h"
#include "Initialise.h"

namespace gmm {

static void check_options(const TrainingOptions& options) {
    auto require = [](bool holds,
                      const char* name,
                      double value,
                      const char* expected) {
        if (!holds) {
            throw_invalid("%s = %g, expected %s", name, value, expected);
        }
    };
    require(options.hard_iterations >= 0,
            "hard_iterations",
            options.hard_iterations,
            "at least 0");
    require(options.niter >= 0, "niter", options.niter, "at least 0");
    require(options.tolerance >= 0 && std::isfinite(options.tolerance),
            "tolerance",
            options.tolerance,
            "at least 0");
    require(options.variance_floor > 0 && std::isfinite(options.variance_floor),
            "variance_floor",
            options.variance_floor,
            "a positive value");
    require(options.min_count >= 0 && std::isfinite(options.min_count),
            "min_count",
            options.min_count,
            "at least 0");
}

/// The sum of the weights, after checking them.
static double check_weights(
        const VectorSource& source, const float* weights, size_t k) {
    if (!weights) {
        return double(source.n);
    }
    double sum = 0;
    size_t positive = 0;
    for (size_t i = 0; i < source.n; i++) {
        if (!(weights[i] >= 0) || !std::isfinite(weights[i])) {
            throw_invalid(
                    "weights[%zu] = %g, expected a finite value of at least 0",
                    i,
                    weights[i]);
        }
        sum += weights[i];
        positive += weights[i] > 0;
    }
    if (positive < k) {
        throw_invalid(
                "weights: %zu are positive, expected at least k = %zu",
                positive,
                k);
    }
    return sum;
}

static void check_start(
        const GaussianMixture* start,
        const TrainingOptions& options,
        size_t k,
        size_t d) {
    if (!start || start->k != k || start->d != d ||
        start->means.size() != k * d) {
        throw_invalid(
                "start: k = %zu, d = %zu, %zu means, expected k = %zu, d = "
                "%zu for Initialisation::given_means",
                start ? start->k : 0,
                start ? start->d : 0,
                start ? start->means.size() : 0,
                k,
                d);
    }
    GaussianMixture complete = *start;
    complete.covariance = options.covariance;
    if (complete.variances.empty()) {
        complete.variances.assign(num_variances(options.covariance, k, d), 1);
    } else if (start->covariance != options.covariance) {
        throw_invalid(
                "start: variances of another covariance kind than "
                "options.covariance");
    }
    if (complete.log_weights.empty()) {
        complete.log_weights.assign(k, -std::log(float(k)));
    }
    complete.validate();
}

namespace {

struct Trainer {
    const VectorSource& source;
    const float* weights;
    const TrainingOptions& options;
    Backend& backend;
    std::mt19937_64 random;

    Frame frame = {};
    double variance_floor = 0;  // in the frame's units
    double min_count = 0;       // in units of weight
    GaussianMixture model = {}; // in the frame's units
    SufficientStats stats = {};
    TrainingResult result = {};

    void initialise(size_t k, const GaussianMixture* start);
    bool iterate(EStep step);
    size_t reseed();
    void project();
    TrainingIteration report(EStep step) const;
};

/// Seconds since it was made.
struct Timer {
    std::chrono::steady_clock::time_point start =
            std::chrono::steady_clock::now();

    double seconds() const {
        return std::chrono::duration<double>(
                       std::chrono::steady_clock::now() - start)
                .count();
    }
};

void Trainer::initialise(size_t k, const GaussianMixture* start) {
    const size_t d = source.d;
    model.covariance = options.covariance;
    model.k = k;
    model.d = d;
    if (options.init == Initialisation::given_means) {
        model.means = start->means;
        model.variances = start->variances;
        model = frame.to_frame(model);
    } else {
        model.means =
                initial_means(source, weights, frame, k, options.init, random);
        project();
    }
    const bool given_variances = !model.variances.empty();
    const bool given_weights = start && !start->log_weights.empty() &&
            options.init == Initialisation::given_means;
    if (!given_variances) {
        model.variances.assign(num_variances(options.covariance, k, d), 1);
    }
    model.log_weights.assign(k, -std::log(float(k)));
    if (!given_variances) {
        // Hard iterations need means only; EM needs to know the spread
        // around them.
        if (options.hard_iterations == 0 || !options.update_means) {
            backend.set_model(model);
            backend.accumulate(EStep::hard, stats);
            m_step(stats, variance_floor, min_count, false, model);
        }
    }
    if (given_weights) {
        model.log_weights = start->log_weights;
    }
}

// A dead component takes over half of the heaviest: both means move apart by
// a tenth of the standard deviation, as faiss::Clustering splits clusters.
size_t Trainer::reseed() {
    std::priority_queue<std::pair<double, size_t>> heaviest;
    std::vector<size_t> dead;
    for (size_t c = 0; c < model.k; c++) {
        if (stats.n_k[c] < min_count || stats.n_k[c] <= 0) {
            dead.push_back(c);
        } else {
            heaviest.emplace(stats.n_k[c], c);
        }
    }
    size_t reseeded = 0;
    const size_t d = model.d;
    for (size_t c : dead) {
        if (heaviest.empty() || heaviest.top().first < 2 * min_count) {
            break;
        }
        const auto [n, from] = heaviest.top();
        heaviest.pop();
        for (size_t j = 0; j < d; j++) {
            const float step = 0.1f * std::sqrt(model.variance(from, j)) *
                    (random() & 1 ? 1 : -1);
            model.means[c * d + j] = model.means[from * d + j] + step;
            model.means[from * d + j] -= step;
        }
        const size_t each = model.variances.size() / model.k;
        std::copy_n(
                model.variances.begin() + from * each,
                each,
                model.variances.begin() + c * each);
        model.log_weights[from] -= std::log(2.0f);
        model.log_weights[c] = model.log_weights[from];
        heaviest.emplace(n / 2, from);
        heaviest.emplace(n / 2, c);
        reseeded++;
    }
    if (reseeded > 0) {
        double sum = 0;
        for (float log_weight : model.log_weights) {
            sum += std::exp(double(log_weight));
        }
        for (float& log_weight : model.log_weights) {
            log_weight -= std::log(sum);
        }
    }
    return reseeded;
}

void Trainer::project() {
    if (options.project_means) {
        GaussianMixture user = frame.to_user(model);
        options.project_means(user.means.data());
        model.means = frame.to_frame(user).means;
    }
}

TrainingIteration Trainer::report(EStep step) const {
    TrainingIteration out = {};
    out.step = step;
    const double mean = stats.objective / stats.weight;
    out.objective = step == EStep::soft
            ? mean + model.d * std::log(double(frame.scale))
            : -mean / (double(frame.scale) * frame.scale);
    out.dropped_mass = stats.dropped_mass / stats.weight;
    double sum = 0, squares = 0;
    for (double n : stats.n_k) {
        sum += n;
        squares += n * n;
    }
    out.imbalance = model.k * squares / (sum * sum);
    return out;
}

bool Trainer::iterate(EStep step) {
    const Timer whole;
    backend.set_model(model);
    backend.accumulate(step, stats);
    const double e_seconds = whole.seconds();
    TrainingIteration done = report(step);
    m_step(stats, variance_floor, min_count, options.update_means, model);
    if (options.update_means) {
        done.reseeded = reseed();
        project();
    }
    done.e_seconds = e_seconds;
    done.seconds = whole.seconds();
    result.iterations.push_back(done);
    return !options.progress || options.progress(done);
}

} // namespace

TrainingResult train(
        const VectorSource& source,
        const float* weights,
        size_t k,
        const TrainingOptions& options,
        Backend& backend,
        const GaussianMixture* start) {
    check_options(options);
    if (k == 0 || k > source.n) {
        throw_invalid(
                "k = %zu, expected 1 to the number of vectors, %zu",
                k,
                source.n);
    }
    const bool given = options.init == Initialisation::given_means;
    if (given) {
        check_start(start, options, k, source.d);
    }
    const double total_weight = check_weights(source, weights, k);

    Trainer trainer{
            source, weights, options, backend, std::mt19937_64(options.seed)};
    const DataFrame data = fit_frame(source, weights);
    trainer.frame = data.frame;
    trainer.variance_floor = options.variance_floor * data.variance;
    trainer.min_count = options.min_count * total_weight / source.n;
    backend.set_data(source, weights, data.frame);
    trainer.initialise(k, start);

    auto finish = [&] {
        GaussianMixture& model = trainer.result.model;
        model = trainer.frame.to_user(trainer.model);
        // Bit for bit, whatever the way through the frame has rounded.
        if (given && !options.update_means) {
            model.means = start->means;
        } else if (options.project_means) {
            options.project_means(model.means.data());
        }
        model.validate();
        return std::move(trainer.result);
    };

    // They would overwrite variances that were given.
    const bool hard =
            options.update_means && !(given && !start->variances.empty());
    for (int i = 0; hard && i < options.hard_iterations; i++) {
        if (!trainer.iterate(EStep::hard)) {
            return finish();
        }
    }
    double before = 0;
    for (int i = 0; i < options.niter; i++) {
        if (!trainer.iterate(EStep::soft)) {
            break;
        }
        // In the frame's units, so that the user's unit does not matter.
        const double objective = trainer.stats.objective / trainer.stats.weight;
        const double magnitude =
                std::max(std::abs(objective), double(source.d));
        if (i > 0 && trainer.result.iterations.back().reseeded == 0 &&
            objective - before < options.tolerance * magnitude &&
            options.tolerance > 0) {
            trainer.result.converged = true;
            break;
        }
        before = objective;
    }
    return finish();
}

} // namespace gmm
