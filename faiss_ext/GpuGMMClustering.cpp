#include "faiss_ext/GpuGMMClustering.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include <faiss/Index.h>
#include <faiss/utils/random.h>

#include "VectorSource.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/fit_mixture.h"

namespace faiss_ext {

namespace {

/// FAISS's choice of training vectors where there are more than are wanted.
std::vector<size_t> subsample(
        const faiss::ClusteringParameters& cp, size_t n, size_t wanted) {
    std::vector<int> perm(n);
#if FAISS_EXT_FAISS_VERSION > 10703
    if (cp.use_faster_subsampling) {
        faiss::rand_perm_splitmix64(perm.data(), n, actual_seed(cp.seed));
    } else {
        faiss::rand_perm(perm.data(), n, actual_seed(cp.seed));
    }
#else
    faiss::rand_perm(perm.data(), n, actual_seed(cp.seed));
#endif
    return {perm.begin(), perm.begin() + wanted};
}

void check_weights(size_t n, const float* weights) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        FAISS_THROW_IF_NOT_FMT(
                weights[i] >= 0 && std::isfinite(weights[i]),
                "x_weights: entry %zu is %g, expected a finite value >= 0",
                i,
                weights[i]);
        sum += weights[i];
    }
    FAISS_THROW_IF_NOT_MSG(
            sum > 0, "x_weights: all are 0, expected at least one above 0");
}

/// What can be wrong before the vectors are looked at.
void check_training(const GpuGMMClustering& clus, const faiss::Index& index) {
    FAISS_THROW_IF_NOT_FMT(
            int64_t(clus.d) > 0, "d = %" PRId64 ", expected > 0", clus.d);
    FAISS_THROW_IF_NOT_FMT(
            int64_t(clus.k) > 0, "k = %" PRId64 ", expected > 0", clus.k);
    as_faiss_exception([&] { gmm::to_string(clus.covariance); });
    FAISS_THROW_IF_NOT_FMT(
            clus.niter >= 0, "niter = %d, expected >= 0", clus.niter);
    FAISS_THROW_IF_NOT_FMT(
            clus.hard_niter >= 0,
            "hard_niter = %d, expected >= 0",
            clus.hard_niter);
    FAISS_THROW_IF_NOT_FMT(
            clus.last_hard_niter >= 0,
            "last_hard_niter = %d, expected >= 0",
            clus.last_hard_niter);
    FAISS_THROW_IF_NOT_FMT(
            clus.nredo >= 1, "nredo = %d, expected >= 1", clus.nredo);
    FAISS_THROW_IF_NOT_FMT(
            clus.max_points_per_centroid > 0,
            "max_points_per_centroid = %d, expected > 0",
            clus.max_points_per_centroid);
    FAISS_THROW_IF_NOT_FMT(
            clus.variance_floor > 0 && std::isfinite(clus.variance_floor),
            "variance_floor = %g, expected > 0 and finite",
            clus.variance_floor);
    FAISS_THROW_IF_NOT_FMT(
            clus.tolerance >= 0 && std::isfinite(clus.tolerance),
            "tolerance = %g, expected >= 0 and finite",
            clus.tolerance);
    const size_t n_given = clus.centroids.size() / clus.d;
    FAISS_THROW_IF_NOT_FMT(
            clus.centroids.size() % clus.d == 0 && n_given <= clus.k,
            "centroids: size %zu, expected a multiple of d = %zu and at most "
            "k * d = %zu",
            clus.centroids.size(),
            clus.d,
            clus.k * clus.d);
    FAISS_THROW_IF_NOT_FMT(
            !clus.frozen_centroids || n_given == clus.k,
            "frozen_centroids: %zu centroids are given, expected all k = %zu",
            n_given,
            clus.k);
    check_finite("centroids", n_given, clus.d, clus.centroids.data());
    FAISS_THROW_IF_NOT_FMT(
            size_t(index.d) == clus.d,
            "index: dimension %d, expected d = %zu",
            index.d,
            clus.d);
}

