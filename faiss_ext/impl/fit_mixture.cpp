#include "faiss_ext/impl/fit_mixture.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <utility>

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/utils/distances.h>
#include <faiss/utils/random.h>

#include "Backend.h"
#include "EMTrainer.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

uint64_t actual_seed(int seed) {
    if (seed >= 0) {
        return seed;
    }
    const auto now = std::chrono::high_resolution_clock::now();
    return now.time_since_epoch().count();
}

Sample::Sample(const gmm::VectorSource& source, size_t most, uint64_t seed)
        : n(std::min(source.n, most)), x(n * source.d) {
    const auto some = gmm::sample_source(source, n, seed);
    std::vector<std::byte> scratch;
    some->rows(0, n, scratch).to_float(x.data());
    check_storable(*some, 0, n, x.data());
}

namespace {

/// Distance between the seeds of two runs of nredo; FAISS's own.
constexpr uint64_t kRedoSeedStep = 15486557;

gmm::Initialisation initialisation(
        [[maybe_unused]] const faiss::ClusteringParameters& cp) {
#ifdef FAISS_EXT_HAS_INIT_METHOD
    switch (cp.init_method) {
        case faiss::ClusteringInitMethod::RANDOM:
            return gmm::Initialisation::random_subset;
        case faiss::ClusteringInitMethod::KMEANS_PLUS_PLUS:
            return gmm::Initialisation::kmeans_plus_plus;
        default:
            FAISS_THROW_FMT(
                    "init_method = %d, expected RANDOM or KMEANS_PLUS_PLUS",
                    int(cp.init_method));
    }
#else
    return gmm::Initialisation::random_subset;
#endif
}

/// Whether k-means goes from groups to means. A GPU has done all its k-means
/// iterations with all means before a CPU has found the groups.
bool from_groups(
        const GpuGMMClustering& clus,
        gmm::Initialisation init,
        const gmm::Backend& backend) {
    return init == gmm::Initialisation::random_subset && clus.hard_niter > 0 &&
            !gmm::has_matrices(clus.covariance) &&
            clus.k >= clus.kGroupedFrom && backend.name() == "cpu";
}

std::function<void(float*)> mean_projection(const GpuGMMClustering& clus) {
    if (!clus.spherical && !clus.int_centroids) {
        return {};
    }
    return [d = clus.d,
            k = clus.k,
            spherical = clus.spherical,
            rounded = clus.int_centroids](float* means) {
        if (spherical) {
            faiss::fvec_renorm_L2(d, k, means);
        }
        if (rounded) {
            std::transform(means, means + k * d, means, roundf);
        }
    };
}

/// What is printed and kept while one run of nredo trains.
struct Progress {
    bool verbose;
    std::vector<faiss::ClusteringIterationStats> stats;
    double seconds = 0;
    double e_seconds = 0;

    bool operator()(const gmm::TrainingIteration& it) {
        faiss::InterruptCallback::check();
        seconds += it.seconds;
        e_seconds += it.e_seconds;
        stats.push_back(
                {float(it.objective),
                 seconds,
                 e_seconds,
                 it.imbalance,
                 int(it.reseeded)});
        if (verbose) {
            printf("  %s iteration %zu (%.2f s, search %.2f s): "
                   "objective=%g imbalance=%.3f nsplit=%zu       \r",
                   it.step == gmm::EStep::hard ? "K-means" : "EM",
                   stats.size() - 1,
                   seconds,
                   e_seconds,
                   it.objective,
                   it.imbalance,
                   it.reseeded);
            fflush(stdout);
        }
        return true;
    }
};

/// The given means, and distinct training vectors for those that are missing.
gmm::GaussianMixture start_model(
        const GpuGMMClustering& clus,
        const gmm::VectorSource& source,
        uint64_t seed) {
    gmm::GaussianMixture start;
    start.covariance = clus.covariance;
    start.d = clus.d;
    start.k = clus.k;
    start.means = clus.centroids;
    const size_t n_given = clus.centroids.size() / clus.d;
    if (n_given < clus.k) {
        std::vector<int> perm(source.n);
        faiss::rand_perm(perm.data(), source.n, seed);
        const std::vector<size_t> ids(
                perm.begin() + n_given, perm.begin() + clus.k);
        start.means.resize(clus.k * clus.d);
        gmm::gather(source, ids, start.means.data() + n_given * clus.d);
    }
    if (const auto project = mean_projection(clus);
        project && !clus.frozen_centroids) {
        project(start.means.data());
    }
    return start;
}

/// What nredo goes by; the larger, the better.
double score(const gmm::TrainingResult& result) {
    if (result.iterations.empty()) {
        return -HUGE_VAL;
    }
    const gmm::TrainingIteration& last = result.iterations.back();
    return last.step == gmm::EStep::soft ? last.objective : -last.objective;
}

} // namespace

