#include "MixtureTools.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "ExpectInvalid.h"
#include "FullCovariance.h"
#include "TrainingTools.h"

TEST(Sweep, SweepFindsHowManyGroupsThereAre) {
    GaussianMixture truth;
    truth.covariance = Covariance::isotropic;
    truth.d = 2;
    truth.k = 4;
    truth.means = {0, 0, 30, 0, 0, 30, 30, 30};
    truth.variances = {1, 2, 1, 3};
    truth.log_weights.assign(4, std::log(0.25f));
    std::vector<float> x(2 * 4000);
    gmm::sample(truth, 4000, 1, x.data());
    const auto source = gmm::memory_source(x.data(), 4000, 2);
    const auto backend = gmm::make_cpu_backend();
    gmm::TrainingOptions options;
    options.niter = 60;
    options.tolerance = 1e-7;
    const auto all =
            sweep(*source, nullptr, {1, 2, 3, 4, 6}, options, *backend);
    ASSERT_EQ(all.size(), 5u);
    size_t best = 0;
    for (size_t i = 0; i < all.size(); i++) {
        EXPECT_EQ(all[i].result.model.k, all[i].k);
        EXPECT_NEAR(
                all[i].bic,
                bic(all[i].result.model, *source, nullptr, *backend),
                1e-6 * std::abs(all[i].bic));
        best = all[i].bic < all[best].bic ? i : best;
    }
    EXPECT_EQ(all[best].k, 4u);
    EXPECT_INVALID(sweep(*source, nullptr, {}, options, *backend), "ks");
    EXPECT_INVALID(
            sweep(*source, nullptr, {3, 3}, options, *backend),
            "ks[1] = 3, expected more than 3");
    EXPECT_INVALID(grow(truth, 3, 1), "k = 3");
}

/// A component that was split leaves the saddle that it stood on.
TEST(Sweep, SweepsOfEveryKindSplitGroups) {
    const size_t n = 2000, d = 3;
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(n * d);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            x[i * d + j] = normal(random) + 8 * float(j == i % 3);
        }
    }
    const auto source = gmm::memory_source(x.data(), n, d);
    const auto backend = gmm::make_cpu_backend();
    for (int kind = 0; kind <= int(Covariance::tied); kind++) {
        gmm::TrainingOptions options;
        options.covariance = Covariance(kind);
        options.niter = 100;
        const auto all =
                sweep(*source, nullptr, {1, 2, 3, 4}, options, *backend);
        const auto best = std::min_element(
                all.begin(), all.end(), [](const auto& a, const auto& b) {
                    return a.bic < b.bic;
                });
        EXPECT_EQ(best->k, 3u) << kind;
        // -1.5 log(2 pi e) - log 3: what groups of deviation 1 have.
        EXPECT_NEAR(
                score(all[2].result.model, *source, nullptr, *backend),
                -5.36,
                0.08)
                << kind;
    }
}

