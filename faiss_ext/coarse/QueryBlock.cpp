#include "faiss_ext/coarse/QueryBlock.h"

#include "InnerProducts.h"
#include "faiss_ext/coarse/centre.h"

namespace faiss_ext {

void QueryBlock::start(
        const CellCodes& codes, size_t n, const float* x, bool with_distances) {
    d = codes.shape.d;
    nlist = codes.mean_norms.size();
    rotated.resize(n * d);
    codes.rotation.apply(n, x, codes.centre.data(), 1, rotated.data());
    if (with_distances) {
        measure(codes, n, x);
    }
}

void QueryBlock::measure(const CellCodes& codes, size_t n, const float* x) {
    d = codes.shape.d;
    nlist = codes.mean_norms.size();
    centred.resize(n * d);
    subtract(n, d, x, codes.centre.data(), centred.data());
    distances.resize(n * nlist);
    least.resize(n);
    largest.resize(n);
    gmm::inner_products(
            *codes.packed_means, n, centred.data(), distances.data(), nlist);
    const CodeKernels& kernels = best_code_kernels();
    for (size_t i = 0; i < n; i++) {
        const float* q = &centred[i * d];
        const bool ip = codes.similarity;
        const float qq = ip ? 0 : kernels.inner_product(q, q, d);
        float* out = &distances[i * nlist];
        kernels.distances(
                nlist,
                out,
                codes.mean_norms.data(),
                ip ? norm_scale(-2, d, q) : -2,
                ip ? 2 : qq,
                out,
                &least[i],
                &largest[i]);
        largest[i] = usual_largest(nlist, out, least[i], largest[i]);
    }
}

float QueryBlock::norm(size_t i) const {
    return norm_of(d, &rotated[i * d]);
}

} // namespace faiss_ext