/** FAISS's rule for the number of vectors: all of them (an empty list), a
 * random subset, or a warning that there are few. */
std::vector<size_t> choose_vectors(
        const GpuGMMClustering& clus, size_t n, const float* weights) {
    FAISS_THROW_IF_NOT_FMT(
            n >= clus.k,
            "n = %zu training vectors, expected at least k = %zu",
            n,
            clus.k);
    const size_t most = clus.k * size_t(clus.max_points_per_centroid);
    if (n > most) {
        if (clus.verbose) {
            printf("Sampling a subset of %zu / %zu for training\n", most, n);
        }
        if (!weights) {
            return subsample(clus, n, most);
        }
        std::vector<size_t> counted; // the others have no say
        for (size_t i = 0; i < n; i++) {
            if (weights[i] > 0) {
                counted.push_back(i);
            }
        }
        if (counted.size() < clus.k) {
            return {}; // too few, as will be said of all
        }
        if (counted.size() <= most) {
            return counted;
        }
        std::vector<size_t> ids = subsample(clus, counted.size(), most);
        for (size_t& i : ids) {
            i = counted[i];
        }
        return ids;
    }
    const int64_t least = int64_t(clus.k) * clus.min_points_per_centroid;
    if (int64_t(n) < least) {
        fprintf(stderr,
                "WARNING clustering %zu points to %zu components: "
                "please provide at least %" PRId64 " training points\n",
                n,
                clus.k,
                least);
    }
    return {};
}

/// The last step, once nothing of the input can be wrong any more: the
/// index's part may throw, this object's may not.
void publish(GpuGMMClustering& clus, Fit&& fit, faiss::Index& index) {
    const float* means = fit.model.means.data();
    index.reset();
    if (clus.update_index || !index.is_trained) {
        index.train(clus.k, means);
    }
    index.add(clus.k, means);

    clus.centroids = std::move(fit.model.means);
    clus.variances = std::move(fit.model.variances);
    clus.precisions_cholesky = std::move(fit.model.precisions_cholesky);
    clus.log_weights = std::move(fit.model.log_weights);
    clus.iteration_stats = std::move(fit.stats);
    clus.backend = std::move(fit.backend);
}

std::vector<float> gather_weights(
        const std::vector<size_t>& ids, const float* weights) {
    std::vector<float> out(weights ? ids.size() : 0);
    for (size_t i = 0; i < out.size(); i++) {
        out[i] = weights[ids[i]];
    }
    return out;
}

void print_start(const GpuGMMClustering& clus, size_t n) {
    if (!clus.verbose) {
        return;
    }
    printf("Fitting a mixture to %zu points in %zuD, %zu components, "
           "redo %d times, %d iterations\n",
           n,
           clus.d,
           clus.k,
           clus.nredo,
           clus.niter);
    if (!clus.centroids.empty()) {
        printf("  Using %zu centroids provided as input (%sfrozen)\n",
               clus.centroids.size() / clus.d,
               clus.frozen_centroids ? "" : "not ");
    }
}

} // namespace

GpuGMMClustering::GpuGMMClustering(int d, int k) : faiss::Clustering(d, k) {}

GpuGMMClustering::GpuGMMClustering(
        int d, int k, const faiss::ClusteringParameters& cp)
        : faiss::Clustering(d, k, cp) {}

void GpuGMMClustering::train(
        idx_t n, const float* x, faiss::Index& index, const float* x_weights) {
    check_training(*this, index);
    FAISS_THROW_IF_NOT_FMT(n > 0, "n = %" PRId64 ", expected > 0", n);
    check_finite("x", n, d, x);
    if (x_weights) {
        check_weights(n, x_weights);
    }

    as_faiss_exception([&] {
        auto source = gmm::memory_source(x, n, d);
        const std::vector<size_t> ids = choose_vectors(*this, n, x_weights);
        std::vector<float> sample(ids.size() * d);
        const std::vector<float> weights = gather_weights(ids, x_weights);
        if (!ids.empty()) {
            gmm::gather(*source, ids, sample.data());
            source = gmm::memory_source(sample.data(), ids.size(), d);
            x_weights = x_weights ? weights.data() : nullptr;
        }
        print_start(*this, source->n);
        publish(*this, fit_mixture(*this, *source, x_weights), index);
    });
}

