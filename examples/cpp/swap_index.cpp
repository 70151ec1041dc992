/// An IVF index of FAISS's, swapped: the same vectors, fewer distances.
#include <cstdio>
#include <memory>
#include <set>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>

#include <faiss_ext/IndexIVFGMM.h>
#include <faiss_ext/ivflib.h>

#include "vectors.h"

int main() {
    const size_t d = 64, n = 20000, nq = 500, k = 10;
    const std::vector<float> x = make_vectors(n, d, 2);
    const std::vector<float> queries = make_vectors(nq, d, 3);

    faiss::IndexFlatL2 quantizer(d);
    faiss::IndexIVFFlat old(&quantizer, d, 64);
    old.train(n, x.data());
    old.add(n, x.data());

    const auto index = faiss_ext::swap_to_gmm(old);
    faiss_ext::calibrate(index.get(), nq / 2, queries.data(), k);
    faiss_ext::extract_gmm(index.get())->target_recall = 0.95f;

    // The other half of the queries, against all vectors there are.
    const float* others = queries.data() + nq / 2 * d;
    std::vector<float> distances(nq / 2 * k);
    std::vector<faiss_ext::idx_t> truth(nq / 2 * k), found(nq / 2 * k);
    old.nprobe = old.nlist;
    old.search(nq / 2, others, k, distances.data(), truth.data());
    faiss::indexIVF_stats.reset();
    index->search(nq / 2, others, k, distances.data(), found.data());

    size_t hits = 0;
    for (size_t i = 0; i < nq / 2; i++) {
        const std::set<faiss_ext::idx_t> of_query(
                truth.data() + i * k, truth.data() + (i + 1) * k);
        for (size_t r = 0; r < k; r++) {
            hits += of_query.count(found[i * k + r]);
        }
    }
    const double recall = double(hits) / found.size();
    printf("recall %.3f by %.0f distances a query, of %zu vectors\n",
           recall,
           double(faiss::indexIVF_stats.ndis) / (nq / 2),
           n);
    return recall > 0.9 ? 0 : 1;
}
