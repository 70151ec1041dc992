/// Searching among some ids only; vectors that come and go.
#include <cstdio>
#include <memory>

#include <faiss/impl/IDSelector.h>

#include <faiss_ext/IndexIVFGMM.h>

#include "vectors.h"

int main() {
    const size_t d = 32, n = 8000, nq = 4, k = 5;
    const std::vector<float> x = make_vectors(n, d, 2);
    std::vector<faiss_ext::idx_t> ids(n);
    for (size_t i = 0; i < n; i++) {
        ids[i] = 10 * i;
    }
    faiss_ext::IndexIVFFlatGMM index(d, 32);
    index.train(n, x.data());
    index.add_with_ids(n, x.data(), ids.data());

    faiss::IDSelectorRange recent(70000, 80000);
    faiss_ext::SearchParametersIVFGMM params;
    params.sel = &recent;
    params.target_recall = 0.95f;
    std::vector<float> distances(nq * k);
    std::vector<faiss_ext::idx_t> labels(nq * k);
    index.search(nq, x.data(), k, distances.data(), labels.data(), &params);
    for (faiss_ext::idx_t id : labels) {
        if (id < 70000 || id >= 80000) {
            return 1;
        }
    }

    const size_t removed = index.remove_ids(recent);
    printf("removed %zu, %lld are left; maintenance due: %s\n",
           removed,
           (long long)index.ntotal,
           index.maintenance_due() ? "yes" : "no");
    index.maintain();
    return removed == 1000 && index.ntotal == 7000 ? 0 : 1;
}
