#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "../Backend.h"
#include "../Error.h"
#include "../Lloyd.h"
#include "../ParallelFor.h"
#include "CpuBackend.h"

namespace gmm {

namespace {

/// Bytes of vectors that are sorted by group at a time, or so many for each
/// group if these are more: what a group's components cost once is shared.
constexpr size_t kPortionBytes = size_t(64) << 20;
constexpr size_t kPortionRows = 512;
/// k-means iterations, over the means, that find the groups.
constexpr int kGroupIterations = 5;
/// Groups, over the root of the number of components.
constexpr size_t kGroupsPerRoot = 4;

/// Groups of vectors, and for each the components nearest to its middle.
struct Groups {
    Nearest nearest;
    std::vector<std::vector<int32_t>> components; ///< ascending

    Groups(const Lloyd& lloyd, size_t n_near)
            : nearest(lloyd.k, lloyd.points.d, lloyd.means),
              components(lloyd.k) {
        const size_t k = lloyd.points.n, d = lloyd.points.d;
        const PackedMeans packed(k, d, lloyd.points.y.data());
        std::vector<float> half_norm(k);
        for (size_t c = 0; c < k; c++) {
            half_norm[c] =
                    0.5f * best_kernels().norm(d, &lloyd.points.y[c * d]);
        }
        parallel_for(lloyd.k, [&](size_t g) {
            std::vector<float> away(k); // half the squared distance, shifted
            inner_products(packed, 1, &lloyd.means[g * d], away.data(), k);
            for (size_t c = 0; c < k; c++) {
                away[c] = half_norm[c] - away[c];
            }
            std::vector<int32_t>& out = components[g];
            out.resize(k);
            std::iota(out.begin(), out.end(), 0);
            const size_t n = std::min(n_near, k);
            std::nth_element(
                    out.begin(),
                    out.begin() + n - 1,
                    out.end(),
                    [&](int32_t p, int32_t q) {
                        return away[p] != away[q] ? away[p] < away[q] : p < q;
                    });
            out.resize(n);
            std::sort(out.begin(), out.end());
        });
    }
};

/// Some components of a mixture as one of their own, and the logarithm of their
/// share of the weight.
GaussianMixture select(
        const GaussianMixture& m,
        const std::vector<int32_t>& components,
        double& log_share) {
    GaussianMixture out;
    out.covariance = m.covariance;
    out.d = m.d;
    out.k = components.size();
    const size_t each = m.covariance == Covariance::diagonal ? m.d : 1;
    if (m.covariance == Covariance::tied_spherical) {
        out.variances = m.variances;
    }
    for (int32_t c : components) {
        const float* mean = m.means.data() + c * m.d;
        out.means.insert(out.means.end(), mean, mean + m.d);
        out.log_weights.push_back(m.log_weights[c]);
        if (m.covariance != Covariance::tied_spherical) {
            const float* variance = m.variances.data() + c * each;
            out.variances.insert(
                    out.variances.end(), variance, variance + each);
        }
    }
    const double largest =
            *std::max_element(out.log_weights.begin(), out.log_weights.end());
    double share = 0;
    for (float log_weight : out.log_weights) {
        share += std::exp(log_weight - largest);
    }
    log_share = largest + std::log(share);
    for (float& log_weight : out.log_weights) {
        log_weight = float(log_weight - log_share);
    }
    return out;
}

void add_selected(
        const SufficientStats& from,
        const std::vector<int32_t>& components,
        SufficientStats& to) {
    const size_t d = to.d;
    const size_t each = to.covariance == Covariance::diagonal ? d : 1;
    parallel_for(components.size(), [&](size_t i) {
        const size_t c = components[i];
        if (from.n_k[i] == 0) {
            return;
        }
        to.n_k[c] += from.n_k[i];
        for (size_t j = 0; j < d; j++) {
            to.sum_x[c * d + j] += from.sum_x[i * d + j];
        }
        for (size_t j = 0; j < each; j++) {
            to.sum_x2[c * each + j] += from.sum_x2[i * each + j];
        }
    });
    to.weight += from.weight;
    to.objective += from.objective;
    to.dropped_mass += from.dropped_mass;
}

struct GroupedBackend : Backend {
    const size_t nearby;
    CpuBackend whole; ///< for top_components
    const VectorSource* source = nullptr;
    const float* weights = nullptr;
    Frame frame;
    GaussianMixture model;