/// Copies could have ever smaller variances, and a likelihood without end.
TEST(Sweep, ASweepOverCopiesEnds) {
    GaussianMixture truth;
    truth.d = 2;
    truth.k = 3;
    truth.means = {10, 10, 14, 8, 9, 15};
    truth.variances = {1, 2, 1};
    truth.log_weights.assign(3, -std::log(3.0f));
    std::vector<float> x(2 * 600);
    gmm::sample(truth, 600, 1, x.data());
    std::fill_n(x.begin(), 60 * 2, 0.0f);
    const auto source = gmm::memory_source(x.data(), 600, 2);
    const auto backend = gmm::make_cpu_backend();
    for (Covariance covariance :
         {Covariance::isotropic, Covariance::diagonal, Covariance::full}) {
        SCOPED_TRACE(int(covariance));
        gmm::TrainingOptions options;
        options.covariance = covariance;
        const auto all =
                sweep(*source,
                      nullptr,
                      {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
                      options,
                      *backend);
        const auto best = std::min_element(
                all.begin(), all.end(), [](const auto& a, const auto& b) {
                    return a.bic < b.bic;
                });
        EXPECT_GE(best->k, 3u);
        EXPECT_LE(best->k, 7u);
        for (const auto& entry : all) {
            for (size_t c = 0; c < entry.k; c++) {
                for (double v :
                     gmm::component_variances(entry.result.model, c)) {
                    EXPECT_GT(v, 1e-4) << entry.k;
                }
            }
        }
    }
}

/// Not even where one component becomes many at once.
TEST(Sweep, GrownComponentsDiffer) {
    for (size_t d : {1, 2, 3}) {
        GaussianMixture m;
        m.d = d;
        m.k = 1;
        m.means.assign(d, 0);
        m.variances = {1};
        m.log_weights = {0};
        const GaussianMixture grown = gmm::grow(m, 64, 7);
        std::set<std::vector<float>> different;
        for (size_t c = 0; c < 64; c++) {
            different.insert(std::vector<float>(
                    grown.means.begin() + c * d,
                    grown.means.begin() + (c + 1) * d));
        }
        EXPECT_EQ(different.size(), 64u) << d;
    }
}

/// A sweep that leaves numbers out finds groups as one that does not.
TEST(Sweep, ASweepWithGapsFindsGroups) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(4000);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = 20 * float(i % 4) + normal(random);
    }
    const auto source = gmm::memory_source(x.data(), x.size(), 1);
    const auto backend = gmm::make_cpu_backend();
    gmm::TrainingOptions options;
    options.niter = 100;
    const auto swept = gmm::sweep(*source, nullptr, {1, 4}, options, *backend);
    ASSERT_EQ(swept.size(), 2u);
    std::vector<float> means = swept[1].result.model.means;
    std::sort(means.begin(), means.end());
    for (size_t c = 0; c < 4; c++) {
        EXPECT_NEAR(means[c], 20 * float(c), 1);
    }
}

/// Five round groups of deviation 1: what a sweep finds for them is what they
/// are, however far apart.
TEST(Sweep, ASweepFindsHowManyGroupsThereAreFarApart) {
    const size_t n = 2000, d = 3, k = 5;
    for (int covariance = 0; covariance <= int(Covariance::tied);
         covariance++) {
        for (float apart : {30.f, 1e3f, 1e4f}) {
            std::mt19937 random(7);
            std::normal_distribution<float> normal;
            std::vector<float> centres(k * d), x(n * d);
            for (float& v : centres) {
                v = apart * normal(random);
            }
            for (size_t i = 0; i < n * d; i++) {
                x[i] = centres[i / d % k * d + i % d] + normal(random);
            }
            TrainingOptions options;
            options.covariance = Covariance(covariance);
            options.niter = 200;
            const auto backend = gmm::make_cpu_backend();
            const auto entries = gmm::sweep(
                    *gmm::memory_source(x.data(), n, d),
                    nullptr,
                    {1, 2, 3, 4, 5, 6},
                    options,
                    *backend);
            const auto best = std::min_element(
                    entries.begin(),
                    entries.end(),
                    [](const auto& a, const auto& b) { return a.bic < b.bic; });
            EXPECT_EQ(best->k, k) << covariance << ", " << apart;
            // It did not end where a floor held components up.
            const double log_likelihood =
                    (double(num_parameters(best->result.model)) *
                             std::log(double(n)) -
                     best->bic) /
                    2;
            EXPECT_NEAR(best->result.lower_bound(), log_likelihood / n, 0.01);
            for (double v : mean_variances(best->result.model)) {
                EXPECT_NEAR(v, 1, 0.15) << covariance << ", " << apart;
            }
        }
    }
}