Fit fit_mixture(
        const GpuGMMClustering& clus,
        const gmm::VectorSource& source,
        const float* weights) {
    const std::unique_ptr<gmm::Backend> backend =
            gmm::cuda_available() && gmm::cuda_takes(clus.d, clus.k)
            ? gmm::make_cuda_backend(clus.cuda)
            : clus.k >= clus.kNearGroupsFrom &&
                    !gmm::has_matrices(clus.covariance)
            ? gmm::make_grouped_cpu_backend()
            : gmm::make_cpu_backend();
    const bool given = !clus.centroids.empty();
    const uint64_t seed = actual_seed(clus.seed);
    // All means given leave nothing to chance.
    const int nredo = clus.centroids.size() == clus.k * clus.d ? 1 : clus.nredo;

    gmm::TrainingOptions options;
    options.covariance = clus.covariance;
    options.init =
            given ? gmm::Initialisation::given_means : initialisation(clus);
    if (from_groups(clus, options.init, *backend)) {
        options.init = gmm::Initialisation::hierarchical;
    }
    // Hard iterations move means and nothing else.
    options.hard_iterations = clus.frozen_centroids ? 0 : clus.hard_niter;
    if (!clus.frozen_centroids && !gmm::has_matrices(clus.covariance)) {
        options.last_hard_iterations =
                std::min(clus.last_hard_niter, clus.niter / 2);
    }
    options.niter = clus.niter - options.last_hard_iterations;
    options.tolerance =
            std::max<double>(clus.tolerance, early_stop_threshold(clus));
    options.variance_floor = clus.variance_floor;
    options.update_means = !clus.frozen_centroids;
    if (!clus.frozen_centroids) {
        options.project_means = mean_projection(clus);
    }

    Fit best;
    best.backend = backend->name();
    double best_objective = -HUGE_VAL;
    for (int redo = 0; redo < nredo; redo++) {
        if (clus.verbose && nredo > 1) {
            printf("Outer iteration %d / %d\n", redo, nredo);
        }
        options.seed = seed + 1 + redo * kRedoSeedStep;
        gmm::GaussianMixture start;
        if (given) {
            start = start_model(clus, source, options.seed);
        }
        Progress progress{clus.verbose, {}};
        options.progress = std::ref(progress);
        options.check = faiss::InterruptCallback::check;
        gmm::TrainingResult result = gmm::train(
                source,
                weights,
                clus.k,
                options,
                *backend,
                given ? &start : nullptr);
        if (clus.verbose && !progress.stats.empty()) {
            printf("\n");
        }
        const double objective = score(result);
        if (redo > 0 && !(objective > best_objective)) {
            continue;
        }
        if (clus.verbose && redo > 0) {
            printf("Objective improved: keep new mixture\n");
        }
        best_objective = objective;
        best.model = std::move(result.model);
        best.stats = std::move(progress.stats);
    }
    return best;
}

} // namespace faiss_ext
