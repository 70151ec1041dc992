/// A new index by its string, searched for a recall, written and read.
#include <cstdio>
#include <memory>

#include <faiss_ext/IndexIVFGMM.h>
#include <faiss_ext/index_factory.h>
#include <faiss_ext/index_io.h>
#include <faiss_ext/ivflib.h>

#include "vectors.h"

int main() {
    const size_t d = 64, n = 20000, nq = 5, k = 3;
    const std::vector<float> x = make_vectors(n, d, 2);

    const std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(d, "GMM64,SQ8"));
    index->train(n, x.data());
    index->add(n, x.data());
    faiss_ext::extract_gmm(index.get())->target_recall = 0.95f;
    faiss_ext::write_index(index.get(), "example.index");

    const std::unique_ptr<faiss::Index> again(
            faiss_ext::read_index("example.index"));
    remove("example.index");
    std::vector<float> distances(nq * k);
    std::vector<faiss_ext::idx_t> labels(nq * k);
    again->search(nq, x.data(), k, distances.data(), labels.data());
    bool found = true;
    for (size_t i = 0; i < nq; i++) {
        printf("vector %zu: nearest %lld at %.4f\n",
               i,
               (long long)labels[i * k],
               distances[i * k]);
        found = found && labels[i * k] == faiss_ext::idx_t(i);
    }
    return found ? 0 : 1;
}