/// Of five different rows more than five components explain nothing.
TEST(Sweep, ASweepOverEqualRowsEndsWhereTheyDiffer) {
    const size_t n = 1000, d = 2;
    std::vector<float> x(n * d);
    for (size_t i = 0; i < n; i++) {
        x[i * d] = float(i % 5) * 3;
        x[i * d + 1] = float(i % 5 * (i % 5));
    }
    for (int covariance = 0; covariance <= int(Covariance::tied);
         covariance++) {
        TrainingOptions options;
        options.covariance = Covariance(covariance);
        options.niter = 50;
        const auto backend = gmm::make_cpu_backend();
        const auto entries = gmm::sweep(
                *gmm::memory_source(x.data(), n, d),
                nullptr,
                {1, 2, 3, 4, 5, 8, 16, 32},
                options,
                *backend);
        const auto best = std::min_element(
                entries.begin(),
                entries.end(),
                [](const auto& a, const auto& b) { return a.bic < b.bic; });
        EXPECT_EQ(best->k, 5u) << covariance;
    }
}

/// A full covariance covers two groups so well that splits alone leave it so.
TEST(Sweep, FullCovariancesPartWhatOneCovers) {
    size_t right = 0, all = 0;
    for (const auto& [spacing, seed] :
         {std::pair{10., 11}, {10., 3}, {30., 11}, {100., 7}}) {
        std::mt19937_64 random(uint64_t(seed) * 7 + 1);
        std::normal_distribution<double> normal;
        const size_t d = 3 + seed % 4, groups = 2 + seed % 5, n = 1500;
        std::vector<double> centres(groups * d);
        for (bool apart = false; !apart;) {
            apart = true;
            for (double& v : centres) {
                v = spacing * normal(random);
            }
            for (size_t a = 0; a < groups; a++) {
                for (size_t b = 0; b < a; b++) {
                    double square = 0;
                    for (size_t j = 0; j < d; j++) {
                        const double diff =
                                centres[a * d + j] - centres[b * d + j];
                        square += diff * diff;
                    }
                    apart = apart && std::sqrt(square) >= 1.2 * spacing;
                }
            }
        }
        std::vector<float> x(n * d);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < d; j++) {
                x[i * d + j] =
                        float(centres[i % groups * d + j] + normal(random));
            }
        }
        gmm::TrainingOptions options;
        options.covariance = Covariance::full;
        options.niter = 100;
        options.seed = uint64_t(seed);
        options.init = Initialisation::kmeans_plus_plus;
        options.tolerance = 1e-6;
        const auto source = gmm::memory_source(x.data(), n, d);
        const auto backend = gmm::make_cpu_backend();
        const auto entries = sweep(
                *source, nullptr, {1, 2, 3, 4, 5, 6, 7, 8}, options, *backend);
        size_t best = 0;
        for (size_t i = 0; i < entries.size(); i++) {
            best = entries[i].bic < entries[best].bic ? i : best;
        }
        all++;
        right += entries[best].k == groups;
    }
    EXPECT_EQ(right, all);
}

/// Halves of an old component of several groups may leave one that the start of
/// its own number finds.
TEST(Sweep, GroupsOnALine) {
    for (auto covariance : {Covariance::diagonal, Covariance::tied}) {
        size_t found = 0;
        for (unsigned seed = 0; seed < 8; seed++) {
            const size_t n = 1000, d = 3;
            std::mt19937_64 random(seed);
            std::normal_distribution<float> normal;
            std::vector<float> x(n * d);
            for (size_t i = 0; i < n; i++) {
                const size_t group = random() % 5;
                for (size_t j = 0; j < d; j++) {
                    x[i * d + j] = normal(random) + (j == 0 ? 12.f * group : 0);
                }
            }
            const auto source = gmm::memory_source(x.data(), n, d);
            const auto backend = gmm::make_cpu_backend();
            gmm::TrainingOptions options;
            options.covariance = covariance;
            options.niter = 100;
            options.seed = seed;
            options.init = gmm::Initialisation::kmeans_plus_plus;
            const auto all = sweep(
                    *source, nullptr, {1, 2, 3, 4, 5, 6, 7}, options, *backend);
            const auto best = std::min_element(
                    all.begin(), all.end(), [](const auto& p, const auto& q) {
                        return p.bic < q.bic;
                    });
            found += best->k == 5;
        }
        EXPECT_GE(found, 7u) << to_string(covariance);
    }
}
