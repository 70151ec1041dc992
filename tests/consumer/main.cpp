#include <cmath>
#include <cstdio>

#include <gmm/GaussianMixture.h>

int main() {
    gmm::GaussianMixture mixture;
    mixture.d = 2;
    mixture.k = 1;
    mixture.means = {0, 0};
    mixture.variances = {1};
    mixture.log_weights = {0};
    const float x[] = {0, 0};
    double log_prob = 0;
    mixture.log_prob(1, x, &log_prob);
    std::printf("log p(0) = %f\n", log_prob);
    return std::abs(log_prob + std::log(2 * M_PI)) < 1e-12 ? 0 : 1;
}