void GpuGMMClustering::train(
        const gmm::VectorSource& source, faiss::Index& index) {
    check_training(*this, index);
    FAISS_THROW_IF_NOT_FMT(
            source.d == d,
            "source: dimension %zu, expected d = %zu",
            source.d,
            d);
    FAISS_THROW_IF_NOT_FMT(
            source.n >= k,
            "source: n = %zu training vectors, expected at least k = %zu",
            source.n,
            k);
    as_faiss_exception([&] {
        const size_t most = k * size_t(max_points_per_centroid);
        std::unique_ptr<gmm::VectorSource> sample;
        if (source.n > most) {
            sample = gmm::sample_source(source, most, actual_seed(seed));
        }
        const gmm::VectorSource& used = sample ? *sample : source;
        print_start(*this, used.n);
        publish(*this, fit_mixture(*this, used, nullptr), index);
    });
}

void GpuGMMClustering::train_encoded(
        idx_t n,
        const uint8_t* x_in,
        const faiss::Index* codec,
        faiss::Index& index,
        const float* weights) {
    if (!codec) {
        train(n, reinterpret_cast<const float*>(x_in), index, weights);
        return;
    }
    check_training(*this, index);
    FAISS_THROW_IF_NOT_FMT(n > 0, "n = %" PRId64 ", expected > 0", n);
    FAISS_THROW_IF_NOT_FMT(
            size_t(codec->d) == d,
            "codec: dimension %d, expected d = %zu",
            codec->d,
            d);
    check_rows("x_in", n, d, x_in);
    FAISS_THROW_IF_NOT_MSG(
            decode_block_size > 0, "decode_block_size = 0, expected > 0");
    if (weights) {
        check_weights(n, weights);
    }

    as_faiss_exception([&] {
        const size_t code_size = codec->sa_code_size();
        const std::vector<size_t> ids = choose_vectors(*this, n, weights);
        std::vector<uint8_t> codes(ids.size() * code_size);
        for (size_t i = 0; i < ids.size(); i++) {
            memcpy(codes.data() + i * code_size,
                   x_in + ids[i] * code_size,
                   code_size);
        }
        const std::vector<float> own_weights = gather_weights(ids, weights);
        const uint8_t* used = ids.empty() ? x_in : codes.data();
        if (!ids.empty()) {
            weights = weights ? own_weights.data() : nullptr;
        }
        auto decode = [&](size_t begin, size_t count, void* out) {
            float* x = static_cast<float*>(out);
            while (count > 0) {
                const size_t block = std::min(count, decode_block_size);
                codec->sa_decode(block, used + begin * code_size, x);
                begin += block;
                count -= block;
                x += block * d;
            }
        };
        const auto source = gmm::callback_source(
                ids.empty() ? n : ids.size(), d, gmm::ElementType::f32, decode);
        print_start(*this, source->n);
        publish(*this, fit_mixture(*this, *source, weights), index);
    });
}

gmm::GaussianMixture GpuGMMClustering::mixture() const {
    FAISS_THROW_IF_NOT_MSG(
            !log_weights.empty(), "the mixture is not fitted: call train");
    gmm::GaussianMixture model;
    model.covariance = covariance;
    model.d = d;
    model.k = k;
    model.means = centroids;
    model.variances = variances;
    model.precisions_cholesky = precisions_cholesky;
    model.log_weights = log_weights;
    return model;
}

} // namespace faiss_ext