    explicit GroupedBackend(size_t nearby) : nearby(nearby) {}

    std::string name() const override {
        return "cpu";
    }

    void set_data(
            const VectorSource& new_source,
            const float* new_weights,
            const Frame& new_frame) override {
        whole.set_data(new_source, new_weights, new_frame);
        source = &new_source;
        weights = new_weights;
        frame = new_frame;
    }

    void set_model(const GaussianMixture& new_model) override {
        if (has_matrices(new_model.covariance)) {
            throw_invalid(
                    "model: covariance = %s, expected isotropic, diagonal or "
                    "tied_spherical",
                    to_string(new_model.covariance));
        }
        whole.set_model(new_model);
        model = new_model;
    }

    void top_components(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob,
            EStep order) override {
        whole.top_components(
                x, m, components, log_joint, distances, log_prob, order);
    }

    Groups find_groups() const {
        const double root = std::sqrt(double(model.k));
        const size_t groups =
                std::min(model.k, size_t(std::lround(kGroupsPerRoot * root)));
        const Points means(model.d, model.means);
        std::mt19937_64 random(model.k); // the same in each call
        Lloyd lloyd(means, groups, random);
        lloyd.run(kGroupIterations, random);
        return Groups(lloyd, size_t(std::ceil(double(nearby) * root)));
    }

    void accumulate(EStep step, SufficientStats& stats) override {
        if (!source || source->d != model.d) {
            throw_invalid(
                    "accumulate: set_data (d = %zu) and set_model (d = %zu) "
                    "must come first and agree",
                    source ? source->d : 0,
                    model.d);
        }
        const size_t d = model.d;
        stats = SufficientStats(model.covariance, model.k, d);
        const Groups groups = find_groups();
        const size_t rows = std::clamp<size_t>(
                kPortionBytes / (d * sizeof(float)),
                std::min(source->n, kPortionRows * groups.components.size()),
                source->n);
        for (size_t begin = 0; begin < source->n; begin += rows) {
            add_portion(
                    step,
                    groups,
                    begin,
                    std::min(rows, source->n - begin),
                    stats);
        }
    }

    /// Rows [begin, begin + n), sorted by group.
    void add_portion(
            EStep step,
            const Groups& groups,
            size_t begin,
            size_t n,
            SufficientStats& stats) const {
        constexpr size_t kRows = 1024;
        const size_t d = model.d;
        std::vector<float> x(n * d);
        std::vector<int32_t> of(n);
        parallel_for((n + kRows - 1) / kRows, [&](size_t b) {
            const size_t at = b * kRows, count = std::min(kRows, n - at);
            std::vector<std::byte> scratch;
            FrameBlock block;
            whole.load_block(begin + at, count, scratch, block);
            groups.nearest.find(count, block.y.data(), of.data() + at);
            source->rows(begin + at, count, scratch).to_float(&x[at * d]);
        });
        std::vector<uint32_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(
                order.begin(), order.end(), [&](uint32_t p, uint32_t q) {
                    return of[p] < of[q];
                });
        CpuBackend some;
        some.least_kept = kLeastResponsibility;
        std::vector<float> own, own_weights;
        SufficientStats own_stats;
        for (size_t i = 0; i < n;) {
            const int32_t g = of[order[i]];
            own.clear();
            own_weights.clear();
            for (; i < n && of[order[i]] == g; i++) {
                const float* row = x.data() + order[i] * d;
                own.insert(own.end(), row, row + d);
                own_weights.push_back(weights ? weights[begin + order[i]] : 1);
            }
            const auto members =
                    memory_source(own.data(), own_weights.size(), d);
            some.set_data(*members, own_weights.data(), frame);
            double log_share = 0;
            some.set_model(select(model, groups.components[g], log_share));
            some.accumulate(step, own_stats);
            if (step == EStep::soft) {
                own_stats.objective += own_stats.weight * log_share;
            }
            add_selected(own_stats, groups.components[g], stats);
        }
    }
};

} // namespace

std::unique_ptr<Backend> make_grouped_cpu_backend(size_t nearby) {
    if (nearby == 0) {
        throw_invalid("nearby = 0, expected at least 1");
    }
    return std::make_unique<GroupedBackend>(nearby);
}

} // namespace gmm
