#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include <faiss_ext/CudaOptions.h>
#include <faiss_ext/Error.h>
#include <faiss_ext/index_factory.h>

int main() {
    const int d = 8, n = 1000;
    std::vector<float> x(d * n);
    std::mt19937 random(1);
    for (float& value : x) {
        value = std::normal_distribution<float>()(random);
    }
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(d, "GMM16,Flat"));
    index->train(n, x.data());
    index->add(n, x.data());
    float distance;
    int64_t label;
    index->search(1, x.data(), 1, &distance, &label);
    try {
        gmm::make_cuda_backend(gmm::CudaOptions());
    } catch (const gmm::DeviceError& e) {
        std::printf("no GPU: %s\n", e.what());
    }
    std::printf("nearest to vector 0: %d, at %g\n", int(label), distance);
    return label == 0 ? 0 : 1;
}
