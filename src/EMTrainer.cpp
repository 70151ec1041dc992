#include "EMTrainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "Error.h"
#include "FullCovariance.h"
#include "HierarchicalStart.h"
#include "Initialise.h"
#include "LocalVariance.h"
#include "Split.h"
#include "TrainingStart.h"

namespace gmm {

namespace {

/// Of a conditional variance, the share that a floor may have.
constexpr double kShows = 0.01;

/// Of a component's mean |y|^2, the least variance that sums in double leave a
/// matrix positive definite by.
constexpr double kLeastOfSquare = 2e-15;

struct Trainer {
    const VectorSource& source;
    const float* weights;
    const TrainingOptions& options;
    Backend& backend;
    std::mt19937_64 random;

    Frame frame = {};
    double variance = 0;   // the data's, in the frame's units
    double reg_covar = 0;  // in the frame's units
    double min_count = 0;  // in units of weight
    double row_weight = 1; // the mean of those above 0
    // in the frame's units, size k; of the tied kinds one for all
    std::vector<double> variance_floor = {};
    std::vector<double> floor_shape = {}; // LocalVariance.h
    GaussianMixture model = {};           // in the frame's units
    SufficientStats stats = {};
    TrainingResult result = {};

    void initialise(size_t k, const GaussianMixture* start);
    void start_hierarchically();
    bool iterate(EStep step);
    bool iterate_hard(int iterations);
    bool iterate_soft();
    /// by_backend: its model is `model`.
    void find_floors(bool by_backend);
    bool is_held(size_t c, double floor) const;
    bool lower_floors();
    void nearest_means(
            const std::vector<size_t>& wanted, size_t m, int64_t* out);
    void fit(bool update_means);
    size_t maximise();
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
        model.precisions_cholesky = start->precisions_cholesky;
        model = frame.to_frame(model);
    } else if (options.init == Initialisation::hierarchical) {
        start_hierarchically();
        return;
    } else {
        model.means =
                initial_means(source, weights, frame, k, options.init, random);
        make_distinct(source, weights, frame, k, model.means, random);
        project();
    }
    const bool given_variances = has_spread(model);
    const bool given_weights = start && !start->log_weights.empty() &&
            options.init == Initialisation::given_means;
    if (!given_variances) {
        set_unit_variances(model);
    }
    model.log_weights.assign(k, -std::log(float(k)));
    // Hard iterations need means only; EM needs to know the spread around them.
    if (given_variances || options.hard_iterations == 0 ||
        !options.update_means) {
        backend.set_model(model);
        backend.accumulate(EStep::hard, stats);
        find_floors(true);
    }
    if (!given_variances && !variance_floor.empty()) {
        fit(false);
    }
    if (given_weights) {
        model.log_weights = start->log_weights;
    }
}

void Trainer::start_hierarchically() {
    HierarchicalStart start = hierarchical_start(
            source,
            weights,
            frame,
            model.covariance,
            model.k,
            2 * std::max(1, options.hard_iterations),
            random,
            options.check ? options.check : [] {});
    model.means = std::move(start.means);
    model.variances.assign(
            num_variances(model.covariance, model.k, model.d), 1);
    model.log_weights.assign(model.k, -std::log(float(model.k)));
    stats = std::move(start.stats);
    find_floors(false);
    maximise();
}

void Trainer::fit(bool update_means) {
    m_step(stats,
           variance_floor,
           min_count,
           update_means,
           model,
           reg_covar,
           floor_shape);
}

// The M-step; how many components were put elsewhere.
size_t Trainer::maximise() {
    fit(options.update_means);
    if (!options.update_means) {
        return 0;
    }
    if (options.project_means) {
        project();
        fit(false); // the spread is that around these means
    }
    const size_t reseeded = reseed();
    if (reseeded > 0) {
        project();
    }
    return reseeded;
}

// From the statistics of a hard step, for the means that it was for.
void Trainer::find_floors(bool by_backend) {
    NearestMeans nearest;
    if (by_backend) {
        nearest = [&](const std::vector<size_t>& wanted,
                      size_t m,
                      int64_t* out) { nearest_means(wanted, m, out); };
    }
    variance_floor =
            local_variances(stats, model.means, variance, nearest, row_weight);
    for (size_t c = 0; c < model.k; c++) {
        double& floor = variance_floor[c];
        floor *= options.variance_floor;
        if (has_matrices(model.covariance) && stats.n_k[c] > 0) {
            const double square = sum_of_squares(stats, c) / stats.n_k[c];
            floor = std::max(floor, kLeastOfSquare * square);
        }
    }
    if (is_tied(model.covariance)) {
        // Once: weighed by each M-step's n_k it would move, and with it what EM
        // maximises.
        variance_floor = {weighted_median(variance_floor, stats.n_k)};
    }
    floor_shape = local_shape(stats, row_weight);
}

// Whether that floor shows in the component's variances.
bool Trainer::is_held(size_t c, double floor) const {
    const size_t d = model.d;
    if (has_matrices(model.covariance)) { // to which it is added
        const float* factor = precision_factor(model, c);
        for (size_t j = 0; j < d; j++) {
            const double precision =
                    double(factor[j * (d + 1)]) * factor[j * (d + 1)];
            const double shape = floor_shape.empty() ? 1 : floor_shape[j];
            if (floor * shape * precision > kShows) {
                return true;
            }
        }
        return false;
    }
    const size_t each = model.covariance == Covariance::diagonal ? d : 1;
    const bool shaped = each > 1 && !floor_shape.empty();
    for (size_t j = 0; j < each; j++) {
        const double shape = shaped ? floor_shape[j] : 1;
        if (model.variances[c * each + j] <= 1.0001 * floor * shape) {
            return true;
        }
    }
    return false;
}

// Floors are found where components begin, and may be wide then: where they
// hold up what has become narrow they are found anew. Whether one is lower.
bool Trainer::lower_floors() {
    if (!options.update_means) {
        return false;
    }
    const std::vector<double> before = variance_floor;
    std::vector<size_t> held;
    for (size_t c = 0; c < before.size(); c++) {
        if (is_held(c, before[c])) {
            held.push_back(c);
        }
    }
    if (held.empty()) {
        return false;
    }
    const std::vector<double> shape_before = floor_shape;
    SufficientStats soft = std::move(stats);
    backend.set_model(model);
    backend.accumulate(EStep::hard, stats);
    find_floors(true);
    stats = std::move(soft);
    for (size_t c = 0; c < before.size(); c++) {
        variance_floor[c] = std::min(variance_floor[c], before[c]);
    }
    const bool lower = std::any_of(held.begin(), held.end(), [&](size_t c) {
        return variance_floor[c] < before[c] / 2;
    });
    if (!lower) {
        variance_floor = before;
        floor_shape = shape_before;
    }
    return lower;
}

void Trainer::nearest_means(
        const std::vector<size_t>& wanted, size_t m, int64_t* out) {
    const size_t d = model.d;
    std::vector<float> x(wanted.size() * d);
    for (size_t i = 0; i < x.size(); i++) {
        const size_t j = i % d;
        x[i] = model.means[wanted[i / d] * d + j] / frame.scale +
                frame.center[j];
    }
    std::vector<float> distances(wanted.size() * m);
    backend.top_components(
            {x.data(), ElementType::f32, wanted.size(), d, d * sizeof(float)},
            m,
            out,
            nullptr,
            distances.data(),
            nullptr,
            EStep::hard);
}

size_t Trainer::reseed() {
    const auto splits =
            split_for_dead(stats, min_count, model, random, row_weight);
    for (const auto& [from, to] : splits) {
        if (variance_floor.size() > 1) {
            variance_floor[to] = variance_floor[from];
        }
    }
    return splits.size();
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
            : (0 - mean) / (double(frame.scale) * frame.scale); // never -0
    out.dropped_mass = stats.dropped_mass / stats.weight;
    double sum = 0, squares = 0;
    for (double n : stats.n_k) {
        sum += n;
        squares += n * n;
    }
    out.imbalance = model.k * squares / (sum * sum);
    return out;
}

// False if the callback stops the training, as all three.
bool Trainer::iterate(EStep step) {
    const Timer whole;
    backend.set_model(model);
    backend.accumulate(step, stats);
    const double e_seconds = whole.seconds();
    TrainingIteration done = report(step);
    if (step == EStep::hard) {
        find_floors(true);
    }
    done.reseeded = maximise();
    done.e_seconds = e_seconds;
    done.seconds = whole.seconds();
    result.iterations.push_back(done);
    const bool go_on = !options.progress || options.progress(done);
    result.stop = go_on ? result.stop : Stop::callback;
    return go_on;
}

bool Trainer::iterate_hard(int iterations) {
    for (int i = 0; i < iterations; i++) {
        if (!iterate(EStep::hard)) {
            return false;
        }
    }
    return true;
}

bool Trainer::iterate_soft() {
    double before = 0;
    size_t reseeded_before = 0; // which lowers the likelihood for a while
    for (int i = 0; i < options.niter; i++) {
        if (!iterate(EStep::soft)) {
            return false;
        }
        // In the frame's units, so that the user's unit does not matter.
        const double objective = stats.objective / stats.weight;
        const double magnitude = std::max(std::abs(objective), double(model.d));
        const size_t reseeded = result.iterations.back().reseeded;
        if (i > 0 && reseeded == 0 && reseeded_before == 0 &&
            objective - before < options.tolerance * magnitude &&
            options.tolerance > 0) {
            if (options.last_hard_iterations > 0 || !lower_floors()) {
                result.converged = true;
                result.stop = Stop::converged;
                return true;
            }
            maximise(); // by the lower floors; it goes on from there
        }
        before = objective;
        reseeded_before = reseeded;
    }
    if (options.last_hard_iterations == 0 && options.niter > 0 &&
        reseeded_before == 0 && lower_floors()) {
        maximise();
    }
    return true;
}

} // namespace

