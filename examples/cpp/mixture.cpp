/// The mixture alone, by FAISS's clustering interface.
#include <cstdio>

#include <faiss/IndexFlat.h>

#include <faiss_ext/GpuGMMClustering.h>

#include "vectors.h"

int main() {
    const size_t d = 16, n = 20000, k = 50;
    const std::vector<float> x = make_vectors(n, d, 2);

    faiss_ext::GpuGMMClustering clustering(d, k);
    clustering.covariance = gmm::Covariance::diagonal;
    faiss::IndexFlatL2 means(d);
    clustering.train(n, x.data(), means);

    const gmm::GaussianMixture mixture = clustering.mixture();
    std::vector<double> log_prob(n);
    mixture.log_prob(n, x.data(), log_prob.data());
    double sum = 0;
    for (double l : log_prob) {
        sum += l;
    }
    printf("%zu components by %s, mean log-likelihood %.2f\n",
           mixture.k,
           clustering.backend.c_str(),
           sum / n);
    return means.ntotal == faiss_ext::idx_t(k) && sum / n > -30 ? 0 : 1;
}