int TrainingResult::n_iter() const {
    return int(std::count_if(
            iterations.begin(), iterations.end(), [](const auto& it) {
                return it.step == EStep::soft;
            }));
}

double TrainingResult::lower_bound() const {
    const auto last = std::find_if(
            iterations.rbegin(), iterations.rend(), [](const auto& it) {
                return it.step == EStep::soft;
            });
    return last != iterations.rend() ? last->objective : -HUGE_VAL;
}

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
    const CheckedWeights checked = check_weights(source.n, weights, k);

    Trainer trainer{
            source, weights, options, backend, std::mt19937_64(options.seed)};
    const DataFrame data = fit_frame(source, weights);
    trainer.frame = data.frame;
    trainer.variance = data.variance;
    trainer.reg_covar = options.reg_covar * data.frame.scale * data.frame.scale;
    trainer.min_count = options.min_count * checked.lightest;
    trainer.row_weight = checked.mean;
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

    // They would overwrite variances that were given or found.
    const bool hard = options.update_means &&
            options.init != Initialisation::hierarchical &&
            !(given && has_spread(*start));
    if ((hard && !trainer.iterate_hard(options.hard_iterations)) ||
        !trainer.iterate_soft()) {
        return finish();
    }
    if (options.update_means &&
        !trainer.iterate_hard(options.last_hard_iterations)) {
        trainer.result.converged = false;
    }
    return finish();
}

} // namespace gmm
